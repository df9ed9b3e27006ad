"""What the address that a client connects to says of where it wants to go, before SNI and Host (the contract's 2.1).

A virtual IP is one name's. The shared proxy address is every name's: there the port alone is told, and the name comes
from SNI or Host. It does not matter whether a redirection brought the connection, or a listener at that very address,
nor whether a proxy request, SOCKS5 or a Host names the address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import IPv6Address, ip_address
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy.connection import Client

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.vips import Address
from kubetunnel.proxy.original_destination import AcceptedSocket, OriginalDestination, original_destination


class AddressBook(Protocol):
    """Names by their virtual IPs."""

    def name_of(self, address: Address) -> str | None:
        """The full name that has this address."""
        ...

    def covers(self, address: Address) -> bool:
        """Whether it lies in the ranges, be it somebody's or not."""
        ...


class VirtualDestinations:
    """Tells what addresses stand for. Without `configure`, none stands for anything."""

    def __init__(self) -> None:
        self._book: AddressBook | None = None
        self._shared: frozenset[Address] = frozenset()
        self._service_port: Callable[[Address, int], int] = _same_port
        self._ports: WeakKeyDictionary[Client, int] = WeakKeyDictionary()
        self._certain: WeakSet[Client] = WeakSet()

    def configure(
        self,
        book: AddressBook | None,
        *,
        shared: Collection[Address] = (),
        service_port: Callable[[Address, int], int] | None = None,
    ) -> None:
        """Takes other addresses, for connections from now on.

        Args:
            shared: proxy addresses that stand for no name of their own.
            service_port: the Service port that a listener at (address, port) stands for, where that is another number.
        """
        self._book = book
        self._shared = frozenset(shared)
        self._service_port = service_port or _same_port

    def arrived(self, client: Client, accepted: AcceptedSocket) -> tuple[str, int] | None:
        """The name and port that this connection is for; None where its address does not tell.

        The name is the address itself where that is a virtual IP that nobody has: `host` refuses it.
        """
        if self._book is None and not self._shared:
            return None
        listening_port = client.sockname[1]
        original = original_destination(accepted)
        found = self._found(original, listening_port)
        if found is not None or original.address in self._shared:
            # as mitmproxy in its transparent mode; the client's own socket has this peer, by which it is looked for
            client.sockname = (str(original.address), original.port)
        if found is not None:
            self._certain.add(client)
        elif original.address in self._shared and original.port != listening_port:
            self._ports[client] = original.port
        return found

    def _found(self, original: OriginalDestination, listening_port: int) -> tuple[str, int] | None:
        if self._book is None or original.address in self._shared:
            return None
        name = self._book.name_of(original.address)
        if name is None and not self._book.covers(original.address):
            return None
        return name or str(original.address), self._service_port(original.address, original.port)

    def is_certain(self, client: Client) -> bool:
        """Whether this client's connection is for one name by its address alone."""
        return client in self._certain

    def port(self, client: Client) -> int | None:
        """The port that this client asked for at the shared address."""
        return self._ports.get(client)

    def is_a_names(self, host: str) -> bool:
        """Whether this host is literally the virtual IP of a name."""
        address = _address(host) if self._book else None
        return address is not None and self._book is not None and self._book.name_of(address) is not None

    def host(self, host: str) -> str:
        """The name that a literal virtual IP stands for; every other host as it is.

        Raises:
            NotAServiceName: the address is a virtual IP, but nobody's.
        """
        address = _address(host) if self._book else None
        if address is None or self._book is None or not self._book.covers(address):
            return host
        name = self._book.name_of(address)
        if name is None:
            raise NotAServiceName(
                f"{address} is in the range of the virtual IPs, but it is no Service's: a Service gets one when its "
                "name is asked for in DNS.",
                command="getent hosts SERVICE.NAMESPACE.svc.cluster.local",
            )
        return name


def _same_port(address: Address, port: int) -> int:
    return port


def _address(host: str) -> Address | None:
    if host[-1:].isalpha() and ":" not in host:
        return None  # most hosts: a name
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # a program with an IPv6 socket writes an IPv4 address as ::ffff:10.8.0.7 (RFC 4291 section 2.5.5.2)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
