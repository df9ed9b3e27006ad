"""What is known of a raw connection's bytes, and how its flow shows it.

mitmproxy keeps every packet of a TCP flow as a message and tells all addons of it. Here a flow keeps its first
messages, for inspection, and a count of the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import flow
from mitmproxy.tcp import TCPFlow, TCPMessage
from mitmproxy.utils import human

from kubetunnel.core.errors import KubeTunnelError

MAX_KEPT_BYTES = 1 << 16  # of each direction
MAX_KEPT_MESSAGES = 256  # of both


class Traffic:
    """The bytes of one raw connection.

    `on_client_done` is called when the client has finished sending; what the pod then still sends is passed on.
    """

    def __init__(self, tcp_flow: TCPFlow) -> None:
        self.flow = tcp_flow
        self.up_bytes = 0
        self.down_bytes = 0
        self.client_done = False
        self.on_client_done: Callable[[], None] | None = None
        self._text = ""

    def finish_client(self) -> None:
        """The client sends no more."""
        self.client_done = True
        if self.on_client_done is not None:
            self.on_client_done()

    @property
    def total_bytes(self) -> int:
        return self.up_bytes + self.down_bytes

    def add(self, from_client: bool, data: bytes) -> None:
        """Counts bytes that are passed on."""
        if from_client:
            before = self.up_bytes
            self.up_bytes = before + len(data)
        else:
            before = self.down_bytes
            self.down_bytes = before + len(data)
        if before < MAX_KEPT_BYTES and len(self.flow.messages) < MAX_KEPT_MESSAGES:
            self.flow.messages.append(TCPMessage(from_client, bytes(data[: MAX_KEPT_BYTES - before])))

    def show(self) -> bool:
        """Writes the counts into the flow's comment and metadata; whether they were others before."""
        text = f"{human.pretty_size(self.up_bytes)} up, {human.pretty_size(self.down_bytes)} down"
        known = self.flow.metadata.get("kube", {})
        counts = {"up_bytes": self.up_bytes, "down_bytes": self.down_bytes}
        if self._text and known.items() >= counts.items():
            return False
        comment = self.flow.comment.removesuffix(self._text).removesuffix(" · ")
        self.flow.comment = " · ".join(filter(None, [comment, text]))
        self.flow.metadata["kube"] = {**known, **counts}
        self._text = text
        return True


def mark_failed(tcp_flow: TCPFlow, failure: KubeTunnelError | str) -> None:
    """Shows why the connection did not come about, or ended early."""
    tcp_flow.error = flow.Error(str(failure))
    if isinstance(failure, KubeTunnelError):
        tcp_flow.marked = ":no_entry:"
        tcp_flow.metadata["kube"] = {**tcp_flow.metadata.get("kube", {}), "reason": failure.reason}
        tcp_flow.comment = " · ".join(filter(None, [tcp_flow.comment, failure.reason]))
