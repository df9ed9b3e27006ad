"""The names of a cluster's Services and Pods: text in, name out.

Grammar: Kubernetes DNS-Based Service Discovery, schema 1.1.0; labels of RFC 1123 2.1 (Service names are RFC 1035 labels
on older servers, which are a subset); SRV names of RFC 2782. A zone is compared whole, so that no foreign name passes
for ours by its beginning or its end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from kubetunnel.core.errors import NotAServiceName

TUNNEL_NAME = "kube-tunnel.internal"  # the tunnel itself; ICANN keeps .internal for private use
MAX_LABEL_CHARS = 63  # RFC 1035 2.3.4
MAX_NAME_CHARS = 253  # RFC 1035 2.3.4: 255 octets on the wire, two of them for the first length and the root

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_PROTOCOL_LABELS = ("_tcp", "_udp", "_sctp")  # core/v1 Protocol
_LIST_SERVICES = "kubectl get services --all-namespaces"
_MAX_QUOTED_CHARS = 80


@dataclass(frozen=True, slots=True)
class ServiceName:
    """`api.shop.svc.cluster.local`"""

    service: str
    namespace: str
    zone: str

    def __str__(self) -> str:
        return f"{self.service}.{self.namespace}.svc.{self.zone}"


@dataclass(frozen=True, slots=True)
class PodName:
    """`db-0.db.shop.svc.cluster.local`: the Pod of a Service whose endpoint hostname is `db-0`."""

    hostname: str
    service: ServiceName

    @property
    def namespace(self) -> str:
        return self.service.namespace

    @property
    def zone(self) -> str:
        return self.service.zone

    def __str__(self) -> str:
        return f"{self.hostname}.{self.service}"


@dataclass(frozen=True, slots=True)
class PodAddressName:
    """`10-244-0-16.shop.pod.cluster.local`"""

    address: IPv4Address | IPv6Address
    namespace: str
    zone: str

    def __str__(self) -> str:
        return f"{dashed(self.address)}.{self.namespace}.pod.{self.zone}"


@dataclass(frozen=True, slots=True)
class SrvName:
    """`_grpc._tcp.api.shop.svc.cluster.local`; `protocol` is `tcp`, `udp` or `sctp`."""

    port_name: str
    protocol: str
    service: ServiceName

    @property
    def namespace(self) -> str:
        return self.service.namespace

    @property
    def zone(self) -> str:
        return self.service.zone

    def __str__(self) -> str:
        return f"_{self.port_name}._{self.protocol}.{self.service}"


type Name = ServiceName | PodName | PodAddressName | SrvName


def parse_name(text: str, *, zones: Collection[str], default_namespace: str, short_forms: bool = True) -> Name:
    """What a host name stands for.

    Args:
        text: the name, in any case, with or without one trailing dot; no port.
        zones: the zones that are ours, at least one; short forms are in the first.
        default_namespace: the Namespace of a name that gives none (`api`). Empty where it is not known yet: such a name
            then comes back with an empty Namespace, to be parsed again when it is.
        short_forms: whether `api.shop.svc`, `api.shop` and `api` are taken.

    Raises:
        NotAServiceName: it is none of ours.
    """
    ours = tuple(zone.lower().removesuffix(".") for zone in zones)
    if not ours:
        raise ValueError("parse_name needs a zone")
    labels = _labels(text, ours[0])
    host = ".".join(labels)
    within = sorted((zone for zone in ours if f".{host}".endswith(f".{zone}")), key=len, reverse=True)
    name: Name | None = None
    for zone in within:
        # of nested zones (example.com, k8s.example.com) the longest one that makes sense of the name
        name = name or _read(labels[: -zone.count(".") - 1], zone, None)
    if name is None and not within and short_forms and host != TUNNEL_NAME:
        name = _read(labels, ours[0], default_namespace)
    if name is None:
        raise _not_a_name(_why_not(host, labels, within, ours))
    if len(str(name)) > MAX_NAME_CHARS:
        raise _not_a_name(f"{_quoted(text)} with its zone is longer than {MAX_NAME_CHARS} characters.")
    return name


def is_address(text: str) -> bool:
    """Whether it is an IP address, without brackets."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def zone_is_valid(zone: str) -> bool:
    """Whether this can be a cluster's DNS zone: labels of RFC 1123, one trailing dot allowed."""
    labels = zone.removesuffix(".").lower().split(".")
    return len(zone) <= MAX_NAME_CHARS and all(len(x) <= MAX_LABEL_CHARS and _LABEL.fullmatch(x) for x in labels)


def split_host_port(authority: str) -> tuple[str, int | None]:
    """The host and the port of a Host header or `:authority` (RFC 9110 7.2, RFC 3986 3.2).

    Args:
        authority: `host`, `host:port`, `host:` (no port), or with an IPv6 address in brackets.

    Returns:
        The host without brackets, in the case it came in, and the port, None where there is none.

    Raises:
        NotAServiceName: no host, a bad port, or brackets around something else than an IPv6 address.
    """
    if "@" in authority:
        raise _not_a_name("A Host has no user name or password in it (RFC 9110 7.2).")
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in host or not is_address(host) or (rest and not rest.startswith(":")):
            raise _not_a_name(f"{_quoted(authority)} is not an IPv6 address in brackets, with or without a port.")
        return host, _port(rest[1:], authority)
    host, _, port = authority.partition(":")
    if ":" in port:
        raise _not_a_name(
            f"{_quoted(authority)} has more than one colon: a Host is name:port, an IPv6 address stands in brackets."
        )
    if not host:
        raise _not_a_name(
            "The request names no host. Give one: SERVICE.NAMESPACE.svc.ZONE in the Host header, in the URL of a proxy "
            "request, or in the SNI.",
        )
    return host, _port(port, authority)


def dashed(address: IPv4Address | IPv6Address) -> str:
    """An address as one label: `10-244-0-16`, `2001-db8--1`. A label has no dash at its ends: `::1` is `0--1`."""
    if isinstance(address, IPv4Address):
        return str(address).replace(".", "-")
    # Python 3.13 writes ::ffff:1.2.3.4 with dots, 3.12 does not
    label = address.packed.hex("-", 2) if address.ipv4_mapped else str(address).replace(":", "-")
    return f"{'0' if label.startswith('-') else ''}{label}{'0' if label.endswith('-') else ''}"


def _labels(text: str, zone: str) -> list[str]:
    """The labels of a well-formed name, lower-case. Only the first two may have the underscore of an SRV name."""
    if not text:
        raise _not_a_name(f"There is no name. Give one: SERVICE.NAMESPACE.svc.{zone}.")
    if is_address(text.removeprefix("[").removesuffix("]")):
        raise _not_a_name(
            f"{_quoted(text)} is an address, not the name of a Service. Give the name, SERVICE.NAMESPACE.svc.{zone}, "
            "in the Host header or in the URL of a proxy request.",
        )
    host = text.removesuffix(".").lower() if text.isascii() else text
    if len(host) > MAX_NAME_CHARS:
        raise _not_a_name(f"{_quoted(text)} is longer than {MAX_NAME_CHARS} characters (RFC 1035 2.3.4).")
    labels = host.split(".")
    srv = len(labels) > 2 and labels[0].startswith("_") and labels[1].startswith("_")
    for position, label in enumerate(labels):
        if not label:
            raise _not_a_name(f"{_quoted(text)} has an empty label.")
        if len(label) > MAX_LABEL_CHARS:
            raise _not_a_name(f"{_quoted(label)} is longer than the {MAX_LABEL_CHARS} characters of a label.")
        if not _LABEL.fullmatch(label[1:] if srv and position < 2 else label):
            raise _not_a_name(
                f"{_quoted(label)} in {_quoted(text)} is not a label of RFC 1123: letters, digits and, "
                "but not at either end, dashes."
            )
    return labels


def _read(labels: Sequence[str], zone: str, default_namespace: str | None) -> Name | None:
    """The name that the labels before a zone make; with a default namespace also the short ones."""
    match labels:
        case [port_name, protocol, *rest] if port_name.startswith("_"):
            name = _read(rest, zone, default_namespace)
            if isinstance(name, ServiceName) and protocol in _PROTOCOL_LABELS:
                return SrvName(port_name[1:], protocol[1:], name)
        case [service, namespace, "svc"]:
            return ServiceName(service, namespace, zone)
        case [hostname, service, namespace, "svc"]:
            return PodName(hostname, ServiceName(service, namespace, zone))
        case [label, namespace, "pod"]:
            address = _undashed(label)
            return PodAddressName(address, namespace, zone) if address else None
        case ["localhost"]:
            return None  # RFC 6761 6.3: this machine, never somebody's Service
        case [service] if default_namespace is not None:
            return ServiceName(service, default_namespace, zone)
        case [service, namespace] if default_namespace is not None:
            return ServiceName(service, namespace, zone)
    return None


def _why_not(host: str, labels: Sequence[str], within: Sequence[str], zones: Sequence[str]) -> str:
    """What a person needs to know about a well-formed name that is none of ours."""
    if within:
        zone = within[0]
        return (
            f"{_quoted(host)} is in the zone {zone}, but names neither a Service (SERVICE.NAMESPACE.svc.{zone}) "
            f"nor a Pod (HOSTNAME.SERVICE.NAMESPACE.svc.{zone}, 10-244-0-16.NAMESPACE.pod.{zone})."
        )
    if host == TUNNEL_NAME:
        return f"{TUNNEL_NAME} is the tunnel itself; a Service of that name is {TUNNEL_NAME}.svc.{zones[0]}."
    ours = f"{'the zone here is' if len(zones) == 1 else 'the zones here are'} {', '.join(zones)}"
    marker = next((i for i, label in enumerate(labels) if label in ("svc", "pod") and i >= 2), None)
    if marker is not None and labels[marker + 1 :]:
        return (
            f"{_quoted(host)} is in the zone {_quoted('.'.join(labels[marker + 1 :]))}, which is none of ours: {ours}."
        )
    return f"{_quoted(host)} is not the name of a Service, SERVICE.NAMESPACE.svc.ZONE; {ours}."


def _undashed(label: str) -> IPv4Address | IPv6Address | None:
    for separator in ".:":
        try:
            return ip_address(label.replace("-", separator))
        except ValueError:
            continue
    return None


def _port(text: str, authority: str) -> int | None:
    if not text:
        return None  # RFC 3986 3.2.3: "host:" is the scheme's default
    digits = text.lstrip("0")
    # the length first: int() refuses thousands of digits with an error of its own
    if not (text.isascii() and text.isdigit() and 1 <= len(digits) <= 5 and int(digits) <= 65535):
        raise _not_a_name(f"{_quoted(text)} in {_quoted(authority)} is not a port: 1 to 65535.")
    return int(digits)


def _quoted(text: str) -> str:
    """For an error's text: printable ASCII, short, and without a password that somebody put before an @."""
    shown = text.rpartition("@")[2]
    return ascii(shown if len(shown) <= _MAX_QUOTED_CHARS else f"{shown[:_MAX_QUOTED_CHARS]}...")


def _not_a_name(detail: str) -> NotAServiceName:
    return NotAServiceName(detail, command=_LIST_SERVICES)
