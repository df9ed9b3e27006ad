"""HTTP/1.1 for the simulated API server (RFC 9112), on connections that can be taken over.

A port-forward's upgrade needs the raw byte stream right after the request's head, so a head is read up to its empty
line and not a byte further; h11 parses it and frames the answers.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import h11
import msgspec

from kubetunnel.sim.pods import Json

IDLE_TIMEOUT_S = 300.0
BODY_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"

type Headers = Sequence[tuple[str, str]]


class ProtocolError(Exception):
    """The client sent what is no HTTP/1.1 request that this server takes; `code` is the answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are lower-case, repeated headers joined with ", " (RFC 9110 5.3)."""

    method: str
    path: str  # decoded
    query: Mapping[str, str]  # the first value of each parameter
    headers: Mapping[str, str]
    body: bytes
    query_lists: Mapping[str, Sequence[str]]  # every value


class Connection:
    """One client connection, after TLS. One request at a time; `lost` is done when the peer is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.lost = asyncio.ensure_future(_ended(writer))
        self._h11 = h11.Connection(h11.SERVER)
        self._method = ""

    async def read_request(self) -> Request | None:
        """The next request; None when the client is done. Raises ProtocolError."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        if self._h11.our_state is not h11.IDLE:
            return None
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, TimeoutError):
            return None
        except asyncio.LimitOverrunError as e:
            raise ProtocolError(431, "the request's head is too large") from e
        try:
            self._h11.receive_data(head)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as e:
            raise ProtocolError(e.error_status_hint, str(e)) from e
        if not isinstance(event, h11.Request):
            raise ProtocolError(400, "no request")
        return await self._with_body(event)

    async def _with_body(self, event: h11.Request) -> Request:
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if "transfer-encoding" in headers:
            raise ProtocolError(411, "a request needs a Content-Length")
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY_BYTES:
            raise ProtocolError(413, "the request's body is too large")
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, TimeoutError) as e:
            raise ProtocolError(400, "the request's body is incomplete") from e
        if body:
            self._h11.receive_data(body)
        while isinstance(self._h11.next_event(), h11.Data):
            pass
        path, _, query = event.target.decode("latin-1").partition("?")
        lists = urllib.parse.parse_qs(query, keep_blank_values=True)
        first = {name: values[0] for name, values in lists.items()}
        self._method = event.method.decode()
        return Request(self._method, urllib.parse.unquote(path), first, headers, body, lists)

    async def respond(self, code: int, body: bytes, content_type: str = JSON_TYPE, headers: Headers = ()) -> None:
        """A whole answer."""
        events: list[h11.Event] = [self._head(code, content_type, [*headers, ("Content-Length", str(len(body)))])]
        if self._method != "HEAD":
            events.append(h11.Data(data=body))
        await self._send(*events, h11.EndOfMessage())

    async def respond_json(self, code: int, document: Json, headers: Headers = ()) -> None:
        await self.respond(code, msgspec.json.encode(document) + b"\n", headers=headers)

    async def start_chunked(self, content_type: str = JSON_TYPE) -> None:
        """The head of an answer without an end in sight; `send` and `finish` follow."""
        await self._send(self._head(200, content_type, [("Transfer-Encoding", "chunked")]))

    async def send(self, data: bytes) -> None:
        """A part of the answer's body: one chunk."""
        await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        """The end of the answer."""
        await self._send(h11.EndOfMessage())

    async def aclose(self) -> None:
        """Close in good order, or cut it where the peer does not close too; returns when the connection is gone."""
        self.writer.close()
        _, waiting = await asyncio.wait([self.lost], timeout=CLOSE_TIMEOUT_S)
        if waiting:
            self.abort()
            await asyncio.wait([self.lost], timeout=CLOSE_TIMEOUT_S)

    def peer_certificate(self) -> Json | None:
        """The client's verified certificate as ssl.getpeercert() gives it; None where it showed none."""
        certificate: Json | None = self.writer.get_extra_info("peercert")
        return certificate or None

    def abort(self) -> None:
        """Cut the connection: the peer sees no orderly end."""
        self.writer.transport.abort()

    def _head(self, code: int, content_type: str, headers: Headers) -> h11.Response:
        fields = [("Cache-Control", "no-cache, private"), ("Content-Type", content_type), *headers]
        return h11.Response(status_code=code, headers=fields)

    async def _send(self, *events: h11.Event) -> None:
        self.writer.write(b"".join(self._h11.send(event) or b"" for event in events))
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await self.writer.drain()


async def _ended(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except OSError:
        return  # how the connection ended makes no difference to the server
