"""What to do about an upstream that failed: send the request again, tell the client what happened, or pass it on."""

from __future__ import annotations

from typing import Protocol

from h2.errors import ErrorCodes
from mitmproxy import http
from mitmproxy.connection import Connection

from kubetunnel.core.errors import KubeTunnelError, UpstreamProtocol, UpstreamReset
from kubetunnel.proxy.http.events import UpstreamFailed
from kubetunnel.proxy.http.repeat import is_idempotent

# an HTTP/2 client knows what to do about these itself
_PASSED_ON = {ErrorCodes.CANCEL, ErrorCodes.REFUSED_STREAM, ErrorCodes.HTTP_1_1_REQUIRED}
_NO_HTTP2 = (
    "If it speaks HTTP/1.1 alone, see http.force_http2, http.disable_fallback, its appProtocol and the name of its "
    "port, or tell: app_protocol=http in `services` (docs/protocols.md)."
)


class Failures(Protocol):
    """Remembers why an upstream failed."""

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        """Why this upstream did not open; None where it is not known."""
        ...

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        """Why this upstream ended, None where it simply closed."""
        ...


def may_repeat(failure: UpstreamFailed, request: http.Request, error: KubeTunnelError | None) -> bool:
    """Whether another upstream may get this request, which had no answer.

    A pod may close a kept-alive connection just when a request comes in, or be killed before it answers; whether it has
    read the request, nobody knows.

    Args:
        error: why the upstream ended; None where it simply closed.
    """
    if failure.unprocessed:
        return True
    # what refused, or timed out, was given its chances when it was opened
    cut = failure.ended and isinstance(error, UpstreamReset | None)
    return cut and not failure.answered and failure.h2_error is None and is_idempotent(request)


def error_of_failure(failure: UpstreamFailed, request: http.Request, *, reused: bool) -> KubeTunnelError | None:
    """What to tell a client that has seen nothing of a response; None where the RST_STREAM is to be passed on."""
    if request.is_http2 and failure.h2_error in _PASSED_ON:
        return None
    where = f"{request.host}:{request.port}"
    if failure.silent_in_h2:
        found = "closed the connection" if failure.ended else f"answered with something else: {failure.message}"
        return UpstreamProtocol(f"{where} was spoken to in HTTP/2 and {found}. {_NO_HTTP2}")
    if not failure.ended:
        return UpstreamProtocol(f"{where} sent what is not HTTP: {failure.message}.")
    if failure.h2_error is not None:
        return UpstreamReset(f"{where} ended the exchange: {failure.message}.")
    if failure.answered:
        return UpstreamReset(f"{where} ended in the middle of its response: {failure.message}.")
    if reused and not is_idempotent(request):
        return UpstreamReset(
            f"{where} closed a connection that it had kept alive, and did not answer. {request.method} is not sent "
            "again: it may have been processed."
        )
    return UpstreamReset(f"{where} closed the connection before it sent a response.")
