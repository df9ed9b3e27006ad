"""WebSocket connections that end as they did, and do not keep all of their messages.

mitmproxy tells a lost connection as one that was closed in order, code 1000; a flow of its has every message that ever
passed; and it holds a message until it is whole, however long, joining its pieces in quadratic time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.websocket import (
    WebsocketConnection,
    WebsocketEndHook,
    WebsocketLayer,
    WebSocketMessageInjected,
)
from wsproto.events import BytesMessage, Event, TextMessage
from wsproto.frame_protocol import CloseReason

# of one connection, the newest; a message that is longer than all of them together is shown while it passes
MAX_KEPT_BYTES = 1 << 20
MAX_KEPT_MESSAGES = 256
MAX_HELD_BYTES = 4 << 20  # of a message; a longer one passes as it comes, and what is shown of it is its end


class KubeWebsocketLayer(WebsocketLayer):
    """A side that is lost without a Close frame ends the other without one (RFC 6455 section 7.1.5: code 1006)."""

    def __init__(self, context: Context, flow: http.HTTPFlow) -> None:
        super().__init__(context, flow)
        self._sizes: deque[int] = deque()  # of the messages that the flow has
        self._kept_bytes = 0
        self._dropped = 0
        self._cut = 0
        self._text = ""
        self._passed_bytes = {True: 0, False: 0}  # of the message that is under way from the client, from the pod
        self._injected: list[WebSocketMessageInjected] = []
        self._texts: set[WebsocketConnection] = set()  # whose latest message is text

    def begin(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.start(event)
        for side in (self.client_ws, self.server_ws):
            side.events = partial(self._noting_texts, side, side.events)

    _handle_event = begin

    def _noting_texts(self, side: WebsocketConnection, events: Callable[[], Iterator[Event]]) -> Generator[Event]:
        for event in events():
            if isinstance(event, TextMessage):
                self._texts.add(side)
            elif isinstance(event, BytesMessage):
                self._texts.discard(side)
            yield event

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            yield from self._lost(from_client=event.connection == self.context.client)
        elif isinstance(event, WebSocketMessageInjected) and self._passed_bytes[event.message.from_client]:
            self._injected.append(event)  # its place is behind the message that has begun to pass
        else:
            yield from super().relay_messages(event)
            if isinstance(event, events.DataReceived) and self.flow.live:
                yield from self._pass_on(from_client=event.connection == self.context.client)
            self._drop_oldest()

    def _pass_on(self, *, from_client: bool) -> layer.CommandGenerator[None]:
        data = self.flow.websocket
        assert data  # noqa: S101 - tells the type checker what the state guarantees
        if any(message.from_client == from_client for message in data.messages[len(self._sizes) :]):
            self._cut += bool(self._passed_bytes[from_client])
            self._passed_bytes[from_client] = 0
            self._show_missing()
            waiting, self._injected = self._injected, []
            for injected in waiting:
                yield from self.relay_messages(injected)
        source, sink = self.client_ws, self.server_ws
        if not from_client:
            source, sink = sink, source
        if sum(map(len, source.frame_buf)) > MAX_HELD_BYTES:
            held = b"".join(source.frame_buf)
            if source in self._texts:
                yield sink.send2(TextMessage(held.decode(), message_finished=False))  # whole characters, as they came
            else:
                yield sink.send2(BytesMessage(held, message_finished=False))
            source.frame_buf = [b""]
            if not self._passed_bytes[from_client]:
                yield commands.Log("A WebSocket message is too long to be held; it passes as it comes.")
            self._passed_bytes[from_client] += len(held)

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
            self._show_missing()

    def _show_missing(self) -> None:
        texts = [f"{self._dropped} older messages not kept"] if self._dropped else []
        if self._cut:
            texts.append(f"{self._cut} long messages shown by their ends")
        text = " · ".join(texts)
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
        self._handle_event = self.done  # type: ignore[method-assign]
