"""Web pages that reach for a Service by a name of their own: DNS rebinding.

A page of `evil.example` whose name is made to resolve to a virtual IP, which everybody can work out, is for the browser
of the same origin as the Service there: it may read the answers. The tunnel's port is 127.0.0.1's, and there the Host
tells the Service, so that `api.shop` and `api.dev`, short forms of Services, do the same: such domains can be
registered. What gives the page away is the Host, which it cannot change (Fetch standard 2.2.2, forbidden
request-headers). Programs are another matter: `curl -H 'Host: shop.example'` is how a virtual host behind an ingress is
asked for. So a foreign Host is refused to browsers alone, which are known by header fields that they send and that a
page cannot take away all together: Accept-Language (Fetch standard 4.5), Origin, Referer, Sec-Fetch-… (Fetch Metadata),
Upgrade-Insecure-Requests (its standard, 3.2.1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import is_address, split_host_port

_BROWSERS_FIELDS = ("accept-language", "origin", "referer", "upgrade-insecure-requests")
_BROWSERS_PREFIX = "sec-fetch-"


def foreign_host(host: str, fields: Iterable[str], *, zones: Collection[str], own: Collection[str]) -> str | None:
    """The host of a page that may be a stranger's; None for a program's request, and where the host cannot be foreign.

    Args:
        host: the Host header or `:authority`; may be empty.
        fields: the names of the request's header fields.
        zones: the clusters' DNS zones.
        own: hosts that the user vouches for; `*.shop.example` for all below `shop.example`.

    Returns:
        It is without its port, in lower case, and may be anything that a client can write.
    """
    lowered = [field.lower() for field in fields]
    if not any(field in _BROWSERS_FIELDS or field.startswith(_BROWSERS_PREFIX) for field in lowered):
        return None
    bare = _bare(host)
    if _cannot_be_foreign(bare, zones) or any(_fits(bare, pattern.lower()) for pattern in own):
        return None
    return bare


def _bare(host: str) -> str:
    try:
        bare, _ = split_host_port(host)
    except NotAServiceName:
        bare = host
    return bare.lower().removesuffix(".")


def _cannot_be_foreign(host: str, zones: Collection[str]) -> bool:
    """Nobody else can have this name: it has no dot, is an address, or in a cluster's zone. `svc` is no domain."""
    labels = host.split(".")
    if len(labels) == 1 or labels[-1] == "svc" or is_address(host.strip("[]")):
        return True
    return any(f".{host}".endswith(f".{zone.lower().removesuffix('.')}") for zone in zones)


def _fits(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
