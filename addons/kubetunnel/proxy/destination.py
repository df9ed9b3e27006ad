"""Opens what a client asked for by a virtual IP, SOCKS5 or CONNECT, before anybody knows what will be spoken to it.

It is opened first, so that the client learns at once of a refusal, and a server that speaks first can.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.context import Context

from kubetunnel.core.errors import KubeTunnelError, UpstreamProtocol
from kubetunnel.proxy.http.failures import Failures


class OpenForClient(commands.OpenConnection):
    """Opens an upstream that its client asked for itself, one for one: the bounds of what HTTP opens do not hold."""


class OpenUntilConnected(OpenForClient):
    """Opens an upstream whose client is told whether it is connected: it completes when the pod's port has taken it."""


def needs_pod(context: Context) -> bool:
    """Whether a destination is to be opened before it is known what for: recorded answers need no pod."""
    return not ("server_replay" in context.options and context.options.server_replay)


def open_asked_for(context: Context, failures: Failures) -> layer.CommandGenerator[KubeTunnelError | None]:
    """As `open_destination`, for SOCKS5 and CONNECT, which answer with success or the reason of a failure.

    Where it is not needed, the layer that does need it opens it.
    """
    if not needs_pod(context):
        return None
    return (yield from open_destination(context, failures, command=OpenUntilConnected))


def open_destination(
    context: Context, failures: Failures, *, command: type[OpenForClient] = OpenForClient
) -> layer.CommandGenerator[KubeTunnelError | None]:
    """Opens `context.server`, whose address is set. Part of a layer: `error = yield from open_destination(…)`.

    Returns:
        why it did not open; None where it did.
    """
    address = context.server.address
    if address is None:
        raise ValueError("there is no destination to open")
    message: str | None = yield command(context.server)
    if message is None:
        return None
    return failures.open_error(context.server) or UpstreamProtocol(f"{address[0]}:{address[1]}: {message}.")
