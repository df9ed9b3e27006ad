"""WebSocket connections that end as they did: mitmproxy tells a lost one as one that was closed in order, code 1000."""

from __future__ import annotations

import time

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketLayer
from wsproto.frame_protocol import CloseReason


class KubeWebsocketLayer(WebsocketLayer):
    """A side that is lost without a Close frame ends the other without one (RFC 6455 section 7.1.5: code 1006)."""

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            yield from self._lost(from_client=event.connection == self.context.client)
        else:
            yield from super().relay_messages(event)

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
