"""Virtual IPs: an address of its own for each name, so that any TCP protocol on any port finds its Service.

The contract's section 6. A hash of the name picks the place, so that a name has the same address on every machine and
after every restart as long as no other name came first; the assignments that are handed in as `known` keep it for those
that collided. Not Python's `hash`, which differs from process to process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType

from kubetunnel.core.errors import NotForwardable

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network


class NoVirtualIP(NotForwardable):
    """The ranges have no address left for another name."""

    title = "No virtual IP is left"


class VirtualIPs:
    """Addresses for names out of some ranges.

    Args:
        ranges: where the addresses come from, of one IP version; one that lies in another counts once. The first
            address of a range and, in IPv4, its last are nobody's (network and broadcast, RFC 919; the Subnet-Router
            anycast, RFC 4291 2.6.1).
        reserved: addresses that belong to something else.
        known: earlier assignments. Those outside of the ranges, and of two with the same address the second, are left
            out.
    """

    def __init__(
        self,
        ranges: Iterable[Network],
        *,
        reserved: Collection[Address] = (),
        known: Mapping[str, Address] = MappingProxyType({}),
    ) -> None:
        self._ranges = _distinct(ranges)
        if not self._ranges:
            raise ValueError("virtual IPs need a range")
        if len({each.version for each in self._ranges}) > 1:
            raise ValueError("virtual IPs are of one IP version: a name has one address")
        self._reserved = frozenset(reserved)
        self._size = sum(_usable(each) for each in self._ranges)
        self._names: dict[Address, str] = {}
        self._assigned: dict[str, Address] = {}
        for name, address in known.items():
            if self._is_free(address):
                self._assign(name.lower(), address)

    @property
    def assigned(self) -> Mapping[str, Address]:
        """Every name with its address."""
        return MappingProxyType(self._assigned)

    def covers(self, address: Address) -> bool:
        """Whether it lies in the ranges, be it somebody's or not; reserved ones do not count."""
        return address not in self._reserved and any(address in each for each in self._ranges)

    def address_of(self, name: str) -> Address:
        """The address of a full name, in any case; assigned at the first call.

        Raises:
            NoVirtualIP: all are taken.
        """
        name = name.lower()
        assigned = self._assigned.get(name)
        if assigned is not None:
            return assigned
        for address in self._places(name):
            if self._is_free(address):
                self._assign(name, address)
                return address
        raise NoVirtualIP(
            f"{name} gets no virtual IP: all {len(self._assigned)} addresses of {', '.join(map(str, self._ranges))} "
            "are taken. Give network.ip_ranges more or larger ranges."
        )

    def name_of(self, address: Address) -> str | None:
        """The name that has this address."""
        return self._names.get(address)

    def release(self, name: str) -> None:
        """Takes its address back. No effect on a name that has none."""
        address = self._assigned.pop(name.lower(), None)
        if address is not None:
            del self._names[address]

    def _assign(self, name: str, address: Address) -> None:
        self._assigned[name] = address
        self._names[address] = name

    def _is_free(self, address: Address) -> bool:
        if address in self._names or address in self._reserved:
            return False
        return any(_has(each, address) for each in self._ranges)

    def _places(self, name: str) -> Iterator[Address]:
        """Where the name would be, and behind it every other place once, as far as there can be a free one."""
        first = int.from_bytes(blake2b(name.encode(), digest_size=16).digest()) % self._size
        # as many as can be taken, and one more: an IPv6 range is not to be walked to its end
        for step in range(min(self._size, len(self._names) + len(self._reserved) + 1)):
            yield self._place((first + step) % self._size)

    def _place(self, index: int) -> Address:
        for each in self._ranges:
            if index < (size := _usable(each)):
                return each[index + _first(each)]
            index -= size
        raise AssertionError("unreachable")


def _distinct(ranges: Iterable[Network]) -> tuple[Network, ...]:
    """In order, without those that lie in another; not merged, since each has a broadcast address of its own."""
    found: list[Network] = []
    for new in ranges:
        if not any(_lies_in(new, each) for each in found):
            found = [each for each in found if not _lies_in(each, new)] + [new]
    return tuple(found)


def _lies_in(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _first(each: Network) -> int:
    """How many addresses at the beginning are nobody's; a point-to-point range (RFC 3021, RFC 6164) has none."""
    return 1 if each.num_addresses > 2 else 0


def _usable(each: Network) -> int:
    return each.num_addresses - _first(each) - (_first(each) if each.version == 4 else 0)


def _has(each: Network, address: Address) -> bool:
    """Whether this is one of the range's usable addresses."""
    if address not in each:
        return False
    index = int(address) - int(each.network_address) - _first(each)
    return 0 <= index < _usable(each)
