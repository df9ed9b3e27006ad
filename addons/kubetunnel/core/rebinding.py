"""Web pages that reach for a Service by a name of their own: DNS rebinding at a virtual IP.

A virtual IP says by itself which Service is meant, and a hash gives it, so that everybody can work it out. A page of
`evil.example` whose name is made to resolve to it is, for the browser, of the same origin as the Service: it may read
the answers. What gives it away is the Host, which no page can change (Fetch standard 2.2.2, forbidden request-headers).
Programs are another matter: `curl -H 'Host: shop.example'` is how a virtual host behind an ingress is asked for. So a
foreign Host is refused to browsers alone, which are known by header fields that they send with each request and that a
page cannot take away: Accept-Language (Fetch standard 4.5), Origin, Sec-Fetch-… (Fetch Metadata).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import Name, split_host_port

_BROWSERS_FIELDS = ("accept-language", "origin")
_BROWSERS_PREFIX = "sec-fetch-"


def check_host(host: str, fields: Iterable[str], name: Name, *, zones: Collection[str], own: Collection[str]) -> None:
    """Refuses a page's request for a Service by a name that is not the Service's.

    Args:
        host: the Host header or `:authority`; may be empty.
        fields: the names of the request's header fields.
        name: what the virtual IP stands for.
        zones: the clusters' DNS zones.
        own: hosts that the user vouches for; `*.shop.example` for all below `shop.example`.

    Raises:
        NotAServiceName
    """
    lowered = [field.lower() for field in fields]
    if not any(field in _BROWSERS_FIELDS or field.startswith(_BROWSERS_PREFIX) for field in lowered):
        return
    bare = _bare(host)
    if _cannot_be_foreign(bare, name, zones) or any(_fits(bare, pattern.lower()) for pattern in own):
        return
    raise NotAServiceName(
        f"A web page of {bare} asks for {name} at its virtual IP. That is what an attack by DNS rebinding looks like; "
        f"if {bare} is yours, say so: http.hosts.",
        command=f"kube-tunnel --set kube_hosts={bare}",
    )


def _bare(host: str) -> str:
    try:
        bare, _ = split_host_port(host)
    except NotAServiceName:
        bare = host
    return bare.lower().removesuffix(".")


def _cannot_be_foreign(host: str, name: Name, zones: Collection[str]) -> bool:
    """Nobody else can have this name: it has no dot, is an address, a short form of the name or in a cluster's zone."""
    labels = host.split(".")
    if len(labels) == 1 or labels[-1] == "svc" or _is_address(host):
        return True
    short = str(name).removesuffix(f".svc.{name.zone}")
    return host == short or any(f".{host}".endswith(f".{zone.lower()}") for zone in zones)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _fits(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
