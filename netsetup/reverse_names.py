"""Names below in-addr.arpa and ip6.arpa: text to address (RFC 1035 3.5, RFC 3596 2.5).

Only those within the ranges of the virtual IPs are ours. A range that ends within an octet (or, of IPv6, a digit) has
no zone of its own in the DNS: it counts as the zones of the next whole octet that it consists of (compare RFC 2317).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

type AddressRange = IPv4Network | IPv6Network

_OCTETS = {str(octet): octet for octet in range(256)}
_DIGITS = {f"{digit:x}": digit for digit in range(16)}


@dataclass(frozen=True, slots=True)
class ReverseName:
    """A reverse name within our ranges.

    `address` is None where the name gives only a part of it. `is_apex`: it is a zone's own name. `has_more`: there are
    labels before the address, so it is nothing.
    """

    address: IPv4Address | IPv6Address | None
    is_apex: bool
    has_more: bool


def read_reverse_name(labels: Sequence[str], ranges: Iterable[AddressRange]) -> ReverseName | None:
    """The labels of a name; None where it is no reverse name of these ranges."""
    read = _read(labels)
    if read is None:
        return None
    network, has_more = read
    found = _range_of(network, ranges)
    if found is None:
        return None
    address = network.network_address if network.prefixlen == network.max_prefixlen else None
    return ReverseName(address, network.prefixlen == _zone_prefix(found) and not has_more, has_more)


def reverse_zone(labels: Sequence[str], ranges: Iterable[AddressRange]) -> str | None:
    """The zone that a reverse name of these ranges is in: `0.8.10.in-addr.arpa`."""
    read = _read(labels)
    found = _range_of(read[0], ranges) if read else None
    if read is None or found is None:
        return None
    bits_a_label = 8 if found.version == 4 else 4
    zone = labels[len(labels) - 2 - _zone_prefix(found) // bits_a_label :]
    return ".".join(zone).lower()


def _read(labels: Sequence[str]) -> tuple[AddressRange, bool] | None:
    """The network that the name gives from the right, and whether labels are left over that are no part of it."""
    match [label.lower() for label in labels[-2:]]:
        case ["in-addr", "arpa"]:
            values = _leading(labels[:-2], _OCTETS, 4)
            packed = bytes(values).ljust(4, b"\0")
            return IPv4Network((packed, 8 * len(values))), len(labels) - 2 > len(values)
        case ["ip6", "arpa"]:
            values = _leading(labels[:-2], _DIGITS, 32)
            padded = [*values, *[0] * (32 - len(values))]
            packed = bytes(high << 4 | low for high, low in zip(padded[::2], padded[1::2], strict=True))
            return IPv6Network((packed, 4 * len(values))), len(labels) - 2 > len(values)
    return None


def _leading(labels: Sequence[str], meaning: dict[str, int], limit: int) -> list[int]:
    values: list[int] = []
    for label in reversed(labels):
        value = meaning.get(label.lower())
        if value is None or len(values) == limit:
            break
        values.append(value)
    return values


def _range_of(network: AddressRange, ranges: Iterable[AddressRange]) -> AddressRange | None:
    for each in ranges:
        if isinstance(each, IPv4Network):
            if isinstance(network, IPv4Network) and network.subnet_of(each):
                return each
        elif isinstance(network, IPv6Network) and network.subnet_of(each):
            return each
    return None


def _zone_prefix(found: AddressRange) -> int:
    bits_a_label = 8 if found.version == 4 else 4
    return -(-found.prefixlen // bits_a_label) * bits_a_label
