"""`python -m bench.dns`: answers a second for names in use, asked by dnsperf; the server in a process of its own.

The Services are made up: what is measured is the server, not the API server behind it. dnsperf is a package of Debian.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from ipaddress import IPv4Address, IPv4Network
from multiprocessing.connection import Connection
from pathlib import Path

from bench.processes import MIB, cpu_s, resident_bytes
from kubetunnel.core.catalog import Endpoint, Service, ServicePort, ServiceState
from kubetunnel.core.names import PodAddressName, ServiceName
from netsetup.answers import Addressed
from netsetup.dns_records import Address
from netsetup.dns_server import DnsServer

ZONE = "cluster.local"
RANGE = IPv4Network("10.8.0.0/16")


class MadeUpNames:
    """Services that are all there."""

    zones = (ZONE,)

    def __init__(self) -> None:
        self._addresses: dict[str, IPv4Address] = {}

    async def service(self, name: ServiceName) -> ServiceState:
        return ServiceState(Service(name.namespace, name.service, (ServicePort(80, "http"),), cluster_ip="10.96.0.1"))

    async def pod(self, name: PodAddressName) -> Endpoint:
        return Endpoint(str(name.address))

    async def address_of(self, name: Addressed, state: ServiceState | None) -> Address:
        return self._addresses.setdefault(str(name), RANGE[len(self._addresses) + 256])

    def name_of(self, address: Address) -> str | None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--names", type=int, default=100, help="Services in use")
    parser.add_argument("--uncached", action="store_true", help="every question another one: none is at hand")
    arguments = parser.parse_args()
    dnsperf = shutil.which("dnsperf")
    if dnsperf is None:
        sys.exit("There is no dnsperf here: apt-get install dnsperf")
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    try:
        with tempfile.TemporaryDirectory(prefix="kube-tunnel-bench-") as directory:
            questions = Path(directory, "questions")
            questions.write_text("".join(f"{line}\n" for line in lines(arguments.names, arguments.uncached)))
            report(dnsperf, port, server.pid or 0, questions, arguments.seconds)
    finally:
        server.terminate()
        server.join()


def lines(names: int, uncached: bool) -> list[str]:
    """dnsperf's input; the case of a name tells questions apart (0x20), not names."""
    if not uncached:
        return [f"api-{number}.shop.svc.{ZONE} {type_}" for number in range(names) for type_ in ("A", "AAAA")]
    host = "aservicewithalongname"
    mixed = []
    for number in range(1 << 18):
        letters = [letter.upper() if number >> bit & 1 else letter for bit, letter in enumerate(host)]
        mixed.append(f"{''.join(letters)}-{number % names}.shop.svc.{ZONE} A")
    return mixed


def report(dnsperf: str, port: int, pid: int, questions: Path, seconds: int) -> None:
    command = [
        dnsperf, "-s", "127.0.0.1", "-p", str(port), "-d", str(questions), "-l", str(seconds),
        "-c", "4", "-q", "50", "-e",
    ]  # fmt: skip
    before_s = cpu_s(pid)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)  # noqa: S603 - ours
    used_s = cpu_s(pid) - before_s
    facts = {
        name: float(value) for name, value in re.findall(r"^ *([A-Z][\w ()]+): +([\d.]+)", done.stdout, re.MULTILINE)
    }
    completed = facts["Queries completed"]
    print(f"DNS answers over UDP, {questions.stat().st_size // 1024} KiB of questions, {seconds} s:")
    print(f"  rate: {facts['Queries per second']:.0f} answers/s, {facts['Queries lost']:.0f} lost")
    cost = f"{used_s / completed * 1e6:.0f} us an answer, {completed / used_s:.0f} answers a CPU second"
    print(f"  the server's CPU: {cost}")
    print(f"  latency: {facts['Average Latency (s)'] * 1e3:.2f} ms on average")
    print(f"  memory: {resident_bytes(pid) / MIB:.0f} MiB")


def serve(started: Connection) -> None:
    """In the server's process."""

    async def until_terminated() -> None:
        server = DnsServer(MadeUpNames(), host="127.0.0.1", port=0, ranges=(RANGE,))
        await server.start()
        started.send(server.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(until_terminated())


if __name__ == "__main__":
    main()
