"""Where a client wanted to go before a redirection of this machine brought its connection to us.

Linux keeps it with the connection and tells it as a socket option, for nftables as for iptables: SO_ORIGINAL_DST of
include/uapi/linux/netfilter_ipv4.h, IP6T_SO_ORIGINAL_DST of include/uapi/linux/netfilter_ipv6/ip6_tables.h. Elsewhere,
and where nothing was redirected, it is the address that we accepted the connection at.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80

_SOCKADDR_IN = struct.Struct("!2xH4s8x")  # family, port, address, padding
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")  # family, port, flow, address, scope


class AcceptedSocket(Protocol):
    """What is asked of a socket; asyncio's `TransportSocket` has it."""

    @property
    def family(self) -> int: ...

    def getsockname(self) -> tuple[str, int]: ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class OriginalDestination:
    """The address and the port that a client connected to."""

    address: IPv4Address | IPv6Address
    port: int


def original_destination(accepted: AcceptedSocket) -> OriginalDestination:
    """The destination of an accepted TCP connection."""
    name, port, *_ = accepted.getsockname()
    own = OriginalDestination(_address(name), port)
    if sys.platform != "linux":
        return own
    try:
        # an IPv4 client at a socket of both families is IPv4 for the kernel, too
        if own.address.version == 4:
            raw = accepted.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            return _unpacked(_SOCKADDR_IN, raw)
        raw = accepted.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        return _unpacked(_SOCKADDR_IN6, raw)
    except OSError:
        return own  # ENOENT, ENOPROTOOPT: no connection tracking, so no redirection


def _unpacked(layout: struct.Struct, raw: bytes) -> OriginalDestination:
    port, address = layout.unpack(raw.ljust(layout.size, b"\0")[: layout.size])
    return OriginalDestination(ip_address(address), port)


def _address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.partition("%")[0])
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
