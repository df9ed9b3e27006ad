"""What the DNS server says: a question and what the cluster has in, an answer out; no packets, no sockets, no clock.

Kubernetes DNS-Based Service Discovery, schema 1.1.0 (github.com/kubernetes/dns, docs/specification.md), with one
difference: an address is a virtual IP, because those of the cluster cannot be reached from here. RFC 1034 4.3.2 (what
is answered at which name), RFC 2308 (negative answers and their SOA), RFC 8020 (NXDOMAIN means that nothing is below),
RFC 8482 (ANY).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.endpoints import endpoint_hostname, takes_requests
from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import PodAddressName, PodName, ServiceName, SrvName, parse_name, zone_is_valid
from netsetup.dns_records import (
    CLASS_IN,
    Address,
    Answer,
    Question,
    Rcode,
    Record,
    RecordType,
    Soa,
    Srv,
)
from netsetup.reverse_names import AddressRange, ReverseName, read_reverse_name, reverse_zone

SCHEMA_VERSION = "1.1.0"
TTL_S = 5  # CoreDNS's default for Kubernetes names
_SRV_WEIGHT = 100  # CoreDNS's; all targets of a question are alike
_TRANSFERS = (RecordType.IXFR, RecordType.AXFR)

type Addressed = ServiceName | PodName | PodAddressName


class Names(Protocol):
    """The cluster, as the DNS server asks it."""

    @property
    def zones(self) -> tuple[str, ...]:
        """The DNS zones of the clusters, lower-case, without a dot at the end."""

    async def service(self, name: ServiceName) -> ServiceState:
        """The Service and its endpoints.

        Raises:
            ServiceNotFound, NamespaceNotFound: it does not exist (NXDOMAIN).
            KubeTunnelError: that could not be found out (SERVFAIL).
        """

    async def pod(self, name: PodAddressName) -> Endpoint:
        """The Pod that has the address. Raises as `service`."""

    async def address_of(self, name: Addressed, state: ServiceState | None) -> Address:
        """The virtual IP; may open listeners for it first.

        Args:
            state: of the Service that `name` belongs to; None for a PodAddressName.

        Raises:
            KubeTunnelError: there is none to be had (SERVFAIL).
        """

    def name_of(self, address: Address) -> str | None:
        """The full name that has this virtual IP."""


@dataclass(frozen=True, slots=True)
class ProtocolName:
    """`_tcp.api.shop.svc.cluster.local`: nothing but the parent of SRV names."""

    protocol: str
    service: ServiceName


@dataclass(frozen=True, slots=True)
class NamespaceName:
    """`shop.svc.cluster.local`, `shop.pod.cluster.local`: nothing but the parent of names."""

    namespace: str
    zone: str

    @property
    def any_service(self) -> ServiceName:
        """A name in it: whether there is such a Service is all the same, the Namespace's absence is an error apart."""
        return ServiceName(self.namespace, self.namespace, self.zone)


@dataclass(frozen=True, slots=True)
class HostName:
    """A name of this machine's own, of no cluster: `kube-tunnel.internal`."""

    name: str


type OfService = ServiceName | PodName | SrvName | ProtocolName
type Wanted = OfService | PodAddressName | NamespaceName | HostName | ReverseName


@dataclass(frozen=True, slots=True)
class Authority:
    """Which names are ours, and the answers to them.

    Args:
        zones: lower-case, without a dot at the end.
        ranges: of the virtual IPs; their reverse names are ours.
        server: the addresses of the DNS server, for `ns.dns.ZONE`.
        own: addresses within the ranges that stand for no name of a cluster, and what their reverse names say.
        hosts: names of this machine's own, each a zone in which nothing else is.
        ttl_s: of what exists.
        negative_ttl_s: of what does not.
    """

    zones: tuple[str, ...]
    ranges: tuple[AddressRange, ...] = ()
    server: tuple[Address, ...] = ()
    own: Mapping[Address, str] = field(default_factory=dict)
    hosts: Collection[str] = ()
    ttl_s: int = TTL_S
    negative_ttl_s: int = TTL_S

    def decide(self, question: Question) -> Answer | Wanted | None:
        """The answer where nothing needs to be looked up, else what to look up; None: not ours, to be forwarded."""
        refused = question.class_ != CLASS_IN or question.type in _TRANSFERS
        zone = self._zone_of(question)
        if zone is not None:
            return Answer(Rcode.REFUSED) if refused else self._decide_in_zone(question, zone)
        reverse = read_reverse_name(question.labels, self.ranges)
        if reverse is not None:
            return Answer(Rcode.REFUSED) if refused else self._decide_reverse(question, reverse)
        return None

    def missing(self, question: Question) -> Answer:
        """There is no such name."""
        return Answer(Rcode.NXDOMAIN, authority=(self._soa(question),))

    def empty(self, question: Question) -> Answer:
        """The name exists, but has no records of this type."""
        return Answer(authority=(self._soa(question),))

    def of_reverse(self, question: Question, name: str | None) -> Answer:
        """The answer for a virtual IP, by the name that has it."""
        if name is None:
            return self.missing(question)
        return self._found(question, (self._record(question, RecordType.PTR, name),))

    def of_host(self, question: Question, address: Address) -> Answer:
        """The answer for a name of this machine's own."""
        return self._apex(question, question.name, self._addresses(question, (address,)))

    def of_pod(self, question: Question, address: Address) -> Answer:
        """The answer for a Pod that was asked for by its address and exists."""
        return self._found(question, self._addresses(question, (address,)))

    def of_service(
        self, question: Question, wanted: OfService, state: ServiceState, addresses: Mapping[Addressed, Address]
    ) -> Answer:
        """The answer from a Service that exists.

        Args:
            addresses: of all that `addressed` names.
        """
        match wanted:
            case ServiceName() if state.service.type == "ExternalName":
                return self._external_name(question, state.service.external_name)
            case ServiceName() | PodName():
                names = _bearers(wanted, state)
                records = self._addresses(question, [addresses[name] for name in names if name in addresses])
                return self._found(question, records) if names else self.missing(question)
            case SrvName():
                return self._srv(question, wanted, state, addresses)
            case ProtocolName():
                named = any(port.name and port.protocol.lower() == wanted.protocol for port in state.service.ports)
                exists = named and _bearers(wanted.service, state)
                return self.empty(question) if exists else self.missing(question)

    def _zone_of(self, question: Question) -> str | None:
        name = f".{question.name}"
        return max((zone for zone in (*self.zones, *self.hosts) if name.endswith(f".{zone}")), key=len, default=None)

    def _decide_in_zone(self, question: Question, zone: str) -> Answer | Wanted:
        match question.name.split(".")[: -zone.count(".") - 1]:
            case []:
                return HostName(zone) if zone in self.hosts else self._apex(question, zone)
            case _ if zone not in self.zones:
                return self.missing(question)
            case ["svc" | "pod" | "dns"]:
                return self.empty(question)
            case ["dns-version"]:
                return self._found(question, (self._record(question, RecordType.TXT, SCHEMA_VERSION),))
            case ["ns", "dns"]:
                return self._found(question, self._addresses(question, self.server))
            case [namespace, "svc" | "pod"] if zone_is_valid(namespace):
                return NamespaceName(namespace, zone)
            case ["_tcp" | "_udp" | "_sctp" as protocol, service, namespace, "svc"]:
                if zone_is_valid(f"{service}.{namespace}"):
                    return ProtocolName(protocol[1:], ServiceName(service, namespace, zone))
        try:
            return parse_name(question.name, zones=(zone,), default_namespace="", short_forms=False)
        except NotAServiceName:
            return self.missing(question)

    def _decide_reverse(self, question: Question, reverse: ReverseName) -> Answer | Wanted:
        if reverse.has_more:
            return self.missing(question)
        if reverse.address is not None:
            own = self.own.get(reverse.address)
            return self.of_reverse(question, own) if own else reverse
        if reverse.is_apex:
            return self._apex(question, question.name)
        return self.empty(question)

    def _apex(self, question: Question, zone: str, more: Sequence[Record] = ()) -> Answer:
        name_server = self._record(question, RecordType.NS, f"ns.dns.{self.zones[0] if self.zones else zone}")
        return self._found(question, (self._soa(question, question.text), name_server, *more))

    def _external_name(self, question: Question, target: str) -> Answer:
        """A CNAME whatever the type asked for (RFC 1034 3.6.2); whoever asks for it follows it."""
        if not zone_is_valid(target) or target.removesuffix(".").replace(".", "").isdigit():
            return self.empty(question)  # an address as externalName: no name to point to (CoreDNS has nothing either)
        return Answer(records=(self._record(question, RecordType.CNAME, target.removesuffix(".")),))

    def _srv(
        self, question: Question, wanted: SrvName, state: ServiceState, addresses: Mapping[Addressed, Address]
    ) -> Answer:
        key = (wanted.port_name, wanted.protocol.upper())
        port = next((each for each in state.service.ports if (each.name.lower(), each.protocol) == key), None)
        names = _bearers(wanted, state)
        if port is None or not names:
            return self.missing(question)
        records = tuple(
            # the Service's number for headless ones too: it is the one that means this port at a Pod's virtual IP
            self._record(question, RecordType.SRV, Srv(0, _SRV_WEIGHT, port.port, str(name)))
            for name in names
        )
        additional = tuple(
            Record(str(name), _type_of(addresses[name]), self.ttl_s, addresses[name])
            for name in names
            if name in addresses
        )
        answer = self._found(question, records)
        return Answer(answer.rcode, answer.records, answer.authority, additional if answer.records else ())

    def _found(self, question: Question, records: Sequence[Record]) -> Answer:
        """Those of a name's records that were asked for; NODATA where it has none of the type."""
        fitting = tuple(record for record in records if question.type in (record.type, RecordType.ANY))
        return Answer(records=fitting) if fitting else self.empty(question)

    def _addresses(self, question: Question, addresses: Sequence[Address]) -> tuple[Record, ...]:
        # each once: with one shared address all endpoints have the same
        return tuple(self._record(question, _type_of(address), address) for address in dict.fromkeys(addresses))

    def _record(self, question: Question, type_: RecordType, data: str | Address | Srv) -> Record:
        return Record(question.text, type_, self.ttl_s, data)

    def _soa(self, question: Question, owner: str = "") -> Record:
        zone = self._zone_of(question) or reverse_zone(question.labels, self.ranges) or question.name
        home = zone if zone in self.zones or not self.zones else self.zones[0]
        # the lesser of the SOA's own TTL and its last field counts (RFC 2308 5)
        soa = Soa(f"ns.dns.{home}", f"hostmaster.{home}", minimum_s=self.negative_ttl_s)
        return Record(owner or zone, RecordType.SOA, self.negative_ttl_s, soa)


def addressed(question: Question, wanted: OfService, state: ServiceState) -> tuple[Addressed, ...]:
    """The names whose virtual IPs the answer needs."""
    if state.service.type == "ExternalName" or isinstance(wanted, ProtocolName):
        return ()
    types = (RecordType.SRV,) if isinstance(wanted, SrvName) else (RecordType.A, RecordType.AAAA)
    return _bearers(wanted, state) if question.type in (*types, RecordType.ANY) else ()


def _bearers(wanted: ServiceName | PodName | SrvName, state: ServiceState) -> tuple[ServiceName | PodName, ...]:
    """Who has the addresses: the Service itself, or each of a headless one's endpoints; none: the name is not there."""
    service = wanted.service if isinstance(wanted, PodName | SrvName) else wanted
    if state.service.type == "ExternalName":
        return ()
    if isinstance(wanted, PodName):
        hostnames = _hostnames(state, None)
        return (wanted,) if wanted.hostname in hostnames else ()
    if not state.service.headless:
        return (service,)
    port = (wanted.port_name, wanted.protocol) if isinstance(wanted, SrvName) else None
    return tuple(PodName(hostname, service) for hostname in _hostnames(state, port))


def _hostnames(state: ServiceState, port: tuple[str, str] | None) -> tuple[str, ...]:
    """The endpoints that answers tell of, each pod once; with a port those whose slice has it."""
    found: dict[str, str] = {}
    # IPv4 first: a dual-stack pod without a hostname is named by that address
    for each in sorted(state.slices, key=lambda part: (part.address_type, part.name)):
        if port and port not in {(listed.name.lower(), listed.protocol.lower()) for listed in each.ports}:
            continue
        for endpoint in each.endpoints:
            if takes_requests(state.service, endpoint):
                found.setdefault(endpoint.pod or endpoint.address, endpoint_hostname(endpoint).lower())
    return tuple(dict.fromkeys(found.values()))


def _type_of(address: Address) -> RecordType:
    return RecordType.A if address.version == 4 else RecordType.AAAA
