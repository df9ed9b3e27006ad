"""What a flow tells in mitmproxy and mitmweb: the Service as its host, the pod that answered as its comment."""

from __future__ import annotations

from mitmproxy import http, tcp

from kubetunnel.proxy.refusals import ERROR_HEADER
from kubetunnel.proxy.upstreams import Upstreams


class Shown:
    """Writes where a flow went into its comment and its metadata."""

    name = "kubetunnel_shown"

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if not flow.live:
            return  # read from a file: it shows already where it went
        self._show(flow)
        if flow.response and (reason := flow.response.headers.get(ERROR_HEADER)):
            flow.marked = ":no_entry:"
            flow.comment = " · ".join(filter(None, [flow.comment, reason]))

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self._show(flow)

    def _show(self, flow: http.HTTPFlow | tcp.TCPFlow) -> None:
        opened = self._upstreams.opened(flow.server_conn) if flow.server_conn else None
        if opened is None:
            return
        target = opened.upstream.target
        flow.metadata["kube"] = {
            "service": str(opened.destination.name),
            "port": opened.destination.port,
            "pod": target.pod_port.pod,
            "namespace": target.pod_port.namespace,
            "pod_port": target.pod_port.port,
            "retries": opened.upstream.retries,
            "forward_ms": round(opened.setup_s * 1000, 1),
        }
        parts = [f"{target.pod_port.pod}:{target.pod_port.port}", target.endpoint.zone]
        parts += [f"{opened.upstream.retries} retries"] if opened.upstream.retries else []
        flow.comment = " · ".join([*filter(None, parts), f"{opened.setup_s * 1000:.1f} ms"])
