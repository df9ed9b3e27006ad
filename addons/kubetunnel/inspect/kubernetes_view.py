"""The content view "Kubernetes": where a flow went, from its metadata, and what is known of the forward by now."""

from __future__ import annotations

import time
from typing import Any

import yaml
from mitmproxy import contentviews, http
from mitmproxy.contentviews import Contentview, Metadata, SyntaxHighlight

from kubetunnel.inspect import in_use
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.refusals import ERROR_HEADER
from kubetunnel.proxy.shown import REFUSED


class KubernetesView(Contentview):
    """Also of a recording's flows, as far as their metadata tells. Never chosen by itself: bodies are what they are."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    @property
    def name(self) -> str:
        return "Kubernetes"

    @property
    def syntax_highlight(self) -> SyntaxHighlight:
        return "yaml"

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        return -1

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        """YAML, or a sentence for a flow that did not go to a cluster."""
        flow = metadata.flow
        if metadata.tcp_message is not None and flow is not None:
            messages: list[Any] = getattr(flow, "messages", [])
            if messages and metadata.tcp_message is not messages[0]:
                return contentviews.registry["raw"].prettify(data, metadata)  # told once, with the first message
        kube: dict[str, Any] = (flow.metadata.get("kube") if flow else None) or {}
        refused = kube.get("reason") or (_refusal(flow) if isinstance(flow, http.HTTPFlow) else None)
        if not kube and not refused:
            return "# This flow did not go to a cluster."
        shown = _where(kube)
        if kube.get("labels"):
            shown["labels"] = dict(sorted(kube["labels"].items()))
        if "pod" in kube:
            shown["forward"] = self._forward(kube)
        if "up_bytes" in kube:
            shown["bytes"] = {"to the pod": kube["up_bytes"], "from the pod": kube["down_bytes"]}
        if refused:
            shown["refused"] = refused
        text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)
        return text

    def _forward(self, kube: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"set up in": f"{kube['forward_ms']} ms", "retries": kube["retries"]}
        if kube.get("reused"):
            shown["set up in"] += ", for an earlier request"
        facts = in_use.forward_to(self._clusters, kube.get("context", ""), kube["namespace"], kube["pod"])
        if facts is None:
            return shown
        shown |= {
            "now": f"{facts.state} for {_age(time.time() - facts.since)} ({facts.reason.rstrip('.')})",
            "protocol": facts.protocol,
            "upstreams": facts.upstreams,
            "streams": f"{facts.streams} open, {facts.streams_opened} so far",
            "bytes": f"{facts.bytes_sent} sent, {facts.bytes_received} received",
        }
        if facts.last_error:
            shown["last error"] = facts.last_error
        return shown


def _where(kube: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if "service" in kube:
        shown["service"] = f"{kube['service']}:{kube['port']}"
    if kube.get("context"):
        shown["context"] = kube["context"]
    if "pod" in kube:
        shown["pod"] = f"{kube['namespace']}/{kube['pod']}"
        address = f" ({kube['pod_address']})" if kube.get("pod_address") else ""
        shown["port"] = f"{kube['pod_port']}{address}"
    for key in ("node", "zone", "version"):
        if kube.get(key):
            shown[key] = kube[key]
    return shown


def _refusal(flow: http.HTTPFlow) -> str | None:
    """Of a flow that was recorded before its metadata told it."""
    if flow.response is None or flow.marked != REFUSED:
        return None  # the header alone is the pod's
    trailers = flow.response.trailers
    found: str | None = flow.response.headers.get(ERROR_HEADER) or (trailers.get(ERROR_HEADER) if trailers else None)
    return found


def _age(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
