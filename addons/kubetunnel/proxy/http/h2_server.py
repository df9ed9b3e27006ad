"""The client's HTTP/2 connection."""

from __future__ import annotations

import time
from collections.abc import Callable

import h2.events
from h2.errors import ErrorCodes
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import Http2Server, StreamState, format_h2_response_headers

from kubetunnel.core.media_types import is_grpc_type
from kubetunnel.proxy.http.events import InformationalResponse, UpstreamFailed, never
from kubetunnel.proxy.http.h1_message import as_http2_response
from kubetunnel.proxy.http.h2_connection import KubeHttp2Connection
from kubetunnel.proxy.http.h2_library import is_connect
from kubetunnel.proxy.refusals import complaint


class KubeHttp2Server(KubeHttp2Connection, Http2Server):
    """A client that goes away gets the answers to what it has asked, and finished streams leave no trace.

    Args:
        is_ending: whether the tunnel ends; a client is told so as soon as there is something to do on its connection.
    """

    _is_draining = False

    def __init__(self, context: Context, is_ending: Callable[[], bool] = never) -> None:
        super().__init__(context)
        self._is_ending = is_ending
        self._has_told_of_end = False
        self._calls: set[int] = set()  # streams that carry gRPC
        self._heads: set[int] = set()  # those that ask by HEAD

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.handle_with_flow_control(event, self._handle)
        if self._is_ending() and not self._has_told_of_end and self.conn.state & ConnectionState.CAN_WRITE:
            self._has_told_of_end = True
            self.h2_conn.ask_to_leave()
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        for stream_id in list(self.streams):
            self.forget_if_closed(stream_id)
        self._calls &= self.streams.keys()
        self._heads &= self.streams.keys()
        if self._is_draining and not self.streams:
            yield from self.close_connection("client went away")

    def _handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, InformationalResponse):
            if self.is_open_for_us(event.stream_id):
                head = ResponseHeaders(event.stream_id, event.response)
                headers = yield from format_h2_response_headers(self.context, head)
                self.h2_conn.send_headers(event.stream_id, headers)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, UpstreamFailed) and event.h2_error is not None:
            if not self.is_closed(event.stream_id):
                # NO_ERROR would tell the client that nothing is missing
                self.h2_conn.reset_stream(event.stream_id, event.h2_error or ErrorCodes.INTERNAL_ERROR)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, ResponseProtocolError) and self._can_be_answered(event):
            answer = complaint(event.code.http_status_code() or 0, event.message, grpc=event.stream_id in self._calls)
            headers = [(b":status", str(answer.status_code).encode()), *answer.headers.fields]
            self.h2_conn.send_headers(event.stream_id, [(name.lower(), value) for name, value in headers])
            body = b"" if event.stream_id in self._heads else answer.raw_content or b""
            self.h2_conn.send_data(event.stream_id, body, end_stream=True)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, ResponseData) and event.stream_id in self._heads:
            return  # whatever an addon has put there: the client would end the connection for it
        else:
            if isinstance(event, ResponseHeaders):
                event.response = as_http2_response(event.response)
            yield from super()._handle_event(event)

    def _can_be_answered(self, event: ResponseProtocolError) -> bool:
        """Whether this failure, which mitmproxy would tell by a page of its own, has an answer and is before any."""
        if event.code.http_status_code() is None or not self.is_open_for_us(event.stream_id):
            return False
        return not self.h2_conn.streams[event.stream_id].state_machine.headers_sent

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.RequestReceived) and is_connect(event.headers):
            # mitmproxy would end the connection with all its streams; the exchange refuses it
            fields = dict(event.headers)
            request = http.Request(
                "", 0, b"CONNECT", b"", fields.get(b":authority", b""), b"", b"HTTP/2.0", http.Headers(),
                None, None, time.time(), None,
            )  # fmt: skip
            self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
            yield ReceiveHttp(RequestHeaders(event.stream_id, request, end_stream=event.stream_ended is not None))
            return False
        if isinstance(event, h2.events.StreamReset):
            yield from self._receive_reset(event)
            return False
        if isinstance(event, h2.events.RequestReceived):
            media_type = dict(event.headers).get(b"content-type", b"")
            if is_grpc_type(media_type.decode(errors="replace")):
                self._calls.add(event.stream_id)
            if (b":method", b"HEAD") in event.headers:
                self._heads.add(event.stream_id)
        return (yield from super().handle_h2_event(event))

    def _receive_reset(self, event: h2.events.StreamReset) -> layer.CommandGenerator[None]:
        self._take(event.stream_id)
        # before it is told, which may lead to other events here; mitmproxy would look for it afterwards
        if self.streams.pop(event.stream_id, None) is not None:
            code = event.error_code or ErrorCodes.NO_ERROR
            is_cancelled = code == ErrorCodes.CANCEL
            yield ReceiveHttp(
                RequestProtocolError(
                    event.stream_id,
                    f"stream reset by client ({code.name if isinstance(code, ErrorCodes) else code})",
                    ErrorCode.CANCEL if is_cancelled else RequestProtocolError.code,
                )
            )

    def go_away(self, event: h2.events.ConnectionTerminated) -> layer.CommandGenerator[None]:
        self._is_draining = True
        yield from ()

    def connection_lost(self, stream_id: int, state: StreamState, message: str) -> RequestProtocolError:
        return RequestProtocolError(stream_id, message, ErrorCode.CLIENT_DISCONNECTED)
