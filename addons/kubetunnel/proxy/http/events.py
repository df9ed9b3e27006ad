"""What the parts of our HTTP layer tell each other beyond mitmproxy's own events and commands.

Events go from a connection to an exchange or back; commands go up to `KubeHttpLayer`, which answers or passes them on.
"""

from __future__ import annotations

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.net.server_spec import ServerSpec
from mitmproxy.proxy import events
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.layers.http import _base as base
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError

from kubetunnel.core.errors import KubeTunnelError


def never() -> bool:
    """The tunnel does not end, where nobody says otherwise."""
    return False


@dataclass
class InformationalResponse(base.HttpEvent):
    """A 1xx response; the final one is still to come (RFC 9110 section 15.2)."""

    response: http.Response


@dataclass
class DeadlinePassed(base.HttpEvent):
    """The time for the response's headers, or for more of it, is over."""


@dataclass
class NothingTaken(base.HttpEvent):
    """The pod has taken nothing more of the request for too long."""


@dataclass(eq=False)
class OverdueCall:
    """A gRPC call that brought no deadline, and whose response has not begun when ours passes.

    `is_stream` is for who knows the method: its server streams, and may have nothing to say yet.
    """

    flow: http.HTTPFlow
    is_stream: bool = False


@dataclass
class KubeCallOverdueHook(StartHook):
    """Asks what is known of the call before it is cut."""

    call: OverdueCall


@dataclass
class Throttle(base.HttpEvent):
    """To the connection that a body comes from: take no more of it for now, or go on."""

    paused: bool


class UpstreamFailed(ResponseProtocolError):  # noqa: N818 - an event, no exception
    """The upstream did not answer as it should.

    Args:
        ended: the connection ended, in contrast to what is no HTTP.
        answered: some of an answer came already.
        unprocessed: the upstream said that it has done nothing for this request (RFC 9113 section 8.7).
        h2_error: the code of its RST_STREAM.
        silent_in_h2: it was spoken to in HTTP/2, and has never said anything in it (no SETTINGS).
    """

    def __init__(
        self,
        stream_id: int,
        message: str,
        code: ErrorCode = ErrorCode.GENERIC_SERVER_ERROR,
        *,
        ended: bool = False,
        answered: bool = False,
        unprocessed: bool = False,
        h2_error: int | None = None,
        silent_in_h2: bool = False,
    ) -> None:
        super().__init__(stream_id, message, code)
        self.ended = ended
        self.answered = answered
        self.unprocessed = unprocessed
        self.h2_error = h2_error
        self.silent_in_h2 = silent_in_h2


@dataclass(frozen=True, slots=True)
class Origin:
    """What makes upstreams exchangeable: any of the same origin serves a request to it."""

    address: tuple[str, int]
    tls: bool
    via: ServerSpec | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """An upstream for one exchange. `reused`: it has carried others before, so it may be stale."""

    connection: Server
    reused: bool


@dataclass(eq=False)
class GetUpstream(base.HttpCommand):
    """Asks for an upstream; the reply is a `Lease`, or why there is none.

    Args:
        fresh: none that was used already when this was asked.
        small: the request has little to send, or nothing.
        from_http2: the client speaks HTTP/2, so the pod may be asked for it.
        delay_s: to wait before it is asked for.
        once: it cannot be sent again, whatever becomes of it.
    """

    origin: Origin
    fresh: bool = False
    small: bool = False
    from_http2: bool = False
    delay_s: float = 0.0
    once: bool = False
    blocking = True


@dataclass(repr=False)
class GetUpstreamCompleted(events.CommandCompleted):
    """The reply."""

    command: GetUpstream
    reply: Lease | KubeTunnelError


@dataclass
class UpstreamFree(base.HttpCommand):
    """This HTTP/1 upstream can take another request; this HTTP/2 upstream has none."""

    connection: Server


@dataclass
class UpstreamDraining(base.HttpCommand):
    """This HTTP/2 upstream takes no more requests; those that it has go on."""

    connection: Server


@dataclass
class AwaitResponse(base.HttpCommand):
    """Sets the exchange's deadline for response headers, in seconds from now; None takes it back.

    `silence`: it is for the rest of the response, and passes when nothing came of the upstream for so long.
    """

    stream_id: int
    timeout_s: float | None
    silence: bool = False


@dataclass
class Congested(base.HttpCommand):
    """More of a stream's body waits here than the peer takes (or no longer)."""

    stream_id: int
    connection: Connection
    congested: bool


@dataclass
class Abort(base.HttpCommand):
    """Ends the client's connection as a failure: in order, it would be the end of a body that has no other."""

    connection: Connection
