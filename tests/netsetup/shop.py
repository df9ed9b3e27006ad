"""A made-up cluster to ask: one Service of each kind, and errors on demand."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from kubetunnel.core.catalog import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceState
from kubetunnel.core.errors import KubeTunnelError, NamespaceNotFound, ServiceNotFound
from kubetunnel.core.names import PodAddressName, ServiceName
from netsetup.answers import Addressed
from netsetup.dns_records import Address

ZONE = "cluster.local"
RANGE = IPv4Network("10.8.0.0/24")
RANGE_6 = IPv6Network("fd00:8::/64")
HTTP = ServicePort(80, "http", target_port=8080)
GRPC = ServicePort(9090, "grpc")
DNS_UDP = ServicePort(53, "dns", protocol="UDP")


def clustered(name: str, *ports: ServicePort, namespace: str = "shop") -> ServiceState:
    return ServiceState(Service(namespace, name, ports, cluster_ip="10.96.0.7"))


def headless(name: str, *endpoints: Endpoint, publish: bool = False) -> ServiceState:
    service = Service("shop", name, (HTTP,), cluster_ip="None", publish_not_ready_addresses=publish)
    return ServiceState(service, (EndpointSlice(f"{name}-1", endpoints, (EndpointPort(8080, "http"),)),))


def external(name: str, target: str) -> ServiceState:
    return ServiceState(Service("shop", name, type="ExternalName", external_name=target))


STATES = (
    clustered("api", HTTP, GRPC, DNS_UDP),
    clustered("plain", ServicePort(5432)),
    headless(
        "db",
        Endpoint("10.244.0.1", "db-0", hostname="db-0"),
        Endpoint("10.244.0.2", "db-1", hostname="db-1"),
        Endpoint("10.244.0.3", "db-x"),
        Endpoint("10.244.0.4", "db-2", hostname="db-2", ready=False),
        Endpoint("10.244.0.5", "db-3", hostname="db-3", terminating=True),
    ),
    headless("early", Endpoint("10.244.0.6", "early-0", hostname="early-0", ready=False), publish=True),
    headless("nobody", Endpoint("10.244.0.7", "nobody-0", ready=False)),
    headless("many", *(Endpoint(f"10.245.{i // 250}.{i % 250}", f"many-{i}", f"many-{i}") for i in range(1500))),
    external("elsewhere", "www.example.com"),
    external("inside", f"api.shop.svc.{ZONE}"),
    external("round", f"about.shop.svc.{ZONE}"),
    external("about", f"round.shop.svc.{ZONE}"),
    external("numeric", "192.0.2.1"),
)


class Shop:
    """Namespace `shop` with STATES, and the Pod 10.244.0.1.

    Args:
        shared: the one address that every name has.
    """

    def __init__(self, *, zones: tuple[str, ...] = (ZONE,), ipv6: bool = False, shared: Address | None = None) -> None:
        self.zones = zones
        self.states = {state.service.name: state for state in STATES}
        self.asked: Counter[str] = Counter()
        self.was_asked = asyncio.Event()
        self.error: BaseException | None = None
        self.gate = asyncio.Event()  # lookups pass while it is set
        self.gate.set()
        self.shared = shared
        self._range = RANGE_6 if ipv6 else IPv4Network("10.8.0.0/16")
        self.addresses: dict[str, Address] = {}

    async def service(self, name: ServiceName) -> ServiceState:
        await self._ask(str(name))
        if name.namespace != "shop":
            raise NamespaceNotFound(f"There is no namespace {name.namespace}.")
        if name.service not in self.states:
            raise ServiceNotFound(f"There is no Service {name.service}.")
        return self.states[name.service]

    async def pod(self, name: PodAddressName) -> Endpoint:
        await self._ask(str(name))
        if name.address != IPv4Address("10.244.0.1"):
            raise ServiceNotFound(f"There is no Pod {name.address}.")
        return Endpoint("10.244.0.1", "db-0")

    async def address_of(self, name: Addressed, state: ServiceState | None) -> Address:
        await asyncio.sleep(0)
        if isinstance(self.error, KubeTunnelError):
            raise self.error
        assert isinstance(name, PodAddressName) == (state is None)
        return self.shared or self.addresses.setdefault(str(name), self._range[len(self.addresses) + 10])

    def name_of(self, address: Address) -> str | None:
        return next((name for name, assigned in self.addresses.items() if assigned == address), None)

    async def _ask(self, name: str) -> None:
        self.asked[name] += 1
        self.was_asked.set()
        await self.gate.wait()
        if self.error:
            raise self.error


def address(text: str) -> Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)
