"""The Kubernetes DNS specification's tables (schema 1.1.0), row by row, asked by dig."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network

import pytest

from kubetunnel.core.errors import ClusterUnreachable, Forbidden
from netsetup.dns_records import Address
from netsetup.dns_server import DnsPortUnavailable, DnsServer
from tests.netsetup.dug import Dug, dig
from tests.netsetup.shop import RANGE, ZONE, Shop

SHOP = f"shop.svc.{ZONE}"


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=["tasks", "eager tasks"])
async def server(shop: Shop, request: pytest.FixtureRequest) -> AsyncIterator[DnsServer]:
    if request.param == "eager tasks":
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as in mitmproxy
    server = DnsServer(shop, host="127.0.0.1", port=0, ranges=(RANGE,))
    await server.start()
    yield server
    await server.aclose()


async def ask(server: DnsServer, *words: str) -> Dug:
    return await dig(server.addresses[0], *words)


class TestOwnHost:
    """`kube-tunnel.internal`: a name of no cluster, at an address that may change."""

    @pytest.fixture
    async def server(self, shop: Shop) -> AsyncIterator[DnsServer]:
        async def address() -> Address:
            return ip_address("10.8.0.2")

        server = DnsServer(shop, host="127.0.0.1", port=0, hosts={"kube-tunnel.internal": address})
        await server.start()
        yield server
        await server.aclose()

    async def test_its_address(self, server: DnsServer) -> None:
        dug = await ask(server, "Kube-Tunnel.internal")
        assert dug.answer == [["Kube-Tunnel.internal.", "5", "IN", "A", "10.8.0.2"]]
        assert "aa" in dug.flags

    async def test_it_has_no_other(self, server: DnsServer) -> None:
        for type_ in ("AAAA", "TXT", "MX"):
            dug = await ask(server, "kube-tunnel.internal", type_)
            assert dug.nodata, dug
            assert dug.authority[0][0] == "kube-tunnel.internal."
        assert (await ask(server, "kube-tunnel.internal", "SOA")).answer[0][3] == "SOA"

    async def test_nothing_is_below_it(self, server: DnsServer) -> None:
        dug = await ask(server, "www.kube-tunnel.internal")
        assert dug.nxdomain
        assert dug.authority[0][0] == "kube-tunnel.internal."

    async def test_its_neighbours_are_not_ours(self, server: DnsServer) -> None:
        for name in ("internal", "host.docker.internal", "kube-tunnel.internal.corp.example"):
            assert (await ask(server, name)).status == "REFUSED", "there is no upstream here"

    async def test_without_a_host_of_that_name(self, shop: Shop) -> None:
        server = DnsServer(shop, host="127.0.0.1", port=0)
        await server.start()
        try:
            assert (await ask(server, "kube-tunnel.internal")).status == "REFUSED"
        finally:
            await server.aclose()


class TestSchema:
    async def test_2_2_version(self, server: DnsServer) -> None:
        dug = await ask(server, f"dns-version.{ZONE}", "TXT")
        assert dug.data == ['"1.1.0"']
        assert dug.answer[0][:4] == [f"dns-version.{ZONE}.", "5", "IN", "TXT"]

    async def test_2_3_1_address_of_a_service(self, server: DnsServer, shop: Shop) -> None:
        dug = await ask(server, f"api.{SHOP}")
        assert dug.answer == [[f"api.{SHOP}.", "5", "IN", "A", str(shop.addresses[f"api.{SHOP}"])]]
        assert "aa" in dug.flags

    async def test_2_3_1_no_address_of_the_other_family(self, server: DnsServer) -> None:
        assert (await ask(server, f"api.{SHOP}", "AAAA")).nodata

    async def test_2_3_1_ipv6(self) -> None:
        shop = Shop(ipv6=True)
        server = DnsServer(shop, host="127.0.0.1", port=0)
        await server.start()
        try:
            assert (await ask(server, f"api.{SHOP}", "AAAA")).data == [str(shop.addresses[f"api.{SHOP}"])]
            assert (await ask(server, f"api.{SHOP}", "A")).nodata
        finally:
            await server.aclose()

    @pytest.mark.parametrize(("port", "number"), [("_http._tcp", 80), ("_grpc._tcp", 9090), ("_dns._udp", 53)])
    async def test_2_3_2_srv(self, server: DnsServer, shop: Shop, port: str, number: int) -> None:
        dug = await ask(server, f"{port}.api.{SHOP}", "SRV")
        assert dug.data == [f"0 100 {number} api.{SHOP}."]
        assert dug.additional == [[f"api.{SHOP}.", "5", "IN", "A", str(shop.addresses[f"api.{SHOP}"])]]

    @pytest.mark.parametrize("name", ["_web._tcp.api", "_http._udp.api", "_dns._tcp.api", "_x._tcp.plain"])
    async def test_2_3_2_no_such_port(self, server: DnsServer, name: str) -> None:
        assert (await ask(server, f"{name}.{SHOP}", "SRV")).nxdomain

    async def test_2_3_3_ptr(self, server: DnsServer, shop: Shop) -> None:
        await ask(server, f"api.{SHOP}")
        dug = await ask(server, "-x", str(shop.addresses[f"api.{SHOP}"]))
        assert dug.data == [f"api.{SHOP}."]

    async def test_2_4_1_one_address_for_each_ready_endpoint(self, server: DnsServer, shop: Shop) -> None:
        dug = await ask(server, f"db.{SHOP}")
        of = {name.removesuffix(f".db.{SHOP}"): str(address) for name, address in shop.addresses.items()}
        assert set(of) == {"db-0", "db-1", "10-244-0-3"}
        assert dug.data == sorted(of.values())

    async def test_2_4_1_none_ready(self, server: DnsServer) -> None:
        assert (await ask(server, f"nobody.{SHOP}")).nxdomain

    async def test_2_4_1_not_ready_but_published(self, server: DnsServer, shop: Shop) -> None:
        assert (await ask(server, f"early.{SHOP}")).data == [str(shop.addresses[f"early-0.early.{SHOP}"])]

    @pytest.mark.parametrize("hostname", ["db-0", "DB-1", "10-244-0-3"])
    async def test_2_4_1_an_endpoint_by_hostname(self, server: DnsServer, shop: Shop, hostname: str) -> None:
        dug = await ask(server, f"{hostname}.db.{SHOP}")
        assert dug.data == [str(shop.addresses[f"{hostname.lower()}.db.{SHOP}"])]

    @pytest.mark.parametrize("hostname", ["db-2", "db-3", "db-9", "10-244-0-1"])
    async def test_2_4_1_no_such_ready_endpoint(self, server: DnsServer, hostname: str) -> None:
        assert (await ask(server, f"{hostname}.db.{SHOP}")).nxdomain

    async def test_2_4_2_srv_of_each_endpoint(self, server: DnsServer, shop: Shop) -> None:
        dug = await ask(server, f"_http._tcp.db.{SHOP}", "SRV")
        hosts = sorted(["db-0", "db-1", "10-244-0-3"])
        assert dug.data == [f"0 100 80 {host}.db.{SHOP}." for host in hosts]
        assert sorted(words[0] for words in dug.additional) == [f"{host}.db.{SHOP}." for host in hosts]

    async def test_2_4_2_unnamed_port_has_none(self, server: DnsServer) -> None:
        assert (await ask(server, f"_._tcp.db.{SHOP}", "SRV")).nxdomain

    async def test_2_4_3_ptr_of_an_endpoint(self, server: DnsServer, shop: Shop) -> None:
        await ask(server, f"db-0.db.{SHOP}")
        assert (await ask(server, "-x", str(shop.addresses[f"db-0.db.{SHOP}"]))).data == [f"db-0.db.{SHOP}."]

    async def test_2_5_external_name(self, server: DnsServer) -> None:
        dug = await ask(server, f"elsewhere.{SHOP}")
        assert dug.answer == [[f"elsewhere.{SHOP}.", "5", "IN", "CNAME", "www.example.com."]]

    async def test_2_6_pod_by_address(self, server: DnsServer, shop: Shop) -> None:
        name = f"10-244-0-1.shop.pod.{ZONE}"
        assert (await ask(server, name)).data == [str(shop.addresses[name])]
        assert (await ask(server, f"10-244-9-9.shop.pod.{ZONE}")).nxdomain


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [f"no.{SHOP}", f"api.nowhere.svc.{ZONE}", f"nowhere.svc.{ZONE}", f"x.y.z.{ZONE}", f"www.google.com.{SHOP}"],
    )
    async def test_what_does_not_exist(self, server: DnsServer, name: str) -> None:
        dug = await ask(server, name)
        assert dug.nxdomain
        assert dug.authority[0][0] == f"{ZONE}."
        assert dug.authority[0][1] == dug.authority[0][-1] == "5"

    @pytest.mark.parametrize("name", [f"svc.{ZONE}", f"pod.{ZONE}", SHOP, f"shop.pod.{ZONE}", f"_tcp.api.{SHOP}"])
    async def test_parents_of_names_exist_and_are_empty(self, server: DnsServer, name: str) -> None:
        assert (await ask(server, name)).nodata

    async def test_the_zone_itself(self, server: DnsServer) -> None:
        assert (await ask(server, ZONE, "NS")).data == [f"ns.dns.{ZONE}."]
        assert (await ask(server, ZONE, "SOA")).data[0].startswith(f"ns.dns.{ZONE}. hostmaster.{ZONE}. ")
        assert (await ask(server, ZONE, "A")).nodata
        assert (await ask(server, f"ns.dns.{ZONE}")).data == ["127.0.0.1"]

    async def test_the_questions_case_comes_back(self, server: DnsServer) -> None:
        name = "aPi.ShOp.SvC.ClusTer.LocaL."
        dug = await ask(server, name)
        assert dug.question == dug.answer[0][0] == name

    async def test_an_alias_to_a_service(self, server: DnsServer, shop: Shop) -> None:
        assert (await ask(server, f"inside.{SHOP}")).data == sorted(
            [f"api.{SHOP}.", str(shop.addresses[f"api.{SHOP}"])]
        )

    async def test_aliases_in_a_circle(self, server: DnsServer) -> None:
        assert (await ask(server, f"round.{SHOP}")).status == "SERVFAIL"

    async def test_an_address_is_no_alias(self, server: DnsServer) -> None:
        assert (await ask(server, f"numeric.{SHOP}")).nodata

    @pytest.mark.parametrize("words", [("AXFR", "+tcp"), ("IXFR=1",)])
    async def test_no_transfers(self, server: DnsServer, words: tuple[str, ...]) -> None:
        dug = await ask(server, ZONE, *words)
        assert dug.status == "REFUSED" or "Transfer failed" in dug.text

    async def test_another_class(self, server: DnsServer) -> None:
        assert (await ask(server, f"api.{SHOP}", "CH", "TXT")).status == "REFUSED"

    async def test_any(self, server: DnsServer) -> None:
        assert [words[3] for words in (await ask(server, f"api.{SHOP}", "ANY", "+notcp")).answer] == ["A"]

    async def test_a_foreign_name_without_upstreams(self, server: DnsServer) -> None:
        assert (await ask(server, "www.example.com")).status == "REFUSED"

    async def test_a_foreign_name_that_looks_like_ours(self, server: DnsServer) -> None:
        assert (await ask(server, "api.shop.svc.cluster.local.evil.com")).status == "REFUSED"
        assert (await ask(server, "api.shop.svc.xcluster.local")).status == "REFUSED"

    async def test_a_reverse_name_of_others(self, server: DnsServer) -> None:
        assert (await ask(server, "-x", "10.9.0.1")).status == "REFUSED"

    async def test_one_shared_address(self) -> None:
        server = DnsServer(Shop(shared=ip_address("10.8.0.2")), host="127.0.0.1", port=0)
        await server.start()
        try:
            assert (await ask(server, f"db.{SHOP}")).data == ["10.8.0.2"]
        finally:
            await server.aclose()

    async def test_another_zone(self) -> None:
        shop = Shop(zones=(ZONE, "prod.local"))
        server = DnsServer(shop, host="127.0.0.1", port=0)
        await server.start()
        try:
            assert (await ask(server, "api.shop.svc.prod.local")).data == [
                str(shop.addresses["api.shop.svc.prod.local"])
            ]
            assert (await ask(server, "no.shop.svc.prod.local")).authority[0][0] == "prod.local."
            shop.zones = (ZONE,)
            assert (await ask(server, "db.shop.svc.prod.local")).status == "REFUSED"
        finally:
            await server.aclose()


class TestSizes:
    async def test_too_large_for_udp_comes_by_tcp(self, server: DnsServer) -> None:
        assert len((await ask(server, f"many.{SHOP}")).answer) == 1500

    async def test_truncated(self, server: DnsServer) -> None:
        dug = await ask(server, f"many.{SHOP}", "+ignore")
        assert "tc" in dug.flags
        assert not dug.answer

    async def test_the_clients_size_counts(self, server: DnsServer) -> None:
        # three addresses and a question: more than 512 with SRV's additional records, which may go without TC
        dug = await ask(server, f"_http._tcp.db.{SHOP}", "SRV", "+noedns", "+ignore")
        assert "tc" not in dug.flags
        assert len(dug.answer) == 3
        assert "tc" in (await ask(server, f"_http._tcp.many.{SHOP}", "SRV", "+bufsize=4096", "+ignore")).flags

    async def test_more_than_a_message_takes(self, server: DnsServer) -> None:
        dug = await ask(server, f"_http._tcp.many.{SHOP}", "SRV", "+tcp")
        assert "tc" in dug.flags
        assert len(dug.answer) > 500
        assert "malformed" not in dug.text

    async def test_edns(self, server: DnsServer) -> None:
        assert (await ask(server, f"api.{SHOP}", "+dnssec")).edns.startswith("version: 0, flags: do; udp: ")
        assert not (await ask(server, f"api.{SHOP}", "+noedns")).edns
        assert (await ask(server, f"api.{SHOP}", "+edns=1", "+noednsnegotiation")).status == "BADVERS"


class TestCluster:
    @pytest.mark.parametrize("error", [ClusterUnreachable("It is off."), Forbidden("No right to get services.")])
    async def test_servfail_while_it_cannot_be_asked(self, server: DnsServer, shop: Shop, error: Exception) -> None:
        shop.error = error
        assert (await ask(server, f"api.{SHOP}")).status == "SERVFAIL"
        assert (await ask(server, f"dns-version.{ZONE}", "TXT")).status == "NOERROR"

    async def test_servfail_soon_when_it_does_not_answer(self, shop: Shop) -> None:
        server = DnsServer(shop, host="127.0.0.1", port=0, patience_s=0.1)
        await server.start()
        shop.gate.clear()
        try:
            # both ask the one lookup; dig gives up after 3 s
            first, second = await asyncio.gather(
                dig(server.addresses[0], f"api.{SHOP}", timeout_s=3),
                dig(server.addresses[0], f"api.{SHOP}", timeout_s=3),
            )
            assert first.status == second.status == "SERVFAIL"
            assert shop.asked[f"api.{SHOP}"] == 1
        finally:
            await server.aclose()

    async def test_a_defect_costs_one_answer(
        self, server: DnsServer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        shop.error = ZeroDivisionError("a defect")
        assert (await ask(server, f"api.{SHOP}")).status == "SERVFAIL"
        assert "because of a defect" in caplog.text
        shop.error = None
        assert (await ask(server, f"plain.{SHOP}")).status == "NOERROR"

    async def test_facts(self, server: DnsServer) -> None:
        for _ in range(2):
            await ask(server, f"api.{SHOP}", "+nocookie")
        await ask(server, f"no.{SHOP}", "AAAA")
        await ask(server, f"api.{SHOP}", "TYPE65")
        facts = server.facts()
        assert facts.answers == {("A", "NOERROR"): 2, ("AAAA", "NXDOMAIN"): 1, ("other", "NOERROR"): 1}
        assert facts.cached == 1


class TestListening:
    async def test_a_port_that_is_taken(self, shop: Shop) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            server = DnsServer(shop, host="127.0.0.1", port=taken.getsockname()[1])
            with pytest.raises(DnsPortUnavailable, match=r"cannot listen on 127\.0\.0\.1"):
                await server.start()
            await server.aclose()

    async def test_a_tcp_port_that_is_taken_leaves_nothing_open(self, shop: Shop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = DnsServer(shop, host="127.0.0.1", port=taken.getsockname()[1])
            with pytest.raises(DnsPortUnavailable):
                await server.start()
            assert server.addresses == ()

    async def test_beside_a_responder_of_mdns(self, shop: Shop) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            responder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with socket.create_server(("127.0.0.1", 0)) as free:  # for TCP: one that is free for UDP alone will not do
                port = free.getsockname()[1]
                responder.bind(("", port))
            server = DnsServer(shop, host="127.0.0.1", port=port)
            await server.start()
            try:
                assert (await ask(server, f"api.{SHOP}")).status == "NOERROR"
                second = DnsServer(shop, host="127.0.0.1", port=port)
                with pytest.raises(DnsPortUnavailable):
                    await second.start()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    with pytest.raises(OSError, match="in use"):
                        stranger.bind(server.addresses[0])
            finally:
                await server.aclose()

    async def test_without_tcp(self, shop: Shop) -> None:
        server = DnsServer(shop, host="127.0.0.1", port=0, tcp=False)
        await server.start()
        try:
            assert (await ask(server, f"api.{SHOP}")).status == "NOERROR"
            with pytest.raises(OSError, match=r"refused|111"):
                await asyncio.open_connection(*server.addresses[0])
        finally:
            await server.aclose()

    async def test_ipv6(self, shop: Shop) -> None:
        server = DnsServer(shop, host="::1", port=0, ranges=(ip_network("fd00:8::/64"),))
        try:
            await server.start()
        except DnsPortUnavailable as error:
            pytest.skip(f"no IPv6 loopback: {error}")
        try:
            assert (await ask(server, f"api.{SHOP}")).status == "NOERROR"
            assert (await ask(server, "-x", "fd00:8::1")).authority[0][0] == "0.0.0.0.0.0.0.0.8.0.0.0.0.0.d.f.ip6.arpa."
        finally:
            await server.aclose()

    @pytest.mark.parametrize("eager", [False, True])
    async def test_the_port_is_free_after_the_end(self, shop: Shop, eager: bool) -> None:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        port = 0
        for _ in range(5):
            server = DnsServer(shop, host="127.0.0.1", port=port)
            await server.start()
            port = server.addresses[0][1]
            await server.aclose()
