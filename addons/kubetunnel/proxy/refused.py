"""A connection whose destination could not be opened, and whose client speaks nothing that could be answered."""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.raw.layer import Transports, show_refusal


class RefusedLayer(layer.Layer):
    """Resets the client and shows why.

    Args:
        error: the reason.
        transports: the client's transports.
    """

    def __init__(self, context: Context, error: KubeTunnelError, transports: Transports) -> None:
        super().__init__(context)
        self.error = error
        self.transports = transports

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            self.transports.reset(self.context.client)
            yield from show_refusal(self.context, self.error)
            yield commands.CloseConnection(self.context.client)
