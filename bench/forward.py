"""`python -m bench.forward`: kubectl port-forward and ours, side by side on the cluster of $KUBECONFIG, interleaved.

Both forward the same two ports of the same pod of the demo, each through its own local listener. Of several rounds the
median counts; figures depend on the machine and its load, their ratios much less.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from bench.forward_clients import (
    concurrent_downloads,
    download,
    new_connections,
    open_connections,
    requests_per_s,
    upload,
)
from bench.processes import MIB, cpu_s, resident_bytes

GIB = 1 << 30
NAMESPACE, SELECTOR, HTTP_PORT, ECHO_PORT = "demo", "app=echo", 8080, 9000
RTT_MS = 50
START_TIMEOUT_S = 15.0
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) -> (?:\S+ )?(\d+)")


class Contestant:
    """A program that forwards ports, started when it is needed and again where it died."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.deaths = 0
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._ports: dict[int, int] = {}
        self._kubeconfig = ""

    def start(self, kubeconfig: str) -> None:
        self.stop()
        self._kubeconfig = kubeconfig
        self._process = subprocess.Popen(  # noqa: S603 - ours
            self._command,
            env={**os.environ, "KUBECONFIG": kubeconfig, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None  # noqa: S101  (a pipe was asked for)
        self._ports = {}
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(self._ports) < 2 and time.monotonic() < deadline:
            if found := _FORWARDING.search(self._process.stdout.readline()):
                self._ports[int(found[2])] = int(found[1])
            elif self._process.poll() is not None:
                raise RuntimeError(f"{self.name} did not start: {' '.join(self._command)}")
        # kubectl tells of each connection: an unread pipe would stop it
        self._drain = subprocess.Popen(["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL)  # noqa: S607

    def port(self, remote: int) -> int:
        """The local port for one of the pod's."""
        if self._process is None or self._process.poll() is not None:
            self.deaths += 1
            self.start(self._kubeconfig)
        return self._ports[remote]

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101  (asked for while it runs)
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._drain.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `goal`: the ratio ours/kubectl to reach, at least, or at most where less is better."""

    label: str
    goal: float | None
    less_is_better: bool
    digits: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.values.get(name) or [float("nan")])


type Measure = Callable[[Contestant], Sequence[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256, help="of one transfer")
    parser.add_argument("--only", default="", help="a part of the labels of those measures that are wanted")
    parser.add_argument("--ours", action="store_true", help="without kubectl, e.g. to profile")
    options = parser.parse_args()
    kubeconfig = os.environ.get("KUBECONFIG") or sys.exit("bench.forward: KUBECONFIG must name a cluster with the demo")
    pod = _a_pod()
    ports = [f":{HTTP_PORT}", f":{ECHO_PORT}"]
    target = ["-n", NAMESPACE, f"pod/{pod}", *ports]
    ours = Contestant("kube-tunnel", [sys.executable, "-m", "kubetunnel.cli.forward", *target])
    theirs = Contestant("kubectl", ["kubectl", "port-forward", *target])
    contestants = [ours] if options.ours else [theirs, ours]
    rows: list[Row] = []
    try:
        with far_away(kubeconfig) as far_kubeconfig:
            for at, measure, measured in _measures(options.mib * MIB):
                if not any(options.only in row.label for row in measured):
                    continue
                rows += measured
                for contestant in contestants:
                    contestant.start(far_kubeconfig if at == "far" else kubeconfig)
                    contestant.port(ECHO_PORT)
                for _ in range(options.rounds):
                    for contestant in contestants:
                        _note(contestant, measure, measured)
    finally:
        for contestant in contestants:
            contestant.stop()
    _print_table(rows, contestants, pod, options.rounds)


def _measures(size: int) -> list[tuple[str, Measure, list[Row]]]:
    """Where the API server is (near or far), what is done, and the rows that it fills."""

    def moved(client: Callable[[int, int], float]) -> Measure:
        def run(contestant: Contestant) -> Sequence[float]:
            port = contestant.port(HTTP_PORT)
            before_s = cpu_s(contestant.pid)
            took_s = client(port, size)
            return size / took_s / 1e6, (cpu_s(contestant.pid) - before_s) / (size / GIB)

        return run

    def opened(count: int) -> Measure:
        def run(contestant: Contestant) -> Sequence[float]:
            found = new_connections(contestant.port(ECHO_PORT), count)
            return found.p50_ms, found.p99_ms

        return run

    def at_once(contestant: Contestant) -> Sequence[float]:
        return (100 * 4 * MIB / concurrent_downloads(contestant.port(HTTP_PORT), 100, 4 * MIB) / 1e6,)

    def asked(connections: int) -> Measure:
        return lambda contestant: (requests_per_s(contestant.port(HTTP_PORT), connections, 3),)

    return [
        ("near", moved(download), [Row("down, MB/s", 1.2, False), Row("down, CPU s/GiB", 0.75, True, 2)]),
        ("near", moved(upload), [Row("up, MB/s", 1.2, False), Row("up, CPU s/GiB", 0.75, True, 2)]),
        ("near", opened(200), [Row("new connection p50, ms", 0.7, True, 2), Row("  p99, ms", None, True, 2)]),
        ("far", opened(12), [Row(f"first byte at {RTT_MS} ms RTT, ms", 0.4, True), Row("  worst, ms", None, True)]),
        ("near", at_once, [Row("100 x 4 MiB at once, MB/s", 1.3, False)]),
        ("near", asked(1), [Row("requests/s, 1 connection", None, False)]),
        ("near", asked(16), [Row("requests/s, 16 connections", 1.5, False)]),
        ("near", _memory, [Row("memory, MiB", None, True), Row("  with 100 connections, MiB", None, True)]),
    ]


def _memory(contestant: Contestant) -> Sequence[float]:
    port = contestant.port(ECHO_PORT)
    before = resident_bytes(contestant.pid)
    connections = open_connections(port, 100)
    after = resident_bytes(contestant.pid)
    for connection in connections:
        connection.close()
    return before / MIB, after / MIB


def _note(contestant: Contestant, measure: Measure, rows: Sequence[Row]) -> None:
    try:
        values = measure(contestant)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"  {contestant.name}, {rows[0].label}: {error!r}", file=sys.stderr)
        return
    for row, value in zip(rows, values, strict=True):
        row.add(contestant.name, value)


def _print_table(rows: Sequence[Row], contestants: Sequence[Contestant], pod: str, rounds: int) -> None:
    names = [contestant.name for contestant in contestants]
    print(f"Port-forwards of pod {pod}, median of {rounds} rounds, interleaved")
    print(f"{'':34}" + "".join(f"{name:>14}" for name in names) + f"{'ratio':>9}  goal")
    for row in rows:
        medians = [row.median(name) for name in names]
        line = f"{row.label:34}" + "".join(f"{value:>14,.{row.digits}f}" for value in medians)
        if len(medians) == 2:
            ratio = medians[1] / medians[0] if medians[0] else float("nan")
            line += f"{ratio:>9.2f}"
            if row.goal is not None:
                reached = ratio <= row.goal if row.less_is_better else ratio >= row.goal
                line += f"  {'<=' if row.less_is_better else '>='} {row.goal:g} {'reached' if reached else 'MISSED'}"
        print(line)
    for contestant in contestants:
        if contestant.deaths:
            print(f"{contestant.name} ended by itself {contestant.deaths} times, and was started again")


@contextlib.contextmanager
def far_away(kubeconfig: str) -> Iterator[str]:
    """A kubeconfig whose API server is RTT_MS away."""
    config: dict[str, Any] = yaml.safe_load(Path(kubeconfig).read_text())
    context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
    cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
    address = urlsplit(cluster["server"])
    command = [sys.executable, "-m", "bench.delay_relay", f"{address.hostname}:{address.port}", str(RTT_MS / 2)]
    with tempfile.TemporaryDirectory(prefix="kube-tunnel-bench-") as directory:
        relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
        try:
            assert relay.stdout is not None  # noqa: S101  (a pipe was asked for)
            port = int(relay.stdout.readline())
            cluster["server"] = f"{address.scheme}://127.0.0.1:{port}{address.path}"
            cluster.setdefault("tls-server-name", address.hostname)
            path = Path(directory, "kubeconfig")
            path.touch(mode=0o600)
            path.write_text(yaml.safe_dump(config))
            yield str(path)
        finally:
            relay.terminate()
            relay.wait()
            if relay.stdout is not None:
                relay.stdout.close()


def _a_pod() -> str:
    command = ["kubectl", "-n", NAMESPACE, "get", "pods", "-l", SELECTOR, "-o", "jsonpath={.items[0].metadata.name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout  # noqa: S603 - ours


if __name__ == "__main__":
    main()
