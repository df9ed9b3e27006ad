"""Counts what passes: an addon that turns each flow's end into numbers, in some microseconds.

A flow read from a file counts for nothing, nor does one of another mode that had nothing to do with a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from mitmproxy import http, tcp
from mitmproxy.connection import Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.traffic import (
    UNKNOWN_KEY,
    Done,
    LastError,
    ServiceTraffic,
    Shown,
    Traffic,
    key_of,
)
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.refusals import error_of_answer, is_grpc
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

_MAX_NAMES = 4096  # of Pods too, which come and go
_MAX_PHRASE_CHARS = 200

# reasons that are about a Service that exists; others may be about any word that somebody wrote into a Host header
_EXISTS = frozenset(
    ("PortNotExposed", "NoReadyEndpoints", "NotForwardable", "ConnectionRefused", "UpstreamReset", "UpstreamProtocol",
     "Timeout")
)  # fmt: skip

# statuses that say that the server failed, of those a server gives (gRPC, "Status codes and their use")
_GRPC_FAILURES = frozenset(("2", "4", "12", "13", "14", "15"))
_GRPC_CODES = frozenset(map(str, range(17)))
_LEFT = ("client disconnected", "connection killed")


class Recording:
    """Writes into `traffic`, and what failed into `events`.

    Args:
        clock: seconds, monotonic, the same as of `traffic`.
    """

    name = "kubetunnel_recording"

    def __init__(
        self,
        traffic: Traffic,
        events: EventLog,
        router: Router,
        upstreams: Upstreams,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._traffic = traffic
        self._events = events
        self._router = router
        self._upstreams = upstreams
        self._clock = clock
        self._of_name: dict[str, ServiceTraffic] = {}
        self._upstreams_of: WeakKeyDictionary[Server, ServiceTraffic] = WeakKeyDictionary()

    def server_connected(self, data: ServerConnectionHookData) -> None:
        opened = self._upstreams.opened(data.server)
        if opened is not None:
            service = self._of(str(opened.destination.name))
            service.setups.add(opened.setup_s)
            service.retries += opened.retries
            service.use(opened.destination.port, self._clock())
            service.upstreams += 1
            self._upstreams_of[data.server] = service

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        service = self._upstreams_of.pop(data.server, None)
        if service is not None:
            service.upstreams -= 1

    def response(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        if not flow.live or response is None:
            return
        request = flow.request
        grpc = is_grpc(request)
        error = error_of_answer(response)
        reason = error.reason if error else ""
        service = self._service(flow, reason)
        if service is None:
            return
        if grpc:
            protocol, code = "grpc", _grpc_code(response)
            failed = code in _GRPC_FAILURES
        else:
            protocol = "websocket" if flow.websocket else "http2" if request.is_http2 else "http1"
            code = str(response.status_code) if 100 <= response.status_code < 600 else "other"
            failed = response.status_code >= 500
        started, answered = request.timestamp_start, response.timestamp_start
        done = Done(
            protocol,
            code,
            failed or bool(reason),
            (response.timestamp_end or answered) - started,
            answered - started,
            _size_bytes(request),
            _size_bytes(response),
        )
        self._add(flow, service, done, reason)
        if error:
            self._tell(flow, service, LastError(error.reason, error.detail, error.command, time.time()))
        elif failed:
            self._tell(flow, service, self._failed(flow, response, code))

    def error(self, flow: http.HTTPFlow) -> None:
        if not flow.live:
            return
        refused = error_of_answer(flow.response) if flow.response else None
        reason = refused.reason if refused else ""
        service = self._service(flow, reason)
        message = flow.error.msg if flow.error else ""
        if service is None:
            return
        has_left = message.lower().startswith(_LEFT)
        protocol = "grpc" if is_grpc(flow.request) else "http2" if flow.request.is_http2 else "http1"
        started = flow.request.timestamp_start
        answered = flow.response.timestamp_start if flow.response else None
        done = Done(
            protocol,
            "canceled" if has_left else "cut",
            not has_left,
            time.time() - started,
            answered - started if answered else None,
            _size_bytes(flow.request),
            _size_bytes(flow.response) if flow.response else 0,
        )
        self._add(flow, service, done, reason)
        if not has_left:
            self._tell(flow, service, LastError(reason or "UpstreamReset", message, None, time.time()))

    def tcp_end(self, flow: tcp.TCPFlow) -> None:
        self._tcp(flow, None)

    def tcp_error(self, flow: tcp.TCPFlow) -> None:
        self._tcp(flow, flow.error.msg if flow.error else "")

    def _tcp(self, flow: tcp.TCPFlow, message: str | None) -> None:
        if not flow.live:
            return
        reason = flow.metadata.get("kube", {}).get("reason", "")
        service = self._service(flow, reason)
        if service is None:
            return
        known = flow.metadata.get("kube", {})
        has_left = message is not None and not flow.marked
        code = "ok" if message is None else "canceled" if has_left else "error"
        sizes = known.get("up_bytes", 0), known.get("down_bytes", 0)
        duration_s = max(0.0, time.time() - flow.client_conn.timestamp_start)
        self._add(flow, service, Done("tcp", code, bool(flow.marked), duration_s, None, *sizes), reason)
        if flow.marked:
            self._tell(flow, service, LastError(reason or UNKNOWN_KEY.service, message or "", None, time.time()))

    def _add(self, flow: http.HTTPFlow | tcp.TCPFlow, service: ServiceTraffic, done: Done, reason: str) -> None:
        self._traffic.add(service, done, self._clock())
        if reason:
            self._traffic.refuse(reason)
        pod = flow.metadata.get("kube", {}).get("pod", "")
        method = flow.request.method if isinstance(flow, http.HTTPFlow) else ""
        self._traffic.last.append(Shown(time.time(), service.key, method[:16], done, pod, reason))

    def _tell(self, flow: http.HTTPFlow | tcp.TCPFlow, service: ServiceTraffic, error: LastError) -> None:
        service.last_error = error
        key = service.key if service.key is not UNKNOWN_KEY else None
        pod = flow.metadata.get("kube", {}).get("pod")
        self._events.add("error", f"{error.reason}: {error.detail}", service=key, pod=pod, command=error.command)

    def _failed(self, flow: http.HTTPFlow, response: http.Response, code: str) -> LastError:
        """What a pod answered. Its words are a stranger's: whoever shows them has to escape them."""
        if is_grpc(flow.request):
            said = unquote(_field(response, "grpc-message"))
            reason, what = f"gRPC {code}", f"gRPC status {code}"
        else:
            said, reason, what = response.reason, f"HTTP {code}", f"HTTP status {code}"
        opened = self._upstreams.opened(flow.server_conn)
        pod, command = "The pod", None
        if opened is not None:
            pod_port, access = opened.target.pod_port, opened.destination.session.access
            pod = pod_port.pod
            command = access.kubectl("-n", pod_port.namespace, "logs", pod, "--all-containers", "--tail=20")
        detail = f"{pod} answered with {what}" + (f": {said[:_MAX_PHRASE_CHARS]}" if said else ".")
        return LastError(reason, detail, command, time.time())

    def _service(self, flow: http.HTTPFlow | tcp.TCPFlow, reason: str) -> ServiceTraffic | None:
        """Whose flow it is; None for one that is none of ours."""
        known = flow.metadata.get("kube", {})
        if "service" in known and (not reason or self._was_found(flow)):
            service = self._of(known["service"])
            service.use(known.get("port", 0), self._clock())
            return service
        if not reason and not isinstance(flow.client_conn.proxy_mode, KubeMode):
            return None
        if reason and (name := self._router.known_name(known.get("service") or _host(flow))):
            key = key_of(name)
            # of a Service in use it is told too that it was deleted, or that the cluster is away
            if reason in _EXISTS or self._traffic.get(key) is not None:
                service = self._traffic.of(key)
                service.used_s = self._clock()
                return service
        return self._traffic.of(UNKNOWN_KEY)

    def _was_found(self, flow: http.HTTPFlow | tcp.TCPFlow) -> bool:
        """Whether a refused flow's Service has the port that it tells of: it was refused later than that."""
        if "pod" in flow.metadata["kube"]:
            return True
        request = flow.request if isinstance(flow, http.HTTPFlow) else None
        return request is not None and self._upstreams.is_settled(flow.client_conn, (request.host, request.port))

    def _of(self, text: str) -> ServiceTraffic:
        """By a full name that was found."""
        found = self._of_name.get(text)
        if found is None:
            if len(self._of_name) >= _MAX_NAMES:
                self._of_name.clear()
            name = self._router.known_name(text)
            found = self._of_name[text] = self._traffic.of(key_of(name) if name else UNKNOWN_KEY)
        return found


def _host(flow: http.HTTPFlow | tcp.TCPFlow) -> str:
    if isinstance(flow, http.HTTPFlow):
        return flow.request.pretty_host
    return flow.server_conn.address[0] if flow.server_conn.address else ""


def _field(response: http.Response, name: str) -> str:
    """Of the trailers, else of the head."""
    if response.trailers and name in response.trailers:
        return str(response.trailers[name])
    return str(response.headers.get(name, ""))


def _grpc_code(response: http.Response) -> str:
    code = _field(response, "grpc-status") or "2"
    return code if code in _GRPC_CODES else "other"


def _size_bytes(message: http.Message) -> int:
    """Of the body: as it passed, was kept, or was announced."""
    passed = getattr(message.stream, "passed_bytes", None)  # bodies.BodyCopy
    if passed is not None:
        return int(passed)
    if message.raw_content is not None:
        return len(message.raw_content)
    with suppress(ValueError):
        return max(0, int(message.headers.get("content-length", "0")))
    return 0
