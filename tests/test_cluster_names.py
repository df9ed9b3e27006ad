"""The names of a cluster as DNS asks for them, on the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest
import pytest_asyncio

from kubetunnel.core.catalog import EndpointPort, EndpointSlice, Service, ServicePort, ServiceState
from kubetunnel.core.errors import NamespaceNotFound, NotAServiceName, NotForwardable, ServiceNotFound
from kubetunnel.core.names import PodAddressName, PodName, ServiceName
from kubetunnel.core.settings import ClusterSettings, Settings
from kubetunnel.core.vips import Address
from kubetunnel.dns import ClusterNames, listened_ports
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.virtual_addresses import VirtualAddresses

ZONE = "cluster.local"
PAIR = ServiceName("pair", "demo", ZONE)
STS = ServiceName("echo-sts", "demo", ZONE)
RANGE = IPv4Network("10.8.0.0/24")


class Listeners:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.open_ports: dict[str, tuple[Address, set[int]]] = {}
        self.changed = asyncio.Event()

    async def open(self, name: str, address: Address, ports: Iterable[int]) -> None:
        self.open_ports[name] = address, set(ports)

    def keep(self, service: str, ports: Iterable[int]) -> None:
        kept = set(ports)
        if service in self.open_ports and not kept:
            del self.open_ports[service]
            self.changed.set()


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture
async def clusters(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Clusters]:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    clusters = Clusters(Settings(cluster=ClusterSettings(kubeconfig=str(kubeconfig))))
    yield clusters
    await clusters.aclose()


@pytest.fixture
def addresses(tmp_path: Path) -> VirtualAddresses:
    return VirtualAddresses([RANGE], path=tmp_path / "virtual-addresses.json")


async def test_services_and_pods_are_looked_up(
    sim: SimCluster, clusters: Clusters, addresses: VirtualAddresses
) -> None:
    names = ClusterNames(clusters, addresses)
    assert names.zones == (ZONE,)
    assert (await names.service(PAIR)).service.name == "pair"
    pod = sim.pod("demo", "pair")
    address = ip_address(pod.address)
    assert (await names.pod(PodAddressName(address, "demo", ZONE))).pod == "pair"
    with pytest.raises(ServiceNotFound):
        await names.service(ServiceName("nothere", "demo", ZONE))
    with pytest.raises(NamespaceNotFound):
        await names.service(ServiceName("pair", "nothere", ZONE))
    with pytest.raises(ServiceNotFound):
        await names.pod(PodAddressName(IPv4Address("10.244.250.250"), "demo", ZONE))
    with pytest.raises(NotAServiceName):
        await names.service(ServiceName("pair", "demo", "prod.local"))


async def test_each_name_has_an_address_of_its_own(clusters: Clusters, addresses: VirtualAddresses) -> None:
    names = ClusterNames(clusters, addresses)
    state = await names.service(STS)
    asked: list[ServiceName | PodName] = [STS, PodName("echo-sts-0", STS), PodName("echo-sts-1", STS)]
    found = [await names.address_of(name, state) for name in asked]
    by_address = PodAddressName(IPv4Address("10.244.0.16"), "demo", ZONE)
    found.append(await names.address_of(by_address, None))
    assert len(set(found)) == 4
    assert all(address in RANGE for address in found)
    assert [names.name_of(address) for address in found] == [str(name) for name in (*asked, by_address)]
    assert names.name_of(IPv4Address("10.9.0.1")) is None


async def test_the_shared_address_is_everybodys(clusters: Clusters) -> None:
    shared = IPv4Address("10.8.0.2")
    names = ClusterNames(clusters, None, shared=shared)
    assert await names.address_of(PAIR, await names.service(PAIR)) == shared
    assert names.name_of(shared) is None
    with pytest.raises(ValueError, match="no address to answer"):
        ClusterNames(clusters, None)


async def test_on_loopback_listeners_are_open_before_the_answer(
    sim: SimCluster, clusters: Clusters, addresses: VirtualAddresses
) -> None:
    listeners = Listeners()
    names = ClusterNames(clusters, addresses, listeners=listeners)
    address = await names.address_of(PAIR, await names.service(PAIR))
    pod = PodName("echo-sts-0", STS)
    pod_address = await names.address_of(pod, await names.service(STS))
    assert listeners.open_ports == {str(PAIR): (address, {80}), str(pod): (pod_address, {8080, 9000})}
    with pytest.raises(NotForwardable, match="by its address"):
        await names.address_of(PodAddressName(IPv4Address("10.244.0.16"), "demo", ZONE), None)
    await sim.remove_service("demo", "pair")
    async with asyncio.timeout(10):
        await listeners.changed.wait()
    assert list(listeners.open_ports) == [str(pod)]


def test_the_ports_that_clients_connect_to() -> None:
    ports = (ServicePort(80, "http", target_port=8080), ServicePort(53, "dns", "UDP"), ServicePort(5432, "sql"))
    slices = (EndpointSlice("a", ports=(EndpointPort(8080, "http"), EndpointPort(53, "dns", "UDP"))),)
    plain = ServiceState(Service("shop", "api", ports), slices)
    headless = ServiceState(Service("shop", "api", ports, cluster_ip="None"), slices)
    assert listened_ports(plain) == (80, 5432)
    assert listened_ports(headless) == (80, 5432, 8080)
