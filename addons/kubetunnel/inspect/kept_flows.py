"""Bounds what mitmweb and mitmproxy keep: they hold every flow for ever, and a tunnel runs for weeks.

Only what came through the tunnel counts; flows that were read from a file are there because somebody asked for them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Protocol

from mitmproxy import ctx, http, tcp
from mitmproxy.flow import Flow

logger = logging.getLogger(__name__)

KEEP_FLOWS = 5000
KEEP_BYTES = 256 << 20
# of a flow without bodies, measured in mitmweb: 4 KiB where flows share a connection, 10 where each has its own
FLOW_BYTES = 10 << 10


class FlowView(Protocol):
    """What is needed of mitmproxy's `View`."""

    sig_store_remove: Any
    sig_store_refresh: Any

    def remove(self, flows: list[Flow]) -> None: ...
    def get_by_id(self, flow_id: str) -> Flow | None: ...


class KeptFlows:
    """Removes finished flows, the first finished first, from the view; never one that is live or intercepted.

    Args:
        keep_flows: finished flows that are kept.
        keep_bytes: their size, roughly: bodies and messages, and a constant for each flow.
    """

    name = "kubetunnel_kept_flows"

    def __init__(self, *, keep_flows: int = KEEP_FLOWS, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_flows = keep_flows
        self.keep_bytes = keep_bytes
        self.bytes = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by the flows' ids, in the order of their ends
        self._view: FlowView | None = None
        self._told = False

    def __len__(self) -> int:
        return len(self._sizes)

    def configure_limits(self, *, keep_flows: int, keep_bytes: int) -> None:
        """Takes other limits, at once."""
        self.keep_flows, self.keep_bytes = keep_flows, keep_bytes
        self._trim()

    def running(self) -> None:
        addons: Any = ctx.master.addons
        self.watch(addons.get("view"))

    def watch(self, view: FlowView | None) -> None:
        """From now on, bounds this view; None: there is none, and nobody keeps flows."""
        self._view = view
        if view is not None:
            view.sig_store_remove.connect(self._removed)
            view.sig_store_refresh.connect(self._refreshed)

    def done(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            view.sig_store_remove.disconnect(self._removed)
            view.sig_store_refresh.disconnect(self._refreshed)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.websocket is None:
            self._finished(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self._finished(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self._finished(flow)

    def tcp_end(self, flow: tcp.TCPFlow) -> None:
        self._finished(flow)

    def tcp_error(self, flow: tcp.TCPFlow) -> None:
        self._finished(flow)

    def _finished(self, flow: Flow) -> None:
        if self._view is None or not (flow.live or flow.id in self._sizes):
            return  # read from a file
        self._forget(flow.id)  # replayed: it ends once more, and may be longer
        size = FLOW_BYTES + _content_bytes(flow)
        self._sizes[flow.id] = size
        self.bytes += size
        self._trim()

    def _trim(self) -> None:
        view = self._view
        if view is None:
            return
        for flow_id in self._victims(view):
            flow = view.get_by_id(flow_id)
            if flow is not None:
                view.remove([flow])  # one at a time: of several it logs a line
            self._forget(flow_id)
            if not self._told:
                self._told = True
                logger.info("Older flows are not kept: inspect.keep_flows, inspect.keep_bytes.")

    def _victims(self, view: FlowView) -> list[str]:
        """What has to go. The flow whose end this is about is still live, and has its turn at the next one's."""
        victims: list[str] = []
        excess_flows, excess_bytes = len(self._sizes) - self.keep_flows, self.bytes - self.keep_bytes
        for flow_id, size in self._sizes.items():
            if excess_flows <= 0 and excess_bytes <= 0:
                break
            flow = view.get_by_id(flow_id)
            if flow is None or not (flow.live or flow.intercepted):
                victims.append(flow_id)
                excess_flows -= 1
                excess_bytes -= size
        return victims

    def _forget(self, flow_id: str) -> None:
        self.bytes -= self._sizes.pop(flow_id, 0)

    def _removed(self, flow: Flow) -> None:
        self._forget(flow.id)

    def _refreshed(self) -> None:
        """The user cleared the view, or most of it."""
        for flow_id in [each for each in self._sizes if self._view is None or self._view.get_by_id(each) is None]:
            self._forget(flow_id)


def _content_bytes(flow: Flow) -> int:
    if isinstance(flow, tcp.TCPFlow):
        return sum(len(message.content) for message in flow.messages)
    if not isinstance(flow, http.HTTPFlow):
        return 0
    size = sum(len(message.raw_content or b"") for message in (flow.request, flow.response) if message)
    if flow.websocket is not None:
        size += sum(len(message.content) for message in flow.websocket.messages)
    return size
