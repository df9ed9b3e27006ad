"""The request's half of an exchange: from its head to the last byte that goes upstream.

mitmproxy's request states are replaced here: an upstream comes from the pool, what the pod is to decide (100-continue)
is left to it, and a request that is refused is read to its end.
"""

from __future__ import annotations

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy
import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from mitmproxy import http
from mitmproxy.net.http import http1, url
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpRequestHook

from kubetunnel.core.errors import KubeTunnelError, NotForwardable
from kubetunnel.proxy.http.deadlines import parse_grpc_timeout
from kubetunnel.proxy.http.events import (
    AwaitResponse,
    GetUpstream,
    InformationalResponse,
    Lease,
    Origin,
    UpstreamFree,
)
from kubetunnel.proxy.http.h1_message import withdraw_h2c_upgrade
from kubetunnel.proxy.http.policy import ExchangePolicy
from kubetunnel.proxy.http.repeat import SentRequest, is_idempotent
from kubetunnel.proxy.refusals import is_grpc, refusal

# of a request's body: more does not go on an upstream that shares its connection with others
MAX_SMALL_BYTES = 64 << 10

NO_HOST = "(no Host header)"  # not a valid host, so no request can ask for it


class RequestHalf(HttpStream):
    """What is known of the upstream and of what it was sent is shared with the other half."""

    def __init__(self, context: Context, stream_id: int, policy: ExchangePolicy) -> None:
        super().__init__(context, stream_id)
        self.policy = policy
        self.lease: Lease | None = None
        self.sent: SentRequest | None = None
        self.timeout_s: float | None = None  # for the response's headers, once it runs

    @abstractmethod
    def refuse(self, error: KubeTunnelError) -> layer.CommandGenerator[None]:
        """Answers the request with a refusal."""

    @abstractmethod
    def abandon_upstream(self) -> layer.CommandGenerator[None]:
        """Nobody waits for what the pod does for us. No effect on an upstream that serves others by now."""

    @abstractmethod
    def send_own_response(self) -> layer.CommandGenerator[None]:
        """Answers the request with the response that the flow has got from us, or from an addon."""

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        self.flow = event.replay_flow or http.HTTPFlow(self.context.client, self.context.server)
        self.flow.request = request = event.request
        self.flow.live = True
        if request.method == "CONNECT" and request.is_http2:
            yield from self._refuse_connect()
            return
        if (yield from self.check_invalid(True)):
            return
        if request.method == "CONNECT":
            yield from self.handle_connect()
            return
        self._set_destination(request)
        if not event.end_stream and (yield from self.check_body_size(True)):
            return
        yield HttpRequestHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        self.server_state = self.state_wait_for_response_headers
        yield from self._begin_body(has_body=not event.end_stream)

    def _refuse_connect(self) -> layer.CommandGenerator[None]:
        error = NotForwardable(
            "CONNECT within HTTP/2 (RFC 9113 section 8.5) is not supported: ask the proxy in HTTP/1.1, or use SOCKS5.",
        )
        self.flow.response = refusal(error, self.flow.request)  # settled: nobody need route it
        yield HttpRequestHeadersHook(self.flow)
        yield from self.refuse(error)

    def _begin_body(self, *, has_body: bool) -> layer.CommandGenerator[None]:
        request = self.flow.request
        withdraw_h2c_upgrade(request.headers)
        is_streamed = has_body and request.stream
        waits = has_body and request.headers.get("expect", "").lower() == "100-continue"
        if is_streamed or (waits and self.flow.response):
            # what the client waits for comes from the pod, or is a refusal
            yield from self.start_request_stream()
            return
        if waits:
            # the pod sees nothing of the request before all of it is here
            del request.headers["expect"]
            now = time.time()
            go_on = http.Response(b"HTTP/1.1", 100, b"Continue", http.Headers(), None, None, now, now)
            yield SendHttp(InformationalResponse(self.stream_id, go_on), self.context.client)
        self.client_state = self.state_consume_request_body

    def _set_destination(self, request: http.Request) -> None:
        if self.mode is HTTPMode.transparent:
            assert self.context.server.address
            request.data.host, request.data.port = self.context.server.address[:2]
            request.scheme = "https" if self.context.server.tls else "http"
        elif not request.host:
            host, port = request.host_header or NO_HOST, None
            with suppress(ValueError):  # the routing hook has a better answer to it than we have
                host, port = url.parse_authority(host, check=True)
            request.scheme = "https" if self.context.client.tls else "http"
            request.data.host, request.data.port = host, port or (443 if request.scheme == "https" else 80)
        if self.mode is HTTPMode.regular and not request.is_http2:
            request.authority = ""  # origin-form for pods: some do not take the absolute one

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        if self.flow.response:
            self.client_state = self.state_discard_request_body
            yield from self.send_own_response()
            return
        # in its place where there is no upstream
        self.client_state = self.state_discard_request_body
        if not (yield from self.make_server_connection()):
            return
        self.sent = SentRequest(self.flow.request)
        self.client_state = self.state_stream_request_body
        yield from self.send_upstream(self.sent.events(self.stream_id, complete=False))

    def state_stream_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestTrailers):
            self.flow.request.trailers = event.trailers
            return
        for chunk in _through(self.flow.request.stream, event.data if isinstance(event, RequestData) else b""):
            if self.context.options.store_streamed_bodies:
                self.request_body_buf += chunk
            if self.sent:
                self.sent.add(chunk)
            yield SendHttp(RequestData(self.stream_id, chunk), self.context.server)
        if isinstance(event, RequestEndOfMessage):
            yield from self._end_streamed_request()

    def _end_streamed_request(self) -> layer.CommandGenerator[None]:
        request = self.flow.request
        if self.context.options.store_streamed_bodies:
            request.data.content = bytes(self.request_body_buf)
            self.request_body_buf.clear()
        request.timestamp_end = time.time()
        yield HttpRequestHook(self.flow)
        self.client_state = self.state_done
        is_answered = self.server_state != self.state_wait_for_response_headers or any(
            isinstance(event, ResponseHeaders) for event in self._paused_event_queue
        )
        if self.flow.response and not is_answered:
            # an addon's, which need not know that the pod has begun to hear of the request
            yield from self.abandon_upstream()
            yield from self.send_own_response()
            return
        if request.trailers:
            yield SendHttp(RequestTrailers(self.stream_id, request.trailers), self.context.server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)
        if self.server_state == self.state_done:
            yield from self.flow_done()
        else:
            yield from self.await_response()

    def state_consume_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        if not isinstance(event, RequestEndOfMessage):
            yield from super().state_consume_request_body(event)
            return
        request = self.flow.request
        request.timestamp_end = time.time()
        request.data.content = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.client_state = self.state_done
        yield HttpRequestHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        if self.flow.response:
            self.flow.response.timestamp_start = time.time()
            yield from self.send_own_response()
        elif (yield from self.make_server_connection()):
            self.sent = SentRequest(request, request.raw_content or b"")
            yield from self.send_upstream(self.sent.events(self.stream_id, complete=True))

    def state_discard_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        """The answer is sent. What still comes of the request is read, so that the client gets to it, and dropped."""
        if isinstance(event, RequestEndOfMessage):
            self.client_state = self.state_done
            if self.server_state == self.state_done:  # not where the client went before there was an answer
                yield from self.flow_done()

    def make_server_connection(self, *, fresh: bool = False, delay_s: float = 0.0) -> layer.CommandGenerator[bool]:
        request = self.flow.request
        origin = Origin((request.host, request.port), request.scheme == "https", self.flow.server_conn.via)
        small = is_small(request, is_whole=self.client_state == self.state_done)
        once = not is_idempotent(request)
        reply = yield GetUpstream(origin, fresh, small, request.is_http2, delay_s, once)
        if isinstance(reply, KubeTunnelError):
            yield from self.refuse(reply)
            return False
        self.lease = reply
        self.context.server = self.flow.server_conn = reply.connection
        if any(isinstance(event, RequestProtocolError) for event in self._paused_event_queue):
            yield UpstreamFree(reply.connection)  # the client has gone while we waited
            return False
        return True

    def send_upstream(self, request_events: Iterable[HttpEvent]) -> layer.CommandGenerator[None]:
        for event in request_events:
            yield SendHttp(event, self.context.server)
        yield from self.await_response()

    @property
    def is_call_without_deadline(self) -> bool:
        """Whether it is gRPC that brings no `grpc-timeout`."""
        request = self.flow.request
        return is_grpc(request) and parse_grpc_timeout(request.headers.get("grpc-timeout", "")) is None

    def await_response(self) -> layer.CommandGenerator[None]:
        """Sets the deadline for the response's head.

        A `grpc-timeout` counts from the beginning of the call, and once only. Without one, and for all that is no gRPC,
        ours counts from the end of the request: a client that goes on sending has a stream that may be silent for as
        long as it likes, and many servers send their headers with the first message only. A call whose client has sent
        all, and whose server streams, looks as a unary one does: what is known of its method is asked when its time is
        over (`KubeCallOverdueHook`).
        """
        if self.server_state != self.state_wait_for_response_headers:
            return
        request, given_s = self.flow.request, None
        if is_grpc(request):
            if self.timeout_s is not None:
                return
            given_s = parse_grpc_timeout(request.headers.get("grpc-timeout", ""))
        if given_s is not None:
            self.timeout_s = given_s
        elif self.client_state == self.state_done:
            policy = self.policy
            self.timeout_s = policy.grpc_timeout_s if is_grpc(request) else policy.response_header_timeout_s
        if self.timeout_s is not None:
            yield AwaitResponse(self.stream_id, self.timeout_s)


def is_small(request: http.Request, *, is_whole: bool) -> bool:
    """Whether this is a short exchange's request. What is switched to by an upgrade lasts, and may be bulk."""
    if "upgrade" in request.headers:
        return False
    if is_whole:
        return len(request.raw_content or b"") <= MAX_SMALL_BYTES
    try:
        size = http1.expected_http_body_size(request)
    except ValueError:
        return False
    return "content-length" in request.headers and size is not None and size <= MAX_SMALL_BYTES


def _through(stream: Any, data: bytes) -> list[bytes]:
    """The chunks that a message's `stream` makes of this one."""
    chunks = stream(data) if callable(stream) else data
    return [chunk for chunk in ([chunks] if isinstance(chunks, bytes) else chunks) if chunk]
