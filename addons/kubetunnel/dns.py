"""What the DNS server asks of the clusters: which names there are, and the address to answer for each.

The `Names` of `netsetup.answers`. An address is a virtual IP of the name's own, or the shared proxy address; where the
machine's network is left alone it is a loopback address, whose listeners are open before it is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakSet

from kubetunnel.cluster.discovery import Discovery
from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.errors import NotAServiceName, NotForwardable
from kubetunnel.core.names import PodAddressName, PodName, ServiceName
from kubetunnel.core.vips import Address
from kubetunnel.proxy.clusters import Clusters, Session
from kubetunnel.virtual_addresses import VirtualAddresses


class Listeners(Protocol):
    """Opens what is to be reached at an address."""

    async def open(self, name: str, address: Address, ports: Iterable[int]) -> None:
        """Raises NotForwardable."""
        ...

    def keep(self, service: str, ports: Iterable[int]) -> None:
        """Closes the listeners of a Service and of its Pods for other ports than these."""
        ...


class ClusterNames:
    """The names of all clusters.

    Args:
        addresses: the virtual IPs; None only with a shared address.
        shared: answered for every name in the place of a virtual IP.
        listeners: opened for a name before its address is answered.
    """

    def __init__(
        self,
        clusters: Clusters,
        addresses: VirtualAddresses | None,
        *,
        shared: Address | None = None,
        listeners: Listeners | None = None,
    ) -> None:
        if addresses is None and shared is None:
            raise ValueError("there is no address to answer")
        self._clusters = clusters
        self._addresses = addresses
        self._shared = shared
        self._listeners = listeners
        self._heard: WeakSet[Discovery] = WeakSet()
        self._unsubscribe: list[Callable[[], None]] = []

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones of the clusters, lower-case."""
        return self._clusters.zones

    async def service(self, name: ServiceName) -> ServiceState:
        """The Service and its endpoints.

        Raises:
            ServiceNotFound, NamespaceNotFound: it does not exist.
            KubeTunnelError: that could not be found out.
        """
        session = await self._session(name.zone)
        return await session.discovery.service(name.namespace, name.service)

    async def pod(self, name: PodAddressName) -> Endpoint:
        """The Pod that has the address. Raises as `service`."""
        session = await self._session(name.zone)
        return await session.discovery.pod(name.namespace, str(name.address))

    async def address_of(self, name: ServiceName | PodName | PodAddressName, state: ServiceState | None) -> Address:
        """The address to answer.

        Args:
            state: of the Service that the name belongs to; None for a PodAddressName.

        Raises:
            NoVirtualIP, Timeout: the name gets no address of its own.
            NotForwardable: nothing can listen at it.
        """
        if self._shared is not None:
            return self._shared
        if self._addresses is None:
            raise AssertionError("unreachable")
        if self._listeners is None:
            return await self._addresses.address_of(str(name))
        if state is None:
            raise NotForwardable(
                f"{name} names a Pod by its address: its ports are not known, and without a redirection each port "
                "needs a listener. Ask for it by SOCKS5 or as a proxy request."
            )
        address = await self._addresses.address_of(str(name))
        await self._listeners.open(str(name), address, listened_ports(state))
        return address

    def name_of(self, address: Address) -> str | None:
        """The full name that has this virtual IP."""
        return self._addresses.name_of(address) if self._addresses else None

    async def _session(self, zone: str) -> Session:
        if zone not in self._clusters.zones:
            raise NotAServiceName(f"The zone {zone} is none of ours any more.")
        session = await self._clusters.of(zone).session()
        if self._listeners is not None and session.discovery not in self._heard:
            self._heard.add(session.discovery)
            listeners = self._listeners

            def changed(namespace: str, service: str, state: ServiceState | None) -> None:
                listeners.keep(str(ServiceName(service, namespace, zone)), listened_ports(state) if state else ())

            self._unsubscribe.append(session.discovery.subscribe(changed))
        return session

    def close(self) -> None:
        """Hears of no Service any more; to be called when the listeners go."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()


def listened_ports(state: ServiceState) -> tuple[int, ...]:
    """The TCP ports that clients of a Service connect to; those of a headless one know the Pods' own numbers, too."""
    service = state.service
    ports = {port.port for port in service.ports if port.protocol == "TCP"}
    if service.headless:
        ports |= {port.port for each in state.slices for port in each.ports if port.protocol == "TCP"}
    return tuple(sorted(ports))
