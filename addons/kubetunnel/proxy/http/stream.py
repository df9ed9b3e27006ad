"""One exchange of request and response, as mitmproxy's `HttpStream`, with what a tunnel owes to both ends.

A failure before the response has begun is told as a refusal; a request is sent again where that cannot do harm
(RFC 9110 section 9.2.2); informational responses pass; an answer that comes early does not wait for the request's end.
"""

from __future__ import annotations

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy
import random

from mitmproxy import flow
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHeadersHook

from kubetunnel.core.backoff import Backoff
from kubetunnel.core.errors import KubeTunnelError, Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.proxy.destination import open_asked_for
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from kubetunnel.proxy.http.events import (
    AwaitResponse,
    DeadlinePassed,
    InformationalResponse,
    KubeCallOverdueHook,
    NothingTaken,
    OverdueCall,
    UpstreamFailed,
)
from kubetunnel.proxy.http.failures import Failures, error_of_failure, may_repeat
from kubetunnel.proxy.http.h1_message import framing_to_send
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.policy import ExchangePolicy
from kubetunnel.proxy.http.request import RequestHalf
from kubetunnel.proxy.http.upgraded import UpgradedLayer
from kubetunnel.proxy.http.websocket import KubeWebsocketLayer
from kubetunnel.proxy.refusals import grpc_trailers, is_grpc, refusal

_SWITCHING_PROTOCOLS = 101


class KubeHttpStream(RequestHalf):
    """One exchange; what is here is the half that goes back to the client."""

    def __init__(
        self, context: Context, stream_id: int, failures: Failures, policy: ExchangePolicy, lanes: Lanes
    ) -> None:
        super().__init__(context, stream_id, policy)
        self.failures = failures
        self.lanes = lanes
        self._repeats = 0
        self._backoff = Backoff(policy.retry_delay_s, cap_s=10 * policy.retry_delay_s)
        self._end_is_sent = False

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, InformationalResponse):
            yield from self._pass_informational(event)
        elif isinstance(event, DeadlinePassed):
            yield from self._time_out()
        elif isinstance(event, NothingTaken):
            yield from self._give_up_sending()
        elif isinstance(event, ResponseEndOfMessage) and self._is_cut_off():
            yield from self.handle_protocol_error(UpstreamFailed(self.stream_id, "cut off", ended=True, answered=True))
        else:
            yield from super()._handle_event(event)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        if self.sent:
            self.sent.forget()
        if self._ends_by_itself(event):
            yield AwaitResponse(self.stream_id, self.policy.read_timeout_s, silence=True)
        elif self.timeout_s is not None:
            yield AwaitResponse(self.stream_id, None)
        yield from super().state_wait_for_response_headers(event)

    def _ends_by_itself(self, event: ResponseHeaders) -> bool:
        """Whether the pod owes a certain number of bytes. Without a length it may be a stream with nothing to say."""
        is_sized = "content-length" in event.response.headers and not event.end_stream
        return is_sized and self.policy.read_timeout_s is not None and not is_grpc(self.flow.request)

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        assert self.flow.response
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client)
        self.server_state = self.state_stream_response_body

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        yield from super().send_response(already_streamed)
        is_early = self.server_state == self.state_done and self.client_state != self.state_done
        if is_early and not self._is_upgraded:
            self._end_is_sent = True
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def flow_done(self) -> layer.CommandGenerator[None]:
        if self._end_is_sent:
            self.flow.live = False
            yield DropStream(self.stream_id)
        elif self.flow.websocket:
            yield from self._upgrade(KubeWebsocketLayer(self.context, self.flow))
        elif self._is_upgraded and self.context.options.rawtcp:
            self.flow.live = False
            yield from self._upgrade(UpgradedLayer(self.context, self.failures))
        else:
            yield from super().flow_done()

    def _upgrade(self, to: layer.Layer) -> layer.CommandGenerator[None]:
        self.child_layer = to
        self._handle_event = self.passthrough  # type: ignore[method-assign]
        yield from to.handle_event(events.Start())
        # only now, since data may follow at once
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    @property
    def _is_upgraded(self) -> bool:
        return self.flow.response is not None and self.flow.response.status_code == _SWITCHING_PROTOCOLS

    def handle_connect_regular(self) -> layer.CommandGenerator[None]:
        error = None
        if not self.flow.response:  # an addon's refusal, for want of credentials
            error = yield from open_asked_for(self.context, self.failures)
        if error is not None:
            self.flow.response = refusal(error, self.flow.request)
            self.flow.error = flow.Error(str(error))
        self.child_layer = FirstBytesLayer(self.context)
        yield from self.handle_connect_finish()
        if error is not None:
            yield DropStream(self.stream_id)

    def _pass_informational(self, event: InformationalResponse) -> layer.CommandGenerator[None]:
        if self.server_state == self.state_wait_for_response_headers:
            if self.sent:
                self.sent.forget()
            yield SendHttp(event, self.context.client)
            if not is_grpc(self.flow.request):
                yield from self.await_response()

    def _time_out(self) -> layer.CommandGenerator[None]:
        if self.server_state == self.state_wait_for_response_headers and self.flow.response is None:
            if (yield from self._may_stay_silent()):
                return
            yield from self.abandon_upstream()
            yield from self.refuse(Timeout(f"{self._where} sent no response headers in {self.timeout_s:g} s."))
        elif self.server_state in (self.state_consume_response_body, self.state_stream_response_body):
            yield from self._end_for(f"nothing more of its response came in {self.policy.read_timeout_s:g} s")

    def _give_up_sending(self) -> layer.CommandGenerator[None]:
        if self.client_state == self.state_stream_request_body and self.server_state != self.state_done:
            yield from self._end_for(f"it took nothing of what was sent to it for {self.policy.write_timeout_s:g} s")

    def _end_for(self, silence: str) -> layer.CommandGenerator[None]:
        yield from self.abandon_upstream()
        if self.server_state == self.state_stream_response_body:
            failure = UpstreamFailed(self.stream_id, silence, ended=True, answered=True)
            yield from super().handle_protocol_error(failure)
        else:
            yield from self.refuse(Timeout(f"{self._where}: {silence}."))

    def _may_stay_silent(self) -> layer.CommandGenerator[bool]:
        """Whether this is a call without a deadline whose server streams: its first message may be an hour away."""
        if not self.is_call_without_deadline:
            return False
        call = OverdueCall(self.flow)
        yield KubeCallOverdueHook(call)
        over = (ResponseHeaders, RequestProtocolError, ResponseProtocolError)
        if any(isinstance(event, over) for event in self._paused_event_queue):
            self.timeout_s = None  # for a call that is sent again now
            return True
        return call.is_stream

    def abandon_upstream(self) -> layer.CommandGenerator[None]:
        """Nobody waits for what the pod does for us. No effect on an upstream that serves others by now."""
        if self.lease:
            gone = RequestProtocolError(self.stream_id, "the exchange is over", ErrorCode.CANCEL)
            yield SendHttp(gone, self.lease.connection)

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestProtocolError):
            yield from super().handle_protocol_error(event)
            yield from self.abandon_upstream()
        elif self.server_state == self.state_done:
            # the answer is complete; only the rest of the request has nobody to go to
            if self.client_state == self.state_stream_request_body:
                self.client_state = self.state_discard_request_body
        elif not isinstance(event, UpstreamFailed) or self.flow.error or self.client_state == self.state_errored:
            yield from super().handle_protocol_error(event)
        elif self._may_repeat(event):
            yield from self._repeat(event)
        elif error := self._error_of(event):
            yield from self.refuse(error)
        elif self._is_call_cut_off(event):
            yield from self._end_call(event)
        else:
            yield from super().handle_protocol_error(event)

    def _is_call_cut_off(self, event: UpstreamFailed) -> bool:
        """Whether a gRPC call has lost its pod after the headers. What the pod itself resets is passed on."""
        is_streamed = self.server_state == self.state_stream_response_body
        return is_streamed and event.h2_error is None and is_grpc(self.flow.request)

    def _end_call(self, event: UpstreamFailed) -> layer.CommandGenerator[None]:
        """Ends the call with a status of ours: of a reset, a client would make a failure that is not to be retried."""
        assert self.flow.response
        where = f"{self._where} was lost in the middle of the call: {event.message}."
        error = self.failures.stream_error(self.flow.server_conn) or UpstreamReset(where)
        self.lanes.explain(self.flow.server_conn, error)
        self.flow.error = flow.Error(str(error))
        yield HttpErrorHook(self.flow)
        self.server_state = self.state_done
        self.flow.response.trailers = grpc_trailers(error)
        yield SendHttp(ResponseTrailers(self.stream_id, self.flow.response.trailers), self.context.client)
        if self.client_state == self.state_done:
            yield from self.flow_done()
        else:
            self.client_state = self.state_discard_request_body
            self._end_is_sent = True
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def _may_repeat(self, event: UpstreamFailed) -> bool:
        is_left = self._repeats < self.policy.retry_max
        is_at_hand = self.sent is not None and self.sent.is_at_hand
        error = self.failures.stream_error(self.flow.server_conn)
        return is_left and is_at_hand and may_repeat(event, self.flow.request, error)

    def _repeat(self, event: UpstreamFailed) -> layer.CommandGenerator[None]:
        # a kept-alive connection that was stale, or an orderly good-bye, says nothing of the pod
        is_harmless = event.unprocessed or (self.lease is not None and self.lease.reused)
        at_once = is_harmless and not self._repeats
        delay_s = 0.0 if at_once else self._backoff.delay_s(self._repeats, random.random())  # noqa: S311 - jitter
        self._repeats += 1
        yield commands.Log(f"{self._where}: {event.message}; {self.flow.request.method} is sent again.")
        # a stream that was refused says nothing against its connection
        if (yield from self.make_server_connection(fresh=event.h2_error is None, delay_s=delay_s)):
            assert self.sent
            complete = self.client_state == self.state_done
            yield from self.send_upstream(self.sent.events(self.stream_id, complete=complete))

    def _error_of(self, event: UpstreamFailed) -> KubeTunnelError | None:
        """What to tell the client; None where it has a part of the response, or the RST_STREAM is passed on."""
        if self.flow.response is not None and self.server_state != self.state_consume_response_body:
            return None
        reused = self.lease is not None and self.lease.reused
        if error := error_of_failure(event, self.flow.request, reused=reused):
            return self.failures.stream_error(self.flow.server_conn) or error
        return None

    def _is_cut_off(self) -> bool:
        """Whether the end of the connection that ends this response was none that the pod meant."""
        response = self.flow.response
        if response is None or self.server_state == self.state_done or response.is_http2:
            return False
        until_end = framing_to_send(self.flow.request, response) == "close"
        return until_end and self.failures.stream_error(self.flow.server_conn) is not None

    def refuse(self, error: KubeTunnelError) -> layer.CommandGenerator[None]:
        self.lanes.explain(self.flow.server_conn, error)
        self.flow.response = refusal(error, self.flow.request)
        self.flow.error = flow.Error(str(error))
        self.response_body_buf.clear()
        if self.client_state != self.state_done:
            self.client_state = self.state_discard_request_body
        yield from self.send_own_response()

    def send_own_response(self) -> layer.CommandGenerator[None]:
        yield HttpResponseHeadersHook(self.flow)
        if not (yield from self.check_killed(True)):
            yield from self.send_response()

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if request or not self.context.options.validate_inbound_headers:
            invalid: bool = yield from super().check_invalid(request)
            if invalid:
                yield DropStream(self.stream_id)
            return invalid
        assert self.flow.response
        try:
            validate_headers(self.flow.response)
        except ValueError as e:
            yield from self.abandon_upstream()
            yield from self.refuse(UpstreamProtocol(f"{self._where} sent what is not HTTP: {e}."))
            return True
        return False

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        killed: bool = yield from super().check_killed(emit_error_hook)
        if killed:
            yield from self.abandon_upstream()
            yield DropStream(self.stream_id)
        return killed

    @property
    def _where(self) -> str:
        return f"{self.flow.request.host}:{self.flow.request.port}"
