"""A program for a simulated pod that speaks HTTP/1.1 from scripts, and keeps what it was sent, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.listener import Serve, reset
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.simulated import simulated
from tests.tunnel import Tunnel

POD_PORT = 7000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Script:
    """What a path answers: `early` before the request's body is read, `answer` after it, and the connection's end."""

    answer: bytes = OK
    early: bytes = b""
    end: Literal["keep", "close", "reset"] = "keep"


class ScriptedPod:
    """`serve` is the program. `requests` are the heads and bodies as they came, over all connections.

    Args:
        scripts: by path, without the query; any other path answers `OK`.
    """

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.scripts = scripts
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            if not head.split(b"\r\n")[0].endswith(b" HTTP/1.1"):
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            script = self.scripts.get(head.split(b" ")[1].partition(b"?")[0].decode(), Script())
            if script.early:
                writer.write(script.early)
                await writer.drain()
            refuses = script.early.startswith(b"HTTP/1.1 4")
            self.requests.append(head if refuses else head + await _body(head, reader))
            if refuses:
                continue
            writer.write(script.answer)
            await writer.drain()
            if script.end == "reset":
                reset(writer)
            if script.end != "keep":
                return


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As it is on the wire, chunks and trailers too."""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"]))
    if b"transfer-encoding" not in fields:
        return b""
    body = b""
    size = 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line, 16)
        body += line + (await reader.readexactly(size + 2) if size else b"")
    while not body.endswith(b"\r\n\r\n"):
        body += await reader.readuntil(b"\r\n")
    return body


@contextlib.contextmanager
def tunnel_to(serve: Serve, service: str, directory: Path) -> Iterator[Tunnel]:
    """A tunnel to a cluster where `serve` answers at port 80 of `service` in Namespace `demo`.

    `kubeconfig` is in the directory, which is the tunnel's.
    """

    async def prepare(cluster: SimCluster) -> None:
        workload = cluster.pod("demo", "pair").workload
        assert workload is not None
        await workload.listen(POD_PORT, serve)
        await cluster.add_service(ServiceSpec("demo", service, (Port(80, "http", POD_PORT),), {"app": "pair"}))
        cluster.kubeconfig(directory / "kubeconfig")

    with simulated(prepare), Tunnel(directory, kubeconfig=directory / "kubeconfig") as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log
