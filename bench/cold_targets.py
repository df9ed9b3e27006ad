"""`python -m bench.cold_targets`: what 20 Services that nobody used before cost at once, as a multiple of one's cost.

On the simulated cluster, in a process of its own and behind a relay that delays (`delay_relay`). Each time a new
session asks: kubeconfig, look-up, port-forward, and the first byte of an answer. The goal is 1.5 times at a round trip
of 50 ms; with a long one (`--rtt 400`) what waits for something else shows, and the load of the machine does not.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.delay_relay import delayed
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, Settings
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.demo import ECHO
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import PodTemplate

TARGETS = 20
ROUNDS = 7
HTTP = PortRequest(80, explicit=True, scheme="")
NAMESPACE = "cold"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt", type=float, default=50, help="round trip in milliseconds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cluster", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster:
        asyncio.run(_serve(options.cluster, options.rtt / 2000))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kubeconfig")
        command = [sys.executable, "-m", "bench.cold_targets", "--cluster", str(path), "--rtt", str(options.rtt)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:  # noqa: S603
            assert cluster.stdout is not None  # noqa: S101 - it was asked for
            cluster.stdout.readline()
            try:
                asyncio.run(_compare(path, options.rtt, options.rounds))
            finally:
                cluster.terminate()


async def _serve(path: Path, delay_s: float) -> None:
    async with SimCluster() as cluster, delayed("127.0.0.1", cluster.port, delay_s) as port:
        await cluster.add_namespace(NAMESPACE)
        for number in range(TARGETS):
            labels = {"app": f"web-{number}"}
            await cluster.add_pod(NAMESPACE, f"web-{number}", PodTemplate(labels, ECHO.containers))
            await cluster.add_service(ServiceSpec(NAMESPACE, f"web-{number}", (Port(80, "", 8080),), labels))
        cluster.kubeconfig(path)
        _lead_through(path, cluster.port, port)
        print("ready", flush=True)
        await asyncio.Event().wait()


def _lead_through(kubeconfig: Path, port: int, relay_port: int) -> None:
    kubeconfig.write_text(kubeconfig.read_text().replace(f":{port}", f":{relay_port}"))


async def _compare(path: Path, rtt_ms: float, rounds: int) -> None:
    await _cold(path, TARGETS)  # imports and the like
    took: dict[int, list[float]] = {1: [], TARGETS: []}
    for _ in range(rounds):
        for count, times in took.items():
            times.append(await _cold(path, count))
    for name, of in (("median", statistics.median), ("best", min)):
        one_s, many_s = (of(times) for times in took.values())
        print(
            f"cold targets at {rtt_ms:g} ms RTT, {name} of {rounds}: one {one_s * 1000:.0f} ms, {TARGETS} at once "
            f"{many_s * 1000:.0f} ms, {many_s / one_s:.2f} times (goal: at most 1.5)"
        )


async def _cold(path: Path, count: int) -> float:
    """Seconds until the last of so many Services has answered."""
    settings = Settings(cluster=ClusterSettings(kubeconfig=str(path)))
    clusters = Clusters(settings)
    router = Router(settings, clusters)

    async def get(number: int) -> None:
        destination = await router.find(await router.parse(f"web-{number}.{NAMESPACE}"), HTTP)
        upstream = await router.open(destination)
        upstream.writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
        await upstream.reader.readexactly(1)
        upstream.writer.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(get(number))
    took = time.perf_counter() - started
    await clusters.aclose()
    return took


if __name__ == "__main__":
    main()
