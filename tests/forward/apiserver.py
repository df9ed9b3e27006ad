"""A scripted API server for port-forwards: TLS on loopback, all three protocols, and every habit and fault on demand.

It stands for the API server, the kubelet and the runtime at once. Its pods' ports are behaviours: see `_Session`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import Callable
from typing import Any

from multidict import CIMultiDict
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side, State

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.reach import Reach
from kubetunnel.cluster.suspicion import Suspicion
from kubetunnel.core.errors import Unauthenticated
from kubetunnel.forward.spdy import DataReceived, SpdyConnection, StreamOpened, StreamReset
from kubetunnel.sim.certs import CertificateAuthority

TUNNEL, V4, SPDY = "SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io", "SPDY/3.1"
ALL = frozenset({TUNNEL, V4, SPDY})
ECHO, GREETS, RESETS, FLOODS, DEAF, COUNTED, GONE, REFUSED, HALF = 7, 9001, 9002, 9004, 9007, 9010, 9011, 9999, 9012
COUNTED_BYTES = 3 * 1024 * 1024 + 17
DEAF_BYTES = 256 * 1024  # then nothing of the connection is read any more, as spdystream's frame workers do it
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXTS = {
    REFUSED: "error forwarding port 9999: failed to connect to localhost:9999, IPv4: dial tcp4: connection refused",
    RESETS: 'error forwarding port 9002, in network namespace "/var/run/netns/x": read: connection reset by peer',
    GONE: "error forwarding port 9011: sandbox f38c is not running",
}


def rbac_status(verb: str) -> bytes:
    message = f'pods "web" is forbidden: User "limited" cannot {verb} resource "pods/portforward" in API group ""'
    return json.dumps({"kind": "Status", "status": "Failure", "reason": "Forbidden", "message": message}).encode()


class ApiServer:
    """Start it with `async with`. What it does is set by its attributes, also while it runs."""

    def __init__(self) -> None:
        self.speaks: frozenset[str] = ALL
        self.answers: list[tuple[int, bytes]] = []  # refusals to give first, one a request
        self.retry_after: str | None = None  # of the refusals
        self.always: dict[str, tuple[int, bytes]] = {}  # refusal by method
        self.fault = ""  # "hang", "hangup", "garbage": instead of an answer
        self.hold_replies = False
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections = 0
        self.sessions: list[_Session] = []
        self.idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> ApiServer:
        authority = CertificateAuthority("forward-tests")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.server("127.0.0.1", ("127.0.0.1",)).load_into(context)
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=0.5
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.ca = authority.certificate_pem
        self.client_context = ssl.create_default_context(cadata=authority.certificate_pem)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()
        await self._server.wait_closed()

    def stop_listening(self) -> None:
        self._server.close()

    def cut(self) -> None:
        """Every connection ends with a reset."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            method, target, _ = first.split(" ")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
            self.requests.append((method, target, headers))
            if self.fault:
                await self._misbehave(writer)
                return
            if self.answers or method in self.always:
                self._refuse(writer, *(self.answers.pop(0) if self.answers else self.always[method]))
                continue
            offered = headers.get("sec-websocket-protocol", "").replace(",", " ").split()
            taken = next((name for name in (TUNNEL, V4) if name in offered and name in self.speaks), None)
            if method == "POST" and SPDY in self.speaks and headers.get("upgrade") == SPDY:
                self._switch(writer, f"Upgrade: {SPDY}")
                await self._run(reader, writer, None)
                return
            if taken is None:
                self._refuse(writer, 403, b"")
                continue
            accept = base64.b64encode(
                hashlib.sha1(  # noqa: S324  (RFC 6455)
                    headers["sec-websocket-key"].encode() + GUID
                ).digest()
            ).decode()
            lines = ["Upgrade: websocket", f"Sec-WebSocket-Accept: {accept}", f"Sec-WebSocket-Protocol: {taken}"]
            self._switch(writer, *lines)
            port = int(target.partition("?ports=")[2]) if taken == V4 else 0
            await self._run(reader, writer, Protocol(Side.SERVER, state=State.OPEN, max_size=None), port)
            return

    async def _misbehave(self, writer: asyncio.StreamWriter) -> None:
        if self.fault == "garbage":
            writer.write(b"NONSENSE\r\n\r\n" * 10)
            await writer.drain()
        elif self.fault == "hang":
            await asyncio.Event().wait()

    def _refuse(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        wait = f"Retry-After: {self.retry_after}\r\n" if self.retry_after is not None else ""
        writer.write(f"HTTP/1.1 {status} x\r\n{wait}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    @staticmethod
    def _switch(writer: asyncio.StreamWriter, *lines: str) -> None:
        head = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", *lines, "", ""]
        writer.write("\r\n".join(head).encode())

    async def _run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: Protocol | None, port: int = 0
    ) -> None:
        session: _Session = _V4Session(self, writer, frames, port) if frames and port else SpdySession(
            self, writer, frames
        )  # fmt: skip
        self.sessions.append(session)
        try:
            await session.run(reader)
        finally:
            self.sessions.remove(session)
            session.stop()


class _Session:
    """One upgraded connection: streams by number, and what each port does with them."""

    def __init__(self, api: ApiServer, writer: asyncio.StreamWriter, frames: Protocol | None) -> None:
        self.api = api
        self.writer = writer
        self.frames = frames
        self.ports: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.fins: set[int] = set()
        self.floods: dict[int, asyncio.Task[None]] = {}
        self.silent = False
        self.released = asyncio.Event()  # cleared: what is sent, and what is read, waits
        self.released.set()
        self.deaf = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader) -> None:
        self.begin()
        while data := await reader.read(65536):
            if self.silent:
                continue
            if self.frames is None:
                self.receive(data)
            else:
                self.frames.receive_data(data)
                for event in self.frames.events_received():
                    if getattr(event, "opcode", None) in (Opcode.BINARY, Opcode.CONT):
                        self.receive(bytes(event.data))  # type: ignore[union-attr]
            await self.flush()
            if self.deaf.is_set():
                await asyncio.Event().wait()

    def stop(self) -> None:
        for task in self.floods.values():
            task.cancel()

    async def flush(self) -> None:
        await self.released.wait()
        data = self.output()
        if self.frames is not None and self.frames.state is State.OPEN:
            for start in range(0, len(data), 30_000):  # message bounds mean nothing
                self.frames.send_binary(data[start : start + 30_000])
            data = b"".join(self.frames.data_to_send())
        if data and not self.silent:
            self.writer.write(data)
            await self.writer.drain()

    def opened(self, number: int, port: int) -> None:
        self.ports[number] = port
        self.received[number] = 0
        if port == GREETS:
            self.send(number, b"220 ready\r\n")
        elif port == HALF:
            self.send(number, b"half", fin=True)
        elif port == COUNTED:
            self.send(number, bytes(COUNTED_BYTES))
            self.end(number)
        elif port == FLOODS:
            self.floods[number] = asyncio.get_running_loop().create_task(self._flood(number))
        elif port in (REFUSED, GONE):
            self.end(number, TEXTS[port])

    def data(self, number: int, data: bytes) -> None:
        port = self.ports[number]
        self.received[number] += len(data)
        if port in (ECHO, HALF) and data:
            self.send(number, data)
        elif port == RESETS and data:
            self.end(number, TEXTS[RESETS])
        elif port == DEAF and self.received[number] > DEAF_BYTES:
            self.deaf.set()

    def fin(self, number: int) -> None:
        """The runtimes never pass a half-close on: they end the connection (a second later; here at once)."""
        self.fins.add(number)
        flood = self.floods.get(number)
        if flood is None:
            self.end(number)

    async def _flood(self, number: int) -> None:
        try:
            while True:
                self.send(number, bytes(32 * 1024))
                await self.flush()
                await asyncio.sleep(0)
        except (OSError, ValueError):
            return

    # of the protocol
    def begin(self) -> None:
        pass

    def output(self) -> bytes:
        raise NotImplementedError

    def receive(self, data: bytes) -> None:
        raise NotImplementedError

    def send(self, number: int, data: bytes, *, fin: bool = False) -> None:
        raise NotImplementedError

    def end(self, number: int, text: str = "") -> None:
        raise NotImplementedError


class SpdySession(_Session):
    def __init__(self, api: ApiServer, writer: asyncio.StreamWriter, frames: Protocol | None) -> None:
        super().__init__(api, writer, frames)
        self.spdy = SpdyConnection(client=False)
        self.error_of: dict[str, int] = {}
        self.request_of: dict[int, str] = {}

    def output(self) -> bytes:
        return self.spdy.data_to_send()

    def receive(self, data: bytes) -> None:
        for event in self.spdy.receive_data(data):
            match event:
                case StreamOpened(number, headers):
                    fields = dict(headers)
                    if not self.api.hold_replies and self.spdy.can_send(number):  # or reset in the same read
                        self.spdy.reply(number)
                    if fields["streamtype"] == "error":
                        self.error_of[fields["requestid"]] = number
                    else:
                        self.request_of[number] = fields["requestid"]
                        self.opened(number, int(fields["port"]))
                case DataReceived(number, chunk, fin) if number in self.request_of:
                    self.data(number, chunk)
                    if fin:
                        self.fin(number)
                case StreamReset(number, _) if number in self.floods:
                    self.floods[number].cancel()

    def send(self, number: int, data: bytes, *, fin: bool = False) -> None:
        if self.spdy.can_send(number):
            self.spdy.send_data(number, data, fin=fin)

    def end(self, number: int, text: str = "") -> None:
        """As containerd 1.6: the data stream ends first, the text comes after it."""
        error = self.error_of[self.request_of[number]]
        self.send(number, b"", fin=True)
        self.send(error, text.encode(), fin=True)


class _V4Session(_Session):
    def __init__(self, api: ApiServer, writer: asyncio.StreamWriter, frames: Protocol | None, port: int) -> None:
        super().__init__(api, writer, frames)
        self.port = port

    def begin(self) -> None:
        number = self.port.to_bytes(2, "little")
        self._message(b"\0" + number)
        self._message(b"\1" + number)
        self.opened(0, self.port)

    def output(self) -> bytes:
        return b""

    def receive(self, data: bytes) -> None:
        assert data[0] == 0
        self.data(0, data[1:])

    def send(self, number: int, data: bytes, *, fin: bool = False) -> None:
        for start in range(0, len(data), 32 * 1024):
            self._message(b"\0" + data[start : start + 32 * 1024])

    def end(self, number: int, text: str = "") -> None:
        if text:
            self._message(b"\1" + text.encode())
        assert self.frames is not None
        if self.frames.state is State.OPEN:
            self.frames.send_close(1000)
        self.writer.write(b"".join(self.frames.data_to_send()))

    def _message(self, data: bytes) -> None:
        assert self.frames is not None
        if self.frames.state is State.OPEN:
            self.frames.send_binary(data)
        self.writer.write(b"".join(self.frames.data_to_send()))


class Access(ClusterAccess):
    """The access to an ApiServer, with no kubeconfig behind it."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.suspicion = Suspicion()
        self.reach = Reach()
        self.token = "old"
        self.renewals = 0
        self.renewable = True

    @property
    def obtaining(self) -> asyncio.Future[None] | None:
        return None

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.api.port}/prefix"

    @property
    def path_prefix(self) -> str:
        return "/prefix"

    def kubectl(self, *arguments: str) -> str:
        return " ".join(("kubectl", *arguments))

    async def headers(self) -> CIMultiDict[str]:
        return CIMultiDict({"Authorization": f"Bearer {self.token}"})

    async def renew(self, refused: str) -> None:
        self.renewals += 1
        if not self.renewable:
            raise Unauthenticated("nothing newer")
        self.token = "new"

    async def connect(
        self, protocol_factory: Callable[[], Any], *, bulk: bool = False
    ) -> tuple[asyncio.Transport, Any]:
        loop = asyncio.get_running_loop()
        context = self.api.client_context
        return await loop.create_connection(
            protocol_factory, "127.0.0.1", self.api.port, ssl=context, ssl_shutdown_timeout=0.5
        )
