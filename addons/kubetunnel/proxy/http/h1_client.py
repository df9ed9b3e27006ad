"""An HTTP/1 connection to a pod: one request at a time, then free for the next one, also for HTTP/2 clients."""

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy

from __future__ import annotations

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, should_make_pipe

from kubetunnel.proxy.http.events import InformationalResponse, Throttle, UpstreamFailed, UpstreamFree
from kubetunnel.proxy.http.h1_connection import KubeHttp1Connection
from kubetunnel.proxy.http.h1_message import (
    Framing,
    as_http1_request,
    asks_to_close,
    chunk,
    framing,
    framing_to_send,
    last_chunk,
    take_head,
)

_SWITCHING_PROTOCOLS = 101


class KubeHttp1Client(KubeHttp1Connection, Http1Client):
    """Says `UpstreamFree` when request and response are complete and the connection stays."""

    conn: Server
    ReceiveTrailers = ResponseTrailers
    _sent_framing: Framing = 0
    _trailers: http.Headers | None = None
    _informed = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.conn = context.server

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestHeaders) and self.stream_id is None and self.state != self.done:
            self.stream_id = event.stream_id
            self.request = as_http1_request(event.request, has_body=not event.end_stream)
            self._sent_framing = framing_to_send(self.request)
            yield commands.SendData(self.conn, http1.assemble_request_head(self.request))
        elif event.stream_id != self.stream_id or isinstance(event, Throttle):
            return  # of an exchange that is over, or for the reader of the connection alone
        elif isinstance(event, RequestProtocolError):
            yield from self.close()
            self.stream_id = None
        elif isinstance(event, RequestData):
            if event.data:
                is_chunked = self._sent_framing is None
                yield commands.SendData(self.conn, chunk(event.data) if is_chunked else event.data)
        elif isinstance(event, RequestTrailers):
            self._trailers = event.trailers  # dropped where the body is not chunked: they have no place then
        elif isinstance(event, RequestEndOfMessage):
            if self._sent_framing is None:
                yield commands.SendData(self.conn, last_chunk(self._trailers))
            yield from self.mark_done(request=True)
        else:
            raise AssertionError(f"Unexpected event: {event}")

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if self.stream_id is None:
            if isinstance(event, events.DataReceived):
                yield commands.Log(f"{self.conn.address}: {len(self.buf)} bytes came that nobody asked for.")
            yield from self.close()
        elif isinstance(event, events.ConnectionClosed):
            yield from self._fail("server closed connection", ended=True)
        else:
            yield from self._read_head()

    def _read_head(self) -> layer.CommandGenerator[None]:
        assert self.request
        assert self.stream_id is not None
        while True:
            try:
                lines = take_head(self.buf)
                if lines is None:
                    return
                response = http1.read_response_head(lines)
                size = framing(self.request, response)
            except ValueError as e:
                yield from self._fail(f"cannot parse the head of the response: {e}", ended=False)
                return
            if response.status_code == _SWITCHING_PROTOCOLS and "upgrade" not in self.request.headers:
                # RFC 9110 section 7.8; a client of HTTP/2 could not even be told
                yield from self._fail("101 was sent, and nobody asked for another protocol", ended=False)
                return
            if response.status_code >= 200 or response.status_code == _SWITCHING_PROTOCOLS:
                break
            self._informed = True
            yield ReceiveHttp(InformationalResponse(self.stream_id, response))
        self.response = response
        self.expect_body(size)
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, size == 0))
        if self.state == self.read_body:
            yield from self.read_body(events.DataReceived(self.conn, b""))

    def message_ended(self) -> layer.CommandGenerator[None]:
        assert self.request
        assert self.response
        assert self.stream_id is not None
        ended = ReceiveHttp(ResponseEndOfMessage(self.stream_id))
        if self.request_done and not should_make_pipe(self.request, self.response):
            # first of all, since the client's next request may come as soon as it has this response
            yield from self.mark_done(response=True)
            yield ended
        else:
            yield ended
            yield from self.mark_done(response=True)

    def message_broken(self, message: str, *, ended: bool) -> layer.CommandGenerator[None]:
        yield from self._fail(message, ended=ended)

    def _fail(self, message: str, *, ended: bool) -> layer.CommandGenerator[None]:
        assert self.stream_id is not None
        stream_id, self.stream_id = self.stream_id, None
        answered = bool(self.buf) or self._informed or self.response is not None
        yield from self.close()
        yield ReceiveHttp(UpstreamFailed(stream_id, message, ended=ended, answered=answered))

    def finish_request(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The response is complete, the request is not: no more of the pod is to be expected."""
        if isinstance(event, events.ConnectionClosed) or self.buf:
            yield from self._fail("server closed connection", ended=True)

    def mark_done(self, *, request: bool = False, response: bool = False) -> layer.CommandGenerator[None]:
        self.request_done |= request
        self.response_done |= response
        if not self.response_done:
            return
        assert self.request
        assert self.response
        if not self.request_done:
            self.state = self.finish_request
            if self._closes_after_response():
                yield from self.finish_request(events.ConnectionClosed(self.conn))
        elif should_make_pipe(self.request, self.response):
            yield from self.make_pipe()
        elif self._closes_after_response():
            yield from self.close()
            self.stream_id = None
        else:
            self.request_done = self.response_done = self._informed = False
            self.request = self.response = self._trailers = self.stream_id = None
            self.state = self.read_headers
            if self.buf:
                yield from self.read_headers(events.DataReceived(self.conn, b""))
            else:
                yield UpstreamFree(self.conn)

    def _closes_after_response(self) -> bool:
        assert self.request
        assert self.response
        until_end = framing_to_send(self.request, self.response) == "close"
        return until_end or asks_to_close(self.request) or asks_to_close(self.response)
