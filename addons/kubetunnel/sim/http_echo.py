"""The HTTP program of a simulated pod: the same paths and answers as the real demo's echo.go, ports 8080 and 8443.

What differs: a WebSocket may be compressed where the client offers it, an answer's headers come in lower case and its
status without a reason, and paths with `//` or `..` are not redirected.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kubetunnel.sim.tcp_echo import PATTERN_BYTES, pattern

MAX_ECHOED_BODY_BYTES = 16 << 20
MAX_SHOWN_BODY_BYTES = 4096
BULK_BYTES = PATTERN_BYTES * 4
TEXT = "text/plain; charset=utf-8"  # what net/http's sniffing says of the short answers
UNITS = {"k": 10, "m": 20, "g": 30}  # powers of two, as in `n=100m`
WEBSOCKET_SUBPROTOCOL = "echo.v1"

type Scope = dict[str, Any]
type Receive = Callable[[], Awaitable[dict[str, Any]]]
type Send = Callable[[dict[str, Any]], Awaitable[None]]


class ClientGoneError(OSError):
    """The client closed while its answer was still under way."""


class HttpEcho:
    """The ASGI application of one pod.

    Args:
        pod_name: the pod's hostname, in every answer's X-Pod.
        version: APP_VERSION.
        on_exit: called with the exit code when a client asks for /exit.
        open_connections: how many connections the pod's HTTP ports have, for /stats.
    """

    def __init__(
        self, pod_name: str, version: str, on_exit: Callable[[int], None], open_connections: Callable[[], int]
    ) -> None:
        self.pod_name = pod_name
        self._version = version
        self._on_exit = on_exit
        self._open_connections = open_connections
        self._requests = 0
        self._paths: Mapping[str, Callable[[Exchange], Awaitable[None]]] = {
            "/healthz": lambda exchange: exchange.answer(b"ok\n"),
            "/hostname": lambda exchange: exchange.answer(f"{pod_name}\n".encode()),
            "/stats": self._stats, "/bytes": _bytes, "/upload": self._upload, "/delay": self._delay,
            "/status": self._status, "/stream": self._stream, "/sse": self._sse, "/abort": _abort,
            "/exit": self._exit, "/ws": _no_websocket,
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        try:
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                exchange = Exchange(scope, receive, send, self.pod_name)
                await self._paths.get(exchange.path, self._echo)(exchange)
        except OSError:
            return  # the client is gone, and there is nobody left to tell

    async def _echo(self, exchange: Exchange) -> None:
        body = await exchange.read(MAX_ECHOED_BODY_BYTES)
        await exchange.answer(self._describe(exchange.scope, body), "application/json")

    def _describe(self, scope: Scope, body: bytes) -> bytes:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            canonical = "-".join(part.capitalize() for part in name.decode("latin-1").split("-"))
            headers.setdefault(canonical, []).append(value.decode("utf-8", "replace"))
        document = {
            "pod": self.pod_name, "method": scope.get("method", "GET"), "path": scope["path"],
            "query": scope["query_string"].decode("latin-1"),
            "proto": "HTTP/2.0" if scope["http_version"] == "2" else f"HTTP/{scope['http_version']}",
            "host": "".join(headers.pop("Host", [])[:1]), "headers": headers,
            "remote": "{}:{}".format(*scope["client"]),
            "tls": scope["scheme"] in ("https", "wss"), "body_bytes": len(body),
            "body_sha256": hashlib.sha256(body).hexdigest(), "version": self._version,
        }  # fmt: skip
        if len(body) <= MAX_SHOWN_BODY_BYTES:
            document["body"] = body.decode("utf-8", "replace")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    async def _stats(self, exchange: Exchange) -> None:
        pod, connections = json.dumps(self.pod_name), self._open_connections()
        await exchange.answer(f'{{"pod":{pod},"requests":{self._requests},"open_conns":{connections}}}\n'.encode())

    async def _upload(self, exchange: Exchange) -> None:
        digest, total, started, error = hashlib.sha256(), 0, time.monotonic(), ""
        try:
            while data := await exchange.read_part():
                digest.update(data)
                total += len(data)
        except ClientGoneError:
            error = "unexpected EOF"
        milliseconds = int((time.monotonic() - started) * 1000)
        facts = {"pod": self.pod_name, "bytes": total, "sha256": digest.hexdigest(), "ms": milliseconds, "error": error}
        await exchange.answer(json.dumps(facts, separators=(",", ":")).encode() + b"\n", "application/json")

    async def _delay(self, exchange: Exchange) -> None:
        body = await exchange.read(MAX_ECHOED_BODY_BYTES)
        await exchange.sleep(exchange.number("ms", 0) / 1000)
        await exchange.answer(self._describe(exchange.scope, body), "application/json")

    async def _status(self, exchange: Exchange) -> None:
        await exchange.answer(f"{self.pod_name}\n".encode(), status=exchange.number("code", 200))

    async def _stream(self, exchange: Exchange) -> None:
        await self._drip(exchange, "text/plain", "{} {}\n")

    async def _sse(self, exchange: Exchange) -> None:
        await self._drip(exchange, "text/event-stream", "id: {}\ndata: {}\n\n")

    async def _drip(self, exchange: Exchange, content_type: str, line: str) -> None:
        await exchange.start(200, content_type)
        for i in range(exchange.number("n", 10)):
            await exchange.write(line.format(i, self.pod_name).encode())
            await exchange.sleep(exchange.number("ms", 100) / 1000)
        await exchange.finish()

    async def _exit(self, exchange: Exchange) -> None:
        self._on_exit(exchange.number("code", 1))
        await exchange.sleep(float("inf"))  # nothing more comes from a process that is gone

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        headers = [(b"x-pod", self.pod_name.encode())]
        if scope["path"] != "/ws":
            start = {"type": "websocket.http.response.start", "status": 200}
            await send(start | {"headers": [*headers, (b"content-type", b"application/json")]})
            await send({"type": "websocket.http.response.body", "body": self._describe(scope, b"")})
            return
        offered = WEBSOCKET_SUBPROTOCOL in scope["subprotocols"]
        accept = {"type": "websocket.accept", "subprotocol": WEBSOCKET_SUBPROTOCOL if offered else None}
        await send(accept | {"headers": headers})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"], "text": message["text"]})


class Exchange:
    """One request and its answer. Every method raises ClientGoneError when the client is."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, pod_name: str) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self._receive = receive
        self._send = send
        self._pod_name = pod_name
        self._query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self._body_ended = False

    def number(self, name: str, default: int) -> int:
        """A query parameter as echo.go reads it: the first of several, with k, m or g; the default where it is none."""
        text = self._query.get(name, [""])[0]
        shift = UNITS.get(text[-1:], 0)
        try:
            return int(text[:-1] if shift else text) << shift
        except ValueError:
            return default

    async def read_part(self) -> bytes:
        """The next bytes of the request's body, b"" at its end."""
        while not self._body_ended:
            message = await self._next()
            self._body_ended = not message["more_body"]
            if message["body"]:
                return bytes(message["body"])
        return b""

    async def read(self, limit_bytes: int) -> bytes:
        """The request's body, the first `limit_bytes` of it."""
        body = bytearray()
        while len(body) < limit_bytes and (data := await self.read_part()):
            body += data
        return bytes(body[:limit_bytes])

    async def sleep(self, delay_s: float) -> None:
        """Wait, but not for a client that goes."""
        try:
            async with asyncio.timeout(None if delay_s == float("inf") else delay_s):
                while True:
                    await self._next()  # the rest of a body that nobody wanted, then the client's going
        except TimeoutError:
            return

    async def start(self, status: int, content_type: str, length: int | None = None) -> None:
        """The answer's head."""
        headers = [(b"x-pod", self._pod_name.encode()), (b"content-type", content_type.encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """A part of the answer's body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """The answer's end."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, body: bytes, content_type: str = TEXT, status: int = 200) -> None:
        """A whole answer."""
        bodyless = status < 200 or status in (204, 304)
        await self.start(status, content_type, None if bodyless else len(body))
        await self._send({"type": "http.response.body", "body": b"" if bodyless else body, "more_body": False})

    async def _next(self) -> dict[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        return message


async def _bytes(exchange: Exchange) -> None:
    count, rate = exchange.number("n", 1024), exchange.number("rate", 0)
    chunked = exchange.number("chunked", 0) != 0
    await exchange.start(200, "application/octet-stream", None if chunked else count)
    piece_bytes = PATTERN_BYTES if rate else BULK_BYTES
    piece, started, sent = pattern(piece_bytes), time.monotonic(), 0
    while sent < count:
        data = piece if count - sent >= piece_bytes else piece[: count - sent]
        await exchange.write(data)
        sent += len(data)
        if rate and (ahead_s := sent / rate - (time.monotonic() - started)) > 0:
            await exchange.sleep(ahead_s)
    await exchange.finish()


async def _abort(exchange: Exchange) -> None:
    await exchange.start(200, "application/octet-stream", 1_000_000)
    await exchange.write(bytes(1000))  # and no end: the server hangs up


async def _no_websocket(exchange: Exchange) -> None:
    await exchange.answer(b"Bad Request\n", status=400)
