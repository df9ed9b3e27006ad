"""Waits for the first bytes of a connection and asks the `next_layer` hook when they tell what is spoken.

mitmproxy's own layer asks at every packet, wants an answer at each, and ends a connection whose client sends nothing
more. Here a request may be cut at any byte, and where the destination is known a connection is relayed raw as soon as
nothing else is left: the server speaks first, a side has finished, or nothing follows an undecided beginning.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from kubetunnel.core.first_bytes import Protocol, recognise

# The head of an HTTP/2 SETTINGS frame behind its length (RFC 9113 sections 4.1, 6.5). A server sends one first, maybe
# before it has heard anything (section 3.4), and it waits for a client all the same
_SETTINGS = b"\x04\x00\x00\x00\x00\x00"
_LENGTH_BYTES = 3

# after an undecided beginning such as "G"; long for a client that has more to send, short for one that awaits an answer
SILENCE_S = 1.0


class FirstBytesLayer(layer.NextLayer):
    """A `NextLayer` that asks once. `protocol` is what was recognised, set when the hook is asked.

    Args:
        silence_s: where the destination is known, undecided bytes followed by none for so long are raw.
    """

    protocol: Protocol | None = None

    def __init__(self, context: Context, silence_s: float = SILENCE_S) -> None:
        super().__init__(context)
        self._silence_s = silence_s
        self._timer: commands.RequestWakeup | None = None
        self._events_before_timer = 0

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._timer:
            self._timer = None
            if not self.layer:
                yield from self._silent()
        elif self.layer:
            yield from self.layer.handle_event(event)
        else:
            self.events.append(event)
            yield from self._look(event)

    def _look(self, event: events.Event) -> layer.CommandGenerator[None]:
        known = self.context.server.address is not None
        client_closed = isinstance(event, events.ConnectionClosed) and event.connection == self.context.client
        protocol: Protocol | None
        if known and (client_closed or self._server_speaks_first()):
            protocol = Protocol.RAW
        elif client_closed:
            yield commands.CloseConnection(self.context.client)
            return
        else:
            protocol = recognise(self.data_client(), destination_known=known)
        if protocol is not None:
            yield from self._decide(protocol)
        elif known and (not isinstance(event, events.Start) or self.context.server.error):
            # with an error: nobody speaks first any more, and a client that waits for it is told so
            yield from self._await_silence()

    def _server_speaks_first(self) -> bool:
        said = self.data_server()
        head = said[_LENGTH_BYTES:][: len(_SETTINGS)]
        # 43 settings and more have a longer length; seven are defined
        return bool(said) and not (b"\0\0".startswith(said[:2]) and _SETTINGS.startswith(head))

    def _await_silence(self) -> layer.CommandGenerator[None]:
        # also after a server that closed unheard: a client that is about to ask by HTTP gets an answer for that
        if self._timer is None:
            self._events_before_timer = len(self.events)
            self._timer = commands.RequestWakeup(self._silence_s)
            yield self._timer

    def _silent(self) -> layer.CommandGenerator[None]:
        if len(self.events) > self._events_before_timer:
            yield from self._await_silence()
        else:
            yield from self._decide(Protocol.RAW)

    def _decide(self, protocol: Protocol) -> layer.CommandGenerator[None]:
        self.protocol = protocol
        yield from self._ask()

    def _ask(self) -> layer.CommandGenerator[None]:
        # stays in between, unlike the base class: a wakeup of ours may still come, which the next layer would not know
        yield layer.NextLayerHook(self)
        if self.layer:
            for event in self.events:
                yield from self.layer.handle_event(event)
            self.events.clear()
