"""Question and facts in, answer out: what dig cannot see, or not cheaply."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.catalog import Endpoint, EndpointPort, EndpointSlice, Service, ServiceState
from kubetunnel.core.names import PodAddressName, PodName, ServiceName, SrvName
from netsetup.answers import Authority, HostName, NamespaceName, ProtocolName, addressed
from netsetup.dns_records import Answer, Question, Rcode, RecordType, Soa
from netsetup.reverse_names import ReverseName, read_reverse_name, reverse_zone
from tests.netsetup.shop import GRPC, HTTP, RANGE, RANGE_6, ZONE, clustered, headless

API = ServiceName("api", "shop", ZONE)
OWN_HOST = "kube-tunnel.internal"
OURS = Authority((ZONE, "example.com", "k8s.example.com"), (RANGE, RANGE_6), hosts=(OWN_HOST,))


LABELS = st.text(st.characters(max_codepoint=255), min_size=1, max_size=63)


def question(name: str, type_: RecordType = RecordType.A) -> Question:
    return Question(tuple(name.split(".")) if name else (), type_)


class TestDecide:
    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("api.shop.svc.cluster.local", API),
            ("API.Shop.SVC.Cluster.Local", API),
            ("db-0.db.shop.svc.cluster.local", PodName("db-0", ServiceName("db", "shop", ZONE))),
            ("_grpc._tcp.api.shop.svc.cluster.local", SrvName("grpc", "tcp", API)),
            ("_tcp.api.shop.svc.cluster.local", ProtocolName("tcp", API)),
            ("10-1-2-3.shop.pod.cluster.local", PodAddressName(IPv4Address("10.1.2.3"), "shop", ZONE)),
            ("shop.svc.cluster.local", NamespaceName("shop", ZONE)),
            ("shop.pod.cluster.local", NamespaceName("shop", ZONE)),
            ("api.shop.svc.k8s.example.com", ServiceName("api", "shop", "k8s.example.com")),
            ("api.shop.svc.example.com", ServiceName("api", "shop", "example.com")),
            ("Kube-Tunnel.Internal", HostName(OWN_HOST)),
        ],
    )
    def test_what_is_looked_up(self, name: str, wanted: object) -> None:
        assert OURS.decide(question(name)) == wanted

    @pytest.mark.parametrize(
        "name",
        ["", "local", "xcluster.local", "api.shop.svc.cluster.local.com", "api", "api.shop", "api.shop.svc", "arpa",
         "10.in-addr.arpa", "1.0.9.10.in-addr.arpa", "in-addr.arpa", "d.f.ip6.arpa", "x.8.10.in-addr.arpa",
         "internal", "host.docker.internal", "xkube-tunnel.internal", "kube-tunnel.internal.corp", "kube-tunnel"],
    )  # fmt: skip
    def test_forwarded(self, name: str) -> None:
        assert OURS.decide(question(name)) is None

    @pytest.mark.parametrize(
        "name",
        ["*.shop.svc.cluster.local", "a_b.shop.svc.cluster.local", "x.cluster.local", "1-2.shop.pod.cluster.local",
         "_a._b.api.shop.svc.cluster.local", "a.b.c.shop.svc.cluster.local", "-.svc.cluster.local",
         "x.dns-version.cluster.local", "_tcp._tcp.shop.svc.cluster.local", "y.ns.dns.cluster.local"],
    )  # fmt: skip
    def test_no_such_name(self, name: str) -> None:
        answer = OURS.decide(question(name))
        assert isinstance(answer, Answer)
        assert answer.rcode == Rcode.NXDOMAIN

    def test_a_dot_within_a_label_is_no_other_name(self) -> None:
        answer = OURS.decide(Question(("api.shop", "svc", "cluster", "local"), 1))
        assert isinstance(answer, Answer)
        assert answer.rcode == Rcode.NXDOMAIN
        assert OURS.decide(Question(("api", "shop", "svc.cluster", "local"), 1)) is None

    @pytest.mark.parametrize(
        ("name", "zone"), [("x.cluster.local", "cluster.local"), ("x.y.k8s.example.com", "k8s.example.com")]
    )
    def test_the_soa_is_the_zones(self, name: str, zone: str) -> None:
        answer = replace(OURS, negative_ttl_s=7).decide(question(name))
        assert isinstance(answer, Answer)
        (soa,) = answer.authority
        assert isinstance(soa.data, Soa)
        assert (soa.name, soa.ttl_s, soa.data.minimum_s) == (zone, 7, 7)

    @pytest.mark.parametrize("type_", [RecordType.AXFR, RecordType.IXFR])
    @pytest.mark.parametrize("name", [ZONE, "0.8.10.in-addr.arpa"])
    def test_transfers(self, name: str, type_: RecordType) -> None:
        assert OURS.decide(question(name, type_)) == Answer(Rcode.REFUSED)

    @given(
        st.lists(st.text(st.characters(max_codepoint=255), min_size=1, max_size=63), max_size=6), st.integers(0, 300)
    )
    def test_any_labels(self, labels: list[str], type_: int) -> None:
        for zone in ((), ("cluster", "local"), ("0", "8", "10", "in-addr", "arpa")):
            OURS.decide(Question((*labels, *zone), type_))


class TestReverse:
    @pytest.mark.parametrize(
        ("name", "address", "apex", "more"),
        [
            ("7.0.8.10.in-addr.arpa", "10.8.0.7", False, False),
            ("0.8.10.IN-ADDR.arpa", None, True, False),
            ("x.7.0.8.10.in-addr.arpa", "10.8.0.7", False, True),
            ("256.0.8.10.in-addr.arpa", None, False, True),
            ("07.0.8.10.in-addr.arpa", None, False, True),
            ("1" + 31 * ".0" + ".ip6.arpa", None, False, False),
        ],
    )
    def test_read(self, name: str, address: str | None, apex: bool, more: bool) -> None:
        found = read_reverse_name(name.split("."), (RANGE,))
        wanted = ReverseName(IPv4Address(address) if address else None, apex, more)
        assert found == (None if "ip6" in name else wanted)

    @given(st.ip_addresses(network=RANGE) | st.ip_addresses(network=RANGE_6))
    def test_every_address(self, address: IPv4Address) -> None:
        found = read_reverse_name(address.reverse_pointer.split("."), (RANGE, RANGE_6))
        assert found == ReverseName(address, is_apex=False, has_more=False)

    @pytest.mark.parametrize(
        ("network", "name", "zone"),
        [
            ("10.8.0.0/24", "7.0.8.10.in-addr.arpa", "0.8.10.in-addr.arpa"),
            ("10.64.0.0/14", "7.0.65.10.in-addr.arpa", "65.10.in-addr.arpa"),
            ("10.64.0.0/14", "7.0.63.10.in-addr.arpa", None),
            ("10.8.0.0/25", "7.0.8.10.in-addr.arpa", "7.0.8.10.in-addr.arpa"),
            ("10.8.0.0/25", "200.0.8.10.in-addr.arpa", None),
            ("10.8.0.0/25", "0.8.10.in-addr.arpa", None),
            ("fd00:8::/62", "8.0.0.0.0.0.d.f.ip6.arpa", None),
            ("fd00::/14", "0.0.0.d.f.ip6.arpa", "0.0.d.f.ip6.arpa"),
        ],
    )
    def test_zones(self, network: str, name: str, zone: str | None) -> None:
        assert reverse_zone(name.split("."), (ip_network(network),)) == zone

    def test_answers(self) -> None:
        pointer = question("7.0.8.10.in-addr.arpa", RecordType.PTR)
        assert [record.data for record in OURS.of_reverse(pointer, "api.shop.svc.cluster.local").records] == [
            "api.shop.svc.cluster.local"
        ]
        own = replace(OURS, own={IPv4Address("10.8.0.7"): "ns.dns.cluster.local"}).decide(pointer)
        assert isinstance(own, Answer)
        assert [(record.type, record.data) for record in own.records] == [(RecordType.PTR, "ns.dns.cluster.local")]
        assert OURS.of_reverse(pointer, None).rcode == Rcode.NXDOMAIN
        assert OURS.of_reverse(pointer, None).authority[0].name == "0.8.10.in-addr.arpa"
        assert OURS.of_reverse(replace(pointer, type=RecordType.A), "x.y.svc.cluster.local").records == ()
        empty = OURS.decide(question("0.8.10.in-addr.arpa", RecordType.A))
        assert isinstance(empty, Answer)
        assert (empty.rcode, empty.records) == (Rcode.NOERROR, ())

    def test_a_cluster_may_have_the_zone_of_a_host(self) -> None:
        both = replace(OURS, zones=(OWN_HOST,))
        assert both.decide(question(OWN_HOST)) == HostName(OWN_HOST)
        assert both.decide(question(f"api.shop.svc.{OWN_HOST}")) == ServiceName("api", "shop", OWN_HOST)


class TestEndpoints:
    def of(self, state: ServiceState, wanted: ServiceName | SrvName, type_: RecordType) -> list[str]:
        asked = question(str(wanted), type_)
        names = addressed(asked, wanted, state)
        addresses = {name: IPv4Address("10.8.0.9") + position for position, name in enumerate(names)}
        answer = OURS.of_service(asked, wanted, state, addresses)
        return [str(record.data) for record in answer.records] or [answer.rcode.name]

    def test_a_dual_stack_pod_counts_once(self) -> None:
        service = Service("shop", "db", (HTTP,), cluster_ip="None")
        port = (EndpointPort(8080, "http"),)
        state = ServiceState(
            service,
            (
                EndpointSlice("db-6", (Endpoint("fd00::1", "db-a"),), port, "IPv6"),
                EndpointSlice("db-4", (Endpoint("10.1.0.1", "db-a"),), port),
            ),
        )
        wanted = ServiceName("db", "shop", ZONE)
        assert addressed(question(str(wanted)), wanted, state) == (PodName("10-1-0-1", wanted),)
        assert len(self.of(state, wanted, RecordType.A)) == 1

    def test_endpoints_of_one_hostname_are_one_name(self) -> None:
        state = headless("db", Endpoint("10.1.0.1", "a", hostname="db"), Endpoint("10.1.0.2", "b", hostname="db"))
        assert len(self.of(state, ServiceName("db", "shop", ZONE), RecordType.A)) == 1

    def test_srv_only_of_endpoints_that_have_the_port(self) -> None:
        service = Service("shop", "db", (HTTP, GRPC), cluster_ip="None")
        state = ServiceState(
            service,
            (
                EndpointSlice("1", (Endpoint("10.1.0.1", "a", "a"),), (EndpointPort(8080, "http"),)),
                EndpointSlice("2", (Endpoint("10.1.0.2", "b", "b"),), (EndpointPort(9090, "grpc"),)),
            ),
        )
        wanted = SrvName("grpc", "tcp", ServiceName("db", "shop", ZONE))
        assert len(self.of(state, wanted, RecordType.SRV)) == 1
        assert len(self.of(state, ServiceName("db", "shop", ZONE), RecordType.A)) == 2

    @pytest.mark.parametrize("type_", [RecordType.TXT, RecordType.SOA, RecordType.CNAME])
    def test_other_types_need_no_address(self, type_: RecordType) -> None:
        state = clustered("api", HTTP)
        assert addressed(question(str(API), type_), API, state) == ()
        assert self.of(state, API, type_) == ["NOERROR"]
        wanted = SrvName("http", "tcp", API)
        assert self.of(state, wanted, RecordType.A) == ["NOERROR"]

    def test_an_external_name_has_no_ports_and_no_pods(self) -> None:
        service = Service("shop", "api", (HTTP,), type="ExternalName", external_name="www.example.com")
        for wanted in (SrvName("http", "tcp", API), PodName("a", API), ProtocolName("tcp", API)):
            answer = OURS.of_service(question(f"x.{API}", RecordType.SRV), wanted, ServiceState(service), {})
            assert answer.rcode == Rcode.NXDOMAIN

    def test_a_services_pods_have_names_too(self) -> None:
        """CoreDNS answers for the endpoints of any Service, headless or not."""
        state = replace(headless("api", Endpoint("10.1.0.1", "a", "a")), service=clustered("api", HTTP).service)
        assert addressed(question("a." + str(API)), PodName("a", API), state) == (PodName("a", API),)
