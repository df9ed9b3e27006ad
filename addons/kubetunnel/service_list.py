"""The Services of a cluster as a user of the tunnel has them: names that work, ports, virtual address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.errors import Forbidden
from kubetunnel.core.names import ServiceName
from kubetunnel.core.settings import Settings
from kubetunnel.naming_plan import plan_naming
from kubetunnel.proxy.clusters import Session
from kubetunnel.virtual_addresses import VirtualAddresses, default_path
from netsetup.errors import StateError
from netsetup.state import read_state


@dataclass(frozen=True, slots=True)
class ListedService:
    """One Service.

    Attributes:
        names: those that work, the shortest that holds everywhere first, the full one last.
        address: its virtual IP, None where it has none yet.
        note: why no request can be sent to it, "" where one can.
    """

    namespace: str
    service: str
    names: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    type: str
    address: str | None = None
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        ports = [
            {"port": port.port, "name": port.name, "protocol": port.protocol, "appProtocol": port.app_protocol}
            for port in self.ports
        ]
        return {
            "namespace": self.namespace,
            "service": self.service,
            "type": self.type,
            "names": list(self.names),
            "ports": ports,
            "address": self.address,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Listing:
    """Services, sorted; `without` says which right was missing where they are those of `namespace` alone."""

    services: tuple[ListedService, ...]
    namespace: str = ""
    without: str = ""


async def list_services(
    session: Session, zone: str, namespace: str | None, addresses: Mapping[str, str], *, is_first: bool
) -> Listing:
    """The Services of a Namespace, else of all; of the context's own where the others may not be listed.

    Args:
        addresses: virtual IPs by full name.
        is_first: short names are in this zone.

    Raises:
        Forbidden, Unauthenticated, ClusterUnreachable, Timeout
    """
    without = ""
    wanted = namespace or ""
    try:
        found = await session.discovery.services(wanted)
    except Forbidden as e:
        if wanted:
            raise
        wanted, without = session.access.namespace, str(e)
        found = await session.discovery.services(wanted)
    listed = (_listed(each, zone, session.access.namespace, addresses, is_first=is_first) for each in found)
    return Listing(tuple(sorted(listed, key=lambda each: (each.namespace, each.service))), wanted, without)


def virtual_addresses(settings: Settings) -> Mapping[str, str]:
    """The virtual IPs that this user's tunnels have assigned, by full name; where all share one, that for each."""
    try:
        machine = read_state()
    except StateError:
        machine = None  # the tunnel takes it for nothing, too, and tells
    plan = plan_naming(settings, machine)
    path = default_path("loopback-addresses.json" if plan.loopback else "virtual-addresses.json")
    kept = VirtualAddresses(plan.ranges, path=path, reserved=plan.reserved)
    return {name: str(plan.shared or address) for name, address in kept.assigned.items()}


def _listed(
    service: Service, zone: str, own_namespace: str, addresses: Mapping[str, str], *, is_first: bool
) -> ListedService:
    name, namespace = service.name, service.namespace
    full = str(ServiceName(name, namespace, zone))
    short = (f"{name}.{namespace}", *((name,) if namespace == own_namespace else ()), f"{name}.{namespace}.svc")
    if service.type == "ExternalName":
        note = f"ExternalName {service.external_name}"
    else:
        note = "" if service.ports else "no ports"
    return ListedService(
        namespace,
        name,
        (*(short if is_first else ()), full),
        service.ports,
        "Headless" if service.headless else service.type,
        addresses.get(full),
        note,
    )
