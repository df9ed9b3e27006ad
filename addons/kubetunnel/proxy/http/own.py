"""Requests for the tunnel itself: answered in the layers, so that they are no flows and need no socket.

Which requests are the tunnel's own, and what they are answered, is decided elsewhere; here are an exchange's bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)

from kubetunnel.proxy.http.events import InformationalResponse

MAX_BODY_BYTES = 64 << 10  # of a request: an action and its arguments

type IsOwn = Callable[[Context, http.Request], bool]


@dataclass(eq=False)
class OwnExchange:
    """One request for the tunnel itself.

    Attributes:
        is_too_large: the request's body was, and is not here.
        response: to be set by who answers.
        chunk: the next piece of a body that goes on, to be set by who answers; None: it is over.
        goes_on: the response's body comes in chunks.
        has_left: the client has; congested: it takes no more for now. `on_change` is called when they turn.
    """

    client: Client
    request: http.Request
    is_too_large: bool = False
    response: http.Response | None = None
    goes_on: bool = False
    chunk: bytes | None = None
    has_left: bool = False
    is_congested: bool = False
    on_change: list[Callable[[], None]] = field(default_factory=list)

    def leave(self) -> None:
        """The client has left."""
        self.has_left = True
        self._changed()

    def congest(self, *, congested: bool) -> None:
        """The client takes no more for now, or goes on."""
        self.is_congested = congested
        self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()


@dataclass
class KubeOwnRequestHook(StartHook):
    """A request for the tunnel itself is whole: set its response."""

    exchange: OwnExchange


@dataclass
class KubeOwnChunkHook(StartHook):
    """Set the next chunk of a body that goes on."""

    exchange: OwnExchange


class OwnStream(layer.Layer):
    """In the place of a `KubeHttpStream`."""

    def __init__(self, context: Context, stream_id: int, request: http.Request) -> None:
        super().__init__(context)
        self._stream_id = stream_id
        self.exchange = OwnExchange(context.client, request)
        self._body = bytearray()
        self._is_over = False

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestProtocolError):
            self.exchange.leave()  # at once, also while a hook runs that waits for something to tell
        yield from super().handle_event(event)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._is_over:
            return
        if isinstance(event, RequestHeaders):
            if event.request.headers.get("expect", "").lower() == "100-continue":
                now = time.time()
                go_on = http.Response(b"HTTP/1.1", 100, b"Continue", http.Headers(), None, None, now, now)
                yield SendHttp(InformationalResponse(self._stream_id, go_on), self.context.client)
        elif isinstance(event, RequestData):
            self.exchange.is_too_large |= len(self._body) + len(event.data) > MAX_BODY_BYTES
            if not self.exchange.is_too_large:
                self._body += event.data
        elif isinstance(event, RequestEndOfMessage):
            self.exchange.request.content = b"" if self.exchange.is_too_large else bytes(self._body)
            yield from self._answer()
        elif isinstance(event, RequestProtocolError):
            yield from self._end()

    def _answer(self) -> layer.CommandGenerator[None]:
        exchange, client = self.exchange, self.context.client
        yield KubeOwnRequestHook(exchange)
        if exchange.response is None:
            exchange.response = http.Response.make(500, b"", {"Cache-Control": "no-store"})
        response = exchange.response
        body = response.raw_content or b""
        exchange.goes_on &= exchange.request.method != "HEAD"
        if exchange.goes_on and not exchange.request.is_http2:
            response.headers["Transfer-Encoding"] = "chunked"  # else its end would be the connection's
        if not exchange.has_left:
            is_whole = not body and not exchange.goes_on
            yield SendHttp(ResponseHeaders(self._stream_id, response, end_stream=is_whole), client)
            if body:
                yield SendHttp(ResponseData(self._stream_id, body), client)
        while exchange.goes_on and not exchange.has_left:
            yield KubeOwnChunkHook(exchange)
            if exchange.chunk is None:
                break
            yield SendHttp(ResponseData(self._stream_id, exchange.chunk), client)
        if not exchange.has_left:
            yield SendHttp(ResponseEndOfMessage(self._stream_id), client)
        yield from self._end()

    def _end(self) -> layer.CommandGenerator[None]:
        if not self._is_over:
            self._is_over = True
            yield DropStream(self._stream_id)
