"""WebSocket connections that end as they did, and do not keep all of their messages.

mitmproxy tells a lost connection as one that was closed in order, code 1000; and a flow of its has every message that
ever passed.
"""

from __future__ import annotations

import time
from collections import deque

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketLayer
from wsproto.frame_protocol import CloseReason

# of one connection, the newest; a message that is longer than all of them together is shown while it passes
MAX_KEPT_BYTES = 1 << 20
MAX_KEPT_MESSAGES = 256


class KubeWebsocketLayer(WebsocketLayer):
    """A side that is lost without a Close frame ends the other without one (RFC 6455 section 7.1.5: code 1006)."""

    def __init__(self, context: Context, flow: http.HTTPFlow) -> None:
        super().__init__(context, flow)
        self._sizes: deque[int] = deque()  # of the messages that the flow has
        self._kept_bytes = 0
        self._dropped = 0
        self._text = ""

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            yield from self._lost(from_client=event.connection == self.context.client)
        else:
            yield from super().relay_messages(event)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        data = self.flow.websocket
        assert data  # noqa: S101 - tells the type checker what the state guarantees
        for message in data.messages[len(self._sizes) :]:
            self._sizes.append(len(message.content))
            self._kept_bytes += len(message.content)
        surplus = 0
        while self._kept_bytes > MAX_KEPT_BYTES or len(self._sizes) > MAX_KEPT_MESSAGES:
            self._kept_bytes -= self._sizes.popleft()
            surplus += 1
        if surplus:
            del data.messages[:surplus]
            self._dropped += surplus
            self._show_dropped()

    def _show_dropped(self) -> None:
        text = f"{self._dropped} older messages not kept"
        comment = self.flow.comment.removesuffix(self._text).removesuffix(" · ")
        self.flow.comment = " · ".join(filter(None, [comment, text]))
        self._text = text

    def _lost(self, *, from_client: bool) -> layer.CommandGenerator[None]:
        data = self.flow.websocket
        assert data  # noqa: S101 - tells the type checker what the state guarantees
        data.timestamp_end = time.time()
        data.closed_by_client = from_client
        data.close_code = CloseReason.ABNORMAL_CLOSURE
        for connection in (self.context.server, self.context.client):
            yield commands.CloseConnection(connection)
        yield WebsocketEndHook(self.flow)
        self.flow.live = False
        self._handle_event = self.done
