"""The lowest layer of a connection of the `kube` mode.

Where the destination is known by the address that the client connected to, the pod's port is opened before it is known
what is spoken there: a server may speak first. HTTP clients never wait for that, and HTTP has upstreams of its own,
shared and kept; so who sends a request at once, as HTTP clients do, has none opened here.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from kubetunnel.core.first_bytes import Protocol, recognise
from kubetunnel.proxy.destination import OpenForClient, needs_pod
from kubetunnel.proxy.first_bytes import FirstBytesLayer

# for a client on this machine to send its first bytes; what a server that speaks first is late by
REQUEST_DELAY_S = 0.005


class KubeConnection(layer.Layer):
    """Opens what is known to be wanted, and hands on to a `FirstBytesLayer`.

    Why it did not open is told by the layers above, which know how.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._first_bytes = FirstBytesLayer(context)
        self._held: list[events.Event] = []
        self._timer: commands.RequestWakeup | None = None
        self._waits = True

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._timer:
            if self._waits:
                yield from self._open()
        elif not self._waits:
            yield from self._first_bytes.handle_event(event)
        else:
            self._held.append(event)
            yield from self._look(event)

    def _look(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.context.server.address is None or not needs_pod(self.context):
            yield from self._hand_on()
        elif isinstance(event, events.Start):
            self._timer = commands.RequestWakeup(REQUEST_DELAY_S)
            yield self._timer
        elif isinstance(event, events.DataReceived) and _is_request(event.data):
            yield from self._hand_on()
        else:
            yield from self._open()

    def _open(self) -> layer.CommandGenerator[None]:
        yield OpenForClient(self.context.server)
        yield from self._hand_on()

    def _hand_on(self) -> layer.CommandGenerator[None]:
        self._waits = False
        for event in self._held:
            yield from self._first_bytes.handle_event(event)
        self._held.clear()


def _is_request(data: bytes) -> bool:
    return recognise(data, destination_known=True) in (Protocol.HTTP1, Protocol.HTTP2)
