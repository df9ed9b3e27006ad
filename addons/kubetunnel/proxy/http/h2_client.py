"""An HTTP/2 connection to a pod, shared by the exchanges of one client.

Over mitmproxy's: a GOAWAY fails only the streams that the pod has not processed (RFC 9113 section 6.8), which are told
apart since they may be repeated; 1xx responses pass; streams that are over are forgotten.
"""

from __future__ import annotations

import time

import h2.events
from h2.errors import ErrorCodes
from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestHeaders, RequestProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Client, StreamState, parse_h2_response_headers

from kubetunnel.proxy.http.events import (
    Congested,
    InformationalResponse,
    UpstreamDraining,
    UpstreamFailed,
    UpstreamFree,
)
from kubetunnel.proxy.http.h1_message import as_http2_request
from kubetunnel.proxy.http.h2_connection import KubeHttp2Connection

_OF_A_STREAM = (
    h2.events.ResponseReceived,
    h2.events.InformationalResponseReceived,
    h2.events.TrailersReceived,
    h2.events.StreamEnded,
    h2.events.StreamReset,
)
_CODES = {
    ErrorCodes.CANCEL: ErrorCode.CANCEL,
    ErrorCodes.HTTP_1_1_REQUIRED: ErrorCode.HTTP_1_1_REQUIRED,
}


class KubeHttp2Client(KubeHttp2Connection, Http2Client):
    """Maps the exchanges' stream ids to its own, as the base class does."""

    conn: Server

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h2_conn.local_settings.enable_push = 0
        self.h2_conn.local_settings.acknowledge()
        self._is_draining = False
        self._is_broken = False
        self._ended: set[int] = set()  # streams that the pod has ended, to be forgotten when we have, too

    @property
    def is_idle(self) -> bool:
        """Whether it serves nobody."""
        return not self.streams and not self.stream_queue

    def taken_bytes(self, theirs: int) -> int:
        """How much of what waited to be sent for this exchange has been sent since it waits."""
        return self.h2_conn.taken_bytes(self.our_stream_id.get(theirs, 0))

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        was_idle = self.is_idle
        yield from self._handle_one(event)
        if self._is_draining:
            yield from self._drain()
        while self.stream_queue and self._has_room:
            # popitem() would be last in, first out
            for queued in self.stream_queue.pop(next(iter(self.stream_queue))):
                yield from self._handle_one(queued)
        if self.is_idle and not was_idle and not self._is_draining:
            yield UpstreamFree(self.conn)

    def _handle_one(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, HttpEvent):
            ours = self._stream_for(event)
            if ours is None:
                return
            event.stream_id = ours
            if isinstance(event, RequestProtocolError):
                self.streams.pop(ours, None)
                self._ended.add(ours)
            elif isinstance(event, RequestHeaders):
                event.request = as_http2_request(event.request)
        for command in self.handle_with_flow_control(event, self._handle_event2):
            if isinstance(command, ReceiveHttp):
                command.event.stream_id = self.their_stream_id[command.event.stream_id]
            elif isinstance(command, Congested):
                theirs = self.their_stream_id.get(command.stream_id)
                if theirs is None:
                    continue
                command.stream_id = theirs
            yield command
        yield from self._forget_ended()

    def _stream_for(self, event: HttpEvent) -> int | None:
        """Our id of its stream; None where it waits for its turn, or is over."""
        theirs = event.stream_id
        if theirs in self.stream_queue:
            if isinstance(event, RequestProtocolError):
                del self.stream_queue[theirs]
            else:
                self.stream_queue[theirs].append(event)
            return None
        if isinstance(
            event, RequestHeaders
        ):  # which begins a stream, also where a former one of this exchange was refused
            if not self._has_room:
                self.stream_queue[theirs].append(event)
                return None
            ours = self.h2_conn.get_next_available_stream_id()
            self.our_stream_id[theirs] = ours
            self.their_stream_id[ours] = theirs
        return self.our_stream_id.get(theirs)

    @property
    def _has_room(self) -> bool:
        limit = self.provisional_max_concurrency or self.h2_conn.remote_settings.max_concurrent_streams
        return self.h2_conn.open_outbound_streams < limit

    def _forget_ended(self) -> layer.CommandGenerator[None]:
        for ours in [stream_id for stream_id in self._ended if self.forget_if_closed(stream_id)]:
            self._ended.discard(ours)
            yield from self.give_back(ours)  # its reader may be behind, but nobody asks by this id any more
            theirs = self.their_stream_id.pop(ours, None)
            if theirs is not None and self.our_stream_id.get(theirs) == ours:
                del self.our_stream_id[theirs]

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, _OF_A_STREAM) and event.stream_id not in self.streams:
            return False  # we have reset it
        if isinstance(event, h2.events.InformationalResponseReceived):
            yield from self._receive_informational(event)
        elif isinstance(event, h2.events.StreamReset):
            yield from self._receive_reset(event)
        else:
            if isinstance(event, h2.events.StreamEnded):
                self._ended.add(event.stream_id)
            return (yield from super().handle_h2_event(event))
        return False

    def _receive_informational(self, event: h2.events.InformationalResponseReceived) -> layer.CommandGenerator[None]:
        try:
            status, headers = parse_h2_response_headers(event.headers)
        except ValueError as e:
            yield from self.protocol_error(f"Invalid HTTP/2 response headers: {e}")
            return
        response = http.Response(b"HTTP/2.0", status, b"", headers, None, None, time.time(), None)
        yield ReceiveHttp(InformationalResponse(event.stream_id, response))

    def _receive_reset(self, event: h2.events.StreamReset) -> layer.CommandGenerator[None]:
        self._take(event.stream_id)
        state = self.streams.pop(event.stream_id)
        self._ended.add(event.stream_id)
        code = event.error_code or ErrorCodes.NO_ERROR
        yield ReceiveHttp(
            UpstreamFailed(
                event.stream_id,
                f"stream reset ({code.name if isinstance(code, ErrorCodes) else code})",
                _CODES.get(code, ErrorCode.GENERIC_SERVER_ERROR),  # type: ignore[call-overload]
                ended=True,
                answered=state is StreamState.HEADERS_RECEIVED,
                unprocessed=code == ErrorCodes.REFUSED_STREAM,
                h2_error=int(code),
            )
        )

    def go_away(self, event: h2.events.ConnectionTerminated) -> layer.CommandGenerator[None]:
        self._is_draining = True
        yield UpstreamDraining(self.conn)
        for ours in [stream_id for stream_id in self.streams if stream_id > (event.last_stream_id or 0)]:
            del self.streams[ours]
            self._ended.add(ours)
            if not self.is_closed(ours):
                self.h2_conn.reset_stream(ours, ErrorCodes.CANCEL)  # what waits to be sent waits in vain
            yield ReceiveHttp(UpstreamFailed(ours, "the pod is going away", ended=True, unprocessed=True))

    def _drain(self) -> layer.CommandGenerator[None]:
        while self.stream_queue:
            theirs = next(iter(self.stream_queue))
            del self.stream_queue[theirs]
            yield ReceiveHttp(UpstreamFailed(theirs, "the connection is over", ended=True, unprocessed=True))
        if not self.streams and self._handle_event != self.done:
            yield from self.close_connection("the pod went away")

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> layer.CommandGenerator[None]:
        self._is_broken = True
        yield from super().protocol_error(message, error_code)

    def close_connection(self, msg: str) -> layer.CommandGenerator[None]:
        self._is_draining = True
        yield commands.Log(f"{self.conn.address}: {msg}")
        yield from super().close_connection(msg)

    def connection_lost(self, stream_id: int, state: StreamState, message: str) -> UpstreamFailed:
        return UpstreamFailed(
            stream_id,
            message,
            ended=not self._is_broken,
            answered=state is StreamState.HEADERS_RECEIVED,
            silent_in_h2=self.provisional_max_concurrency is not None,  # that is until its SETTINGS
        )
