"""What a flow tells in mitmproxy and mitmweb: the Service as its host, the pod that answered as its comment.

`flow.metadata["kube"]` has the same and more as plain data, so that a recording tells it without this addon.
"""

from __future__ import annotations

from weakref import WeakSet

from mitmproxy import http, tcp
from mitmproxy.connection import Connection

from kubetunnel.proxy.refusals import error_of_answer
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Opened, Upstreams

REFUSED = ":no_entry:"  # the marker


class Shown:
    """Writes where a flow went into its comment and its metadata, or was to go where it was refused."""

    name = "kubetunnel_shown"

    def __init__(self, router: Router, upstreams: Upstreams) -> None:
        self._router = router
        self._upstreams = upstreams
        self._seen: WeakSet[Connection] = WeakSet()  # upstreams whose opening was told of with an earlier flow

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if not flow.live:
            return  # read from a file: it shows already where it went
        self._show(flow)
        _show_refusal(flow)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.live:
            _show_refusal(flow)  # of a gRPC call that failed half-way

    def error(self, flow: http.HTTPFlow) -> None:
        if flow.live and not flow.response:
            self._show(flow)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self._show(flow)
        address = flow.server_conn.address
        if "kube" in flow.metadata or not address or not self._upstreams.is_ours(flow.client_conn, address[0]):
            return
        if name := self._router.known_name(address[0]):
            flow.metadata["kube"] = self._router.asked_for(name, address[1])

    def _show(self, flow: http.HTTPFlow | tcp.TCPFlow) -> None:
        opened = self._upstreams.opened(flow.server_conn) if flow.server_conn else None
        if opened is None:
            return
        reused = flow.server_conn in self._seen
        self._seen.add(flow.server_conn)
        flow.metadata["kube"] = _facts(opened, reused=reused)
        flow.comment = _comment(opened, reused=reused)


def _facts(opened: Opened, *, reused: bool) -> dict[str, str | int | float | bool]:
    target = opened.target
    pod_port, endpoint = target.pod_port, target.endpoint
    return {
        "service": str(opened.destination.name),
        "port": opened.destination.port,
        "context": opened.destination.session.access.context,
        "namespace": pod_port.namespace,
        "pod": pod_port.pod,
        "pod_port": pod_port.port,
        "pod_address": pod_port.address,
        "node": endpoint.node,
        "zone": endpoint.zone,
        "retries": opened.retries,
        "forward_ms": round(opened.setup_s * 1000, 1),
        "reused": reused,
    }


def _comment(opened: Opened, *, reused: bool) -> str:
    """`pod:port · zone · retries · forward time`"""
    pod_port, retries = opened.target.pod_port, opened.retries
    parts = [f"{pod_port.pod}:{pod_port.port}", opened.target.endpoint.zone]
    if retries:
        parts.append("1 retry" if retries == 1 else f"{retries} retries")
    parts.append("reused" if reused else f"{opened.setup_s * 1000:.1f} ms")
    return " · ".join(filter(None, parts))


def _show_refusal(flow: http.HTTPFlow) -> None:
    error = error_of_answer(flow.response) if flow.response else None
    if error is not None:
        flow.marked = REFUSED
        flow.metadata["kube"] = {**flow.metadata.get("kube", {}), "reason": error.reason}
        if not flow.comment.endswith(error.reason):
            flow.comment = " · ".join(filter(None, [flow.comment, error.reason]))
