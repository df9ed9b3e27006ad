"""A real mitmdump (or mitmweb) with the addon, as a subprocess, and curl to ask it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forked_mitmproxy import ForkedProcess, server

ROOT = Path(__file__).resolve().parents[1]
ADDON = ROOT / "addons" / "kube_tunnel.py"
START_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What curl got."""

    exit_code: int
    status: int
    headers: dict[str, str]
    body: bytes
    connects: int
    first_byte_s: float
    total_s: float
    stderr: str
    http_version: str  # "1.1", "2"
    connect_status: int  # of a CONNECT, 0 without one

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-kube-tunnel-error")


# curl writes it at the end of each transfer
WRITE_OUT = "%{stderr}FACTS%{json}HEADERS%{header_json}"


def curl(*arguments: str, timeout_s: float = 60, stdin: bytes | None = None) -> Answer:
    """Runs curl; with several URLs the facts are those of the last one."""
    command = [
        "curl", "-q", "--silent", "--show-error", "--noproxy", "", "--max-time", str(timeout_s),
        "--write-out", WRITE_OUT, *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s + 10, env=without_proxies())
    stderr = done.stderr.decode()
    _, _, written = stderr.rpartition("FACTS")
    facts, headers = (json.loads(part) for part in written.split("HEADERS")) if written else ({}, {})
    return Answer(
        exit_code=done.returncode,
        status=int(facts.get("http_code", 0)),
        headers={name: values[-1] for name, values in headers.items()},
        body=done.stdout,
        connects=int(facts.get("num_connects", 0)),
        first_byte_s=float(facts.get("time_starttransfer", 0)),
        total_s=float(facts.get("time_total", 0)),
        stderr=stderr,
        http_version=str(facts.get("http_version", "")),
        connect_status=int(facts.get("http_connect", 0)),
    )


def without_proxies() -> dict[str, str]:
    """The environment for clients that shall ask nobody but the tunnel."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def run_mitmdump(confdir: Path, *arguments: Path | str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit status of a mitmdump with the addon that ends by itself, and what it says."""
    command = [str(Path(sys.executable).parent / "mitmdump"), "-s", str(ADDON), "--set", f"confdir={confdir}"]
    process = server().start([*command, *map(str, arguments)], cwd=ROOT, env=without_proxies() | (env or {}))
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    return process.wait(START_TIMEOUT_S), said


class Tunnel:
    """`mitmdump -s addons/kube_tunnel.py` on a free port of loopback, forked from a process that has imported it.

    Args:
        confdir: mitmproxy's, so that a test leaves nothing in the user's.
        kubeconfig: None for what the environment says.
        options: more of mitmdump's options.
        program: mitmdump or mitmweb.
    """

    installed = False

    def __init__(
        self,
        confdir: Path,
        *,
        kubeconfig: Path | str | None = None,
        options: Sequence[str] = (),
        program: str = "mitmdump",
        env: dict[str, str] | None = None,
    ) -> None:
        command = [
            str(Path(sys.executable).parent / program),
            "-s",
            str(ADDON),
            "--set",
            f"confdir={confdir}",
            *options,
        ]
        if not any(option in ("-p", "--listen-port") for option in options):
            command += ["-p", "0"]
        if not any("kube_dns_" in option or "kube_network_" in option for option in options):
            command += ["--set", "kube_dns_enabled=false"]  # its port is one for all tunnels of a machine
        if kubeconfig is not None:
            command += ["--set", f"kube_kubeconfig={kubeconfig}"]
        self.confdir = confdir
        self.lines: list[str] = []
        self._changed = threading.Condition()
        environ = {**without_proxies(), "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(confdir), **(env or {})}
        self.process: subprocess.Popen[str] | ForkedProcess
        if not self.installed and sys.platform.startswith("linux"):
            self.process = server().start(command, cwd=confdir, env=environ)
        else:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=confdir, env=environ
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.address = self.wait_for(r"listening at .*?((?:[\d.]+|\*|\[[\da-f:]+\]):\d+)", START_TIMEOUT_S)[1]
        except BaseException:
            self.close()
            raise
        self.port = int(self.address.rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """The first match of `pattern` in what it has logged, or will within the time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (match := re.search(pattern, self.log)):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"{pattern!r} did not come (exit status {self.process.poll()}):\n{self.log}")
                self._changed.wait(min(left_s, 0.2))
            return match

    def get(self, host: str, path: str = "/hostname", *arguments: str, timeout_s: float = 60) -> Answer:
        """Asks the port itself, with the name in the Host header."""
        return curl("-H", f"Host: {host}", *arguments, self.url + path, timeout_s=timeout_s)

    def via_proxy(self, url: str, *arguments: str, timeout_s: float = 60) -> Answer:
        """Asks as a client that has the port configured as its HTTP proxy."""
        return curl("-x", self.url, *arguments, url, timeout_s=timeout_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InstalledTunnel(Tunnel):
    """The command itself, as it is installed."""

    installed = True
