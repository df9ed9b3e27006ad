"""The client's HTTP/1 connection: requests in, also pipelined ones, and responses out in the same order."""

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server, should_make_pipe

from kubetunnel.proxy.http.events import Abort, InformationalResponse, Throttle, never
from kubetunnel.proxy.http.h1_connection import KubeHttp1Connection
from kubetunnel.proxy.http.h1_message import (
    Framing,
    HeadTooLargeError,
    as_http1_response,
    asks_to_close,
    chunk,
    framing,
    framing_to_send,
    last_chunk,
    take_head,
)
from kubetunnel.proxy.refusals import complaint

# for a client to close after an answer that ends its connection; nginx's lingering_timeout
LINGER_S = 5.0

# requests that wait for the answer to the one before; whoever sends on without end is cut off
MAX_PIPELINED_BYTES = 1 << 20


class KubeHttp1Server(KubeHttp1Connection, Http1Server):
    """One exchange after the other; the stream ids are 1, 3, 5, …

    Args:
        is_ending: whether the tunnel ends; a client is told so with its next answer.
    """

    client_finished = False

    def __init__(self, context: Context, is_ending: Callable[[], bool] = never) -> None:
        super().__init__(context)
        self._is_ending = is_ending

    ReceiveTrailers = RequestTrailers
    _sent_framing: Framing = 0
    _trailers: http.Headers | None = None

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if event.stream_id != self.stream_id or self.state in (self.linger, self.done) or isinstance(event, Throttle):
            return  # of an exchange that is over, or for the reader of the connection alone
        if isinstance(event, InformationalResponse):
            if self.request and self.request.http_version != "HTTP/1.0":  # RFC 9110 section 15.2
                head = as_http1_response(event.response, self.request, has_body=False)
                yield commands.SendData(self.conn, http1.assemble_response_head(head))
        elif isinstance(event, ResponseHeaders):
            yield from self._send_head(event)
        elif isinstance(event, ResponseData):
            # a response to HEAD, or one without content, has none to send whatever an addon has put there
            if event.data and self._sent_framing != 0:
                is_chunked = self._sent_framing is None
                yield commands.SendData(self.conn, chunk(event.data) if is_chunked else event.data)
        elif isinstance(event, ResponseTrailers):
            self._trailers = event.trailers  # dropped where the body is not chunked: they have no place then
        elif isinstance(event, ResponseEndOfMessage):
            if self._sent_framing is None:
                yield commands.SendData(self.conn, last_chunk(self._trailers))
            yield from self.mark_done(response=True)
        elif isinstance(event, ResponseProtocolError):
            yield from self._send_error(event)
        else:
            raise AssertionError(f"Unexpected event: {event}")  # noqa: TRY004 - a defect, as in the base class

    def _send_head(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        assert self.request
        self.response = as_http1_response(event.response, self.request, has_body=not event.end_stream)
        is_pipe = should_make_pipe(self.request, self.response)
        self._sent_framing = "close" if is_pipe else framing_to_send(self.request, self.response)
        if self._is_ending() and not is_pipe:
            self.response.headers["Connection"] = "close"  # RFC 9112 section 9.6
        yield commands.SendData(self.conn, http1.assemble_response_head(self.response))

    def _send_error(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        status = event.code.http_status_code()
        if self.conn.state & ConnectionState.CAN_WRITE and not self.response and status is not None:
            yield self._last_answer(status, event.message)
        elif self._sent_framing == "close" and event.code is not ErrorCode.PASSTHROUGH_CLOSE:
            yield Abort(self.conn)
        yield from self.close()

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            if rest := len(self.buf):
                yield commands.Log(f"Client closed the connection after {rest} bytes of a request's head.")
            yield from self.close()
            return
        try:
            lines = take_head(self.buf)
            if lines is None:
                return
            request = http1.read_request_head(lines)
            if not request.http_version.startswith("HTTP/1."):
                raise ValueError(f"{request.http_version} has no request line of this form")  # noqa: TRY301
            size = framing(request)
        except HeadTooLargeError as e:
            yield from self._complain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The head of the request is {e}.")
            return
        except ValueError as e:
            yield from self._complain(HTTPStatus.BAD_REQUEST, f"{e}.")
            return
        self.request = request
        self.expect_body(size)
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, size == 0))
        if self.state == self.read_body:
            yield from self.read_body(events.DataReceived(self.conn, b""))

    def _complain(self, status: HTTPStatus, detail: str) -> layer.CommandGenerator[None]:
        yield self._last_answer(status, detail)
        yield from self._linger()
        self.state = self.linger

    def _last_answer(self, status: int, detail: str) -> commands.SendData:
        answer = complaint(status, detail)
        answer.headers["Connection"] = "close"
        return commands.SendData(self.conn, http1.assemble_response(answer))

    def _linger(self) -> layer.CommandGenerator[None]:
        """Says that nothing more comes, and reads on until the client closes, or the time is over.

        Closing with unread bytes would reset the connection before the client has our answer (RFC 9112 section 9.6).
        """
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        yield commands.RequestWakeup(LINGER_S)

    def linger(self, event: events.Event) -> layer.CommandGenerator[None]:
        """What comes after a request that was none."""
        self.buf.maybe_extract_at_most(len(self.buf))
        if isinstance(event, events.ConnectionClosed):
            yield from self.close()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.Wakeup):
            yield from super()._handle_event(event)
        elif self.state != self.done:
            is_in_request = self.state == self.read_body
            yield from self.close()
            if is_in_request:
                message = "The client neither ended its request nor closed."
                yield ReceiveHttp(RequestProtocolError(self.stream_id, message, ErrorCode.CLIENT_DISCONNECTED))

    def message_ended(self) -> layer.CommandGenerator[None]:
        assert self.request
        if self.request.method.upper() != "CONNECT":
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
        yield from self.mark_done(request=True)

    def message_broken(self, message: str, *, ended: bool) -> layer.CommandGenerator[None]:
        if not ended and not self.response:
            yield from self._complain(HTTPStatus.BAD_REQUEST, f"The body of the request is broken: {message}.")
        else:
            yield from self.close()
        code = ErrorCode.CLIENT_DISCONNECTED if ended else ErrorCode.GENERIC_CLIENT_ERROR
        yield ReceiveHttp(RequestProtocolError(self.stream_id, f"HTTP/1 protocol error: {message}", code))

    @property
    def awaits_answer(self) -> bool:
        """The request is whole, its answer is not."""
        return self.state == self.wait

    def finish(self) -> None:
        """The client sends no more (RFC 9293 section 3.6), and gets the answer to what it sent."""
        self.client_finished = True

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            if len(self.buf) <= MAX_PIPELINED_BYTES:
                return
            message = "The client pipelines more requests than it takes answers."
        else:
            message = "Client disconnected."
        yield from self.close()
        yield ReceiveHttp(RequestProtocolError(self.stream_id, message, ErrorCode.CLIENT_DISCONNECTED))

    def mark_done(self, *, request: bool = False, response: bool = False) -> layer.CommandGenerator[None]:
        self.request_done |= request
        self.response_done |= response
        if not self.request_done:
            if self.response_done and self._closes_after_response():
                yield from self._linger()
            return
        if not self.response_done:
            self.state = self.wait
            return
        assert self.request
        assert self.response
        if should_make_pipe(self.request, self.response):
            yield from self.make_pipe()
        elif self._closes_after_response():
            yield from self.close()
        else:
            yield from self._next_request()

    def _closes_after_response(self) -> bool:
        assert self.request
        assert self.response
        ends = (self.client_finished and not self.buf) or self._sent_framing == "close"
        return ends or asks_to_close(self.request) or asks_to_close(self.response)

    def _next_request(self) -> layer.CommandGenerator[None]:
        self.request_done = self.response_done = False
        self.request = self.response = self._trailers = None
        self._sent_framing = 0
        self.stream_id += 2
        self.state = self.read_headers
        if self.buf:
            yield from self.read_headers(events.DataReceived(self.conn, b""))
            if self.client_finished and self.state in (self.read_headers, self.read_body):
                yield from self.state(events.ConnectionClosed(self.conn))  # no more of it will come
