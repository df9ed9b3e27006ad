"""Clients for the data side of the simulated cluster: subprocesses, and a SPDY client that can misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from kubetunnel.forward.spdy import (
    DataReceived,
    GoAwayReceived,
    PingAcknowledged,
    SpdyConnection,
    StreamReplied,
    StreamReset,
)
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.portforward import TUNNEL

TIMEOUT_S = 10.0
SPDY_HEADERS = {
    "Connection": "Upgrade",
    "Upgrade": "SPDY/3.1",
    "X-Stream-Protocol-Version": "portforward.k8s.io",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended."""

    code: int
    out: bytes
    err: str


async def run(*command: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> Result:
    """Run a program to its end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin)
    return Result(process.returncode or 0, out, err.decode())


async def curl(*arguments: str, stdin: bytes | None = None) -> Result:
    """Run curl, quietly but for errors."""
    return await run("curl", "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", *arguments, stdin=stdin)


def trust(cluster: SimCluster) -> ssl.SSLContext:
    """A client's TLS settings for the cluster's API server."""
    return ssl.create_default_context(cadata=cluster.certificate_authority_pem)


def port_forward_path(pod: str) -> str:
    """The API path of a pod ("namespace/name")."""
    namespace, name = pod.split("/")
    return f"/api/v1/namespaces/{namespace}/pods/{name}/portforward"


@asynccontextmanager
async def upgraded(
    cluster: SimCluster, pod: str, headers: dict[str, str], *, method: str = "POST", query: str = ""
) -> AsyncIterator[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Ask for an upgrade: the answer's head, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port, ssl=trust(cluster))
    lines = [
        f"{method} {port_forward_path(pod)}{query} HTTP/1.1",
        "Host: sim",
        f"Authorization: Bearer {cluster.token()}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        yield head, reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def web_socket(
    cluster: SimCluster, pod: str, *subprotocols: str, query: str = ""
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A port-forward in WebSocket. By aiohttp: websockets takes no subprotocol with a slash."""
    url = f"wss://127.0.0.1:{cluster.port}{port_forward_path(pod)}{query}"
    headers = {"Authorization": f"Bearer {cluster.token()}"}
    connector = aiohttp.TCPConnector(ssl=trust(cluster), force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, trust_env=False) as session,
        session.ws_connect(url, protocols=subprotocols, headers=headers, max_msg_size=0) as socket,
    ):
        yield socket


class SpdyClient:
    """One upgraded connection, by our codec. What came is in the attributes, by stream id."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
        self.spdy = SpdyConnection(client=True)
        self.replied: set[int] = set()
        self.data: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.pongs: set[int] = set()
        self.gone_away = False
        self.closed = False
        self._read = read
        self._write = write
        self._requests = 0

    async def open(self, port: int, data: bytes = b"") -> tuple[int, int]:
        """Open a pair of streams, optimistically; the ids of the error and the data stream."""
        self._requests += 1
        headers = [("port", str(port)), ("requestid", str(self._requests))]
        error = self.spdy.open_stream([("streamtype", "error"), *headers])
        self.spdy.send_data(error, b"", fin=True)
        stream = self.spdy.open_stream([("streamtype", "data"), *headers])
        await self.send(stream, data)
        return error, stream

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        self.spdy.send_data(stream, data, fin=fin)
        await self.flush()

    async def ping(self, count: int = 1) -> set[int]:
        """Send pings; their ids."""
        ids = {self.spdy.ping() for _ in range(count)}
        await self.flush()
        return ids

    async def flush(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self._write(self.spdy.data_to_send())

    async def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Read until the condition holds. Raises TimeoutError; AssertionError where the connection ends before."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                assert not self.closed, "the connection has ended"
                await self._take()

    async def silent(self, for_s: float) -> bool:
        """Whether nothing at all comes for so long."""
        try:
            async with asyncio.timeout(for_s):
                return not await self._read()
        except TimeoutError:
            return True

    async def _take(self) -> None:
        data = await self._read()
        self.closed = not data
        for event in self.spdy.receive_data(data):
            if isinstance(event, StreamReplied):
                self.replied.add(event.stream_id)
            elif isinstance(event, DataReceived):
                self.data[event.stream_id] += event.data
                if event.fin:
                    self.ended.add(event.stream_id)
            elif isinstance(event, StreamReset):
                self.resets[event.stream_id] = event.status
            elif isinstance(event, PingAcknowledged):
                self.pongs.add(event.ping_id)
            elif isinstance(event, GoAwayReceived):
                self.gone_away = True


@asynccontextmanager
async def spdy(cluster: SimCluster, pod: str) -> AsyncIterator[SpdyClient]:
    """A port-forward in SPDY/3.1."""
    async with upgraded(cluster, pod, SPDY_HEADERS) as (head, reader, writer):
        assert b" 101 " in head, head

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        async def read() -> bytes:
            try:
                return await reader.read(1 << 16)
            except ConnectionError:
                return b""

        yield SpdyClient(read, write)


@asynccontextmanager
async def tunnel(cluster: SimCluster, pod: str) -> AsyncIterator[SpdyClient]:
    """A port-forward in SPDY/3.1, tunnelled in WebSocket."""
    async with web_socket(cluster, pod, TUNNEL) as socket:
        assert socket.protocol == TUNNEL

        async def read() -> bytes:
            message = await socket.receive()
            return bytes(message.data) if message.type is aiohttp.WSMsgType.BINARY else b""

        yield SpdyClient(read, socket.send_bytes)
