"""Who may ask what of the tunnel's own pages (the contract's section 11).

Whoever can send requests to the port uses the cluster with the user's rights anyway; what is guarded against are web
pages of other origins, which a browser lets send requests here: the Host is one of our own names already (DNS
rebinding), a foreign Origin is refused, and what changes something needs a token that such a page cannot know, and the
Origin that browsers add (OWASP Cross-Site Request Forgery Prevention Cheat Sheet).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address

from mitmproxy import http
from mitmproxy.connection import Client

from kubetunnel.observe.replies import Refused

TOKEN_HEADER = "X-Kube-Tunnel-Token"  # noqa: S105 - its name
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_TOKEN_BYTES = 24


class Guard:
    """Checks requests.

    Args:
        token: what unsafe methods need; by default another one at each start.
        open_to_others: whether other machines may see everything without the token. Else they see what
            monitoring needs, and the dashboard's files, which hold no data.
        permits: whether a request has the credentials that the proxy asks for, if it asks for any.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        open_to_others: bool = False,
        permits: Callable[[http.Request], bool] = lambda request: True,
    ) -> None:
        self._permits = permits
        self.token = token or secrets.token_urlsafe(_TOKEN_BYTES)
        self._open_to_others = open_to_others

    def check(self, client: Client, request: http.Request, *, is_public: bool, is_probe: bool = False) -> None:
        """Raises Refused.

        Args:
            is_public: what is asked for is for other machines, too.
            is_probe: and for who has no credentials: /health, which tells them one word.
        """
        if not is_probe and not self._permits(request):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "This tunnel asks for credentials.",
                reason="Unauthenticated",
                headers={"WWW-Authenticate": 'Basic realm="kube-tunnel"'},
            )
        own_origin = f"{request.scheme or 'http'}://{request.host_header or request.authority}".lower()
        if client.tls:
            own_origin = own_origin.replace("http://", "https://", 1)
        origin = request.headers.get("origin")
        is_safe = request.method in SAFE_METHODS
        if origin is not None and origin.lower() != own_origin:
            raise _forbidden("ForeignOrigin", f"The Origin of the request is not {own_origin}.")
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_public:
            raise _forbidden("ForeignOrigin", "Another site's page asks.")
        has_token = self._has_token(request)
        if not is_safe and not has_token and request.headers.get(TOKEN_HEADER):
            raise _forbidden(
                "TokenWrong", "This is not the token of this tunnel, which makes another one at each start."
            )
        if not is_safe and not has_token:
            raise _forbidden(
                "TokenMissing",
                f"What changes something needs the header {TOKEN_HEADER}, with the token of the dashboard's URL that "
                "was logged at the start.",
            )
        if not is_safe and origin is None:
            raise _forbidden("OriginMissing", f"What changes something needs an Origin: -H 'Origin: {own_origin}'.")
        if not (is_public or self.shows_all(client, request)):
            raise _forbidden(
                "TokenMissing",
                f"Other machines are answered /health and /metrics. For the rest, send the token as {TOKEN_HEADER}.",
            )

    def shows_all(self, client: Client, request: http.Request) -> bool:
        """Whether this client may see more than what is public."""
        trusted = self._has_token(request) or self._open_to_others or is_of_this_machine(client)
        return trusted and self._permits(request)

    def _has_token(self, request: http.Request) -> bool:
        given = request.headers.get(TOKEN_HEADER, "")
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self.token.encode())


def is_of_this_machine(client: Client) -> bool:
    """Whether the client is a program of this machine."""
    peer = str(client.peername[0])
    try:
        return ip_address(peer.partition("%")[0]).is_loopback or peer == client.sockname[0]
    except ValueError:
        return False


def _forbidden(reason: str, detail: str) -> Refused:
    return Refused(HTTPStatus.FORBIDDEN, detail, reason=reason)
