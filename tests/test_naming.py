"""What names there are to be on a machine, and their coming and going while the tunnel runs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.settings import DnsSettings, NetworkSettings, Settings, ZoneSettings
from kubetunnel.core.vips import Address
from kubetunnel.loopback_claim import ClaimedByAnother, LoopbackClaim
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from kubetunnel.redirection import Redirection
from kubetunnel.resolv_conf_watch import ResolvConfWatch
from netsetup.state import State
from tests.netsetup.dug import Dug, dig
from tests.proxy.databases import free_port

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore")
    from kubetunnel import naming
    from kubetunnel.naming import Naming
    from kubetunnel.naming_plan import LOOPBACK_RANGE, NamingPlan, plan_naming, tunnel_address

RANGES = (ip_network("10.8.0.0/24"), ip_network("10.9.0.0/24"))
DNS_IP, PROXY_IP = ip_address("10.8.0.1"), ip_address("10.8.0.2")
FORMER = (("192.0.2.53", 53),)
NOW = (("198.51.100.53", 53),)
MACHINE = State(DNS_IP, PROXY_IP, RANGES, ("cluster.local",), 8080, 5353, FORMER, redirected=True, user="dev")
RESOLV_CONF = Path("/etc/resolv.conf")


def settings(dns: dict[str, Any] | None = None, **network: Any) -> Settings:
    return Settings(dns=DnsSettings(**(dns or {})), network=NetworkSettings(**network))


def present(_ours: Collection[str]) -> tuple[tuple[str, int], ...]:
    return NOW


PLAIN = NamingPlan(("cluster.local",), RANGES, dns=("127.0.0.1", 5353), resolvers=NOW)
LED = Redirection("10.8.0.1", 8080, 5353)
ONLY_DNS = replace(LED, proxy_port=None)
SET_UP = replace(PLAIN, reserved=(DNS_IP, PROXY_IP), dns_ips=(DNS_IP,), proxy_ips=(PROXY_IP,), redirection=LED)
IPV6_DNS, IPV6_PROXY = ip_address("fd00:8::1"), ip_address("fd00:8::2")
IPV6 = replace(MACHINE, dns_ip=IPV6_DNS, proxy_ip=IPV6_PROXY, ranges=(ip_network("fd00:8::/64"),))
SET_UP_IPV6 = replace(
    SET_UP, ranges=IPV6.ranges, reserved=(IPV6_DNS, IPV6_PROXY), dns_ips=(IPV6_DNS,), proxy_ips=(IPV6_PROXY,),
    also_dns=("::1", 5353),
    redirection=Redirection("fd00:8::1", 8080, 5353, "::1"),
)  # fmt: skip
LOOPBACK = replace(PLAIN, ranges=(LOOPBACK_RANGE,), loopback=True)


@pytest.mark.parametrize(
    ("wanted", "machine", "plan"),
    [
        (settings(), None, PLAIN),
        (settings(), MACHINE, SET_UP),
        (
            settings(),
            replace(MACHINE, resolv_conf=RESOLV_CONF),
            replace(SET_UP, resolv_conf=(RESOLV_CONF, "10.8.0.1")),
        ),
        (settings(), replace(MACHINE, redirected=False), replace(SET_UP, shared=PROXY_IP, redirection=ONLY_DNS)),
        (settings({"answer": "shared"}), MACHINE, replace(SET_UP, shared=PROXY_IP)),
        (settings({"answer": "shared"}), None, replace(PLAIN, shared=ip_address("127.0.0.1"))),
        (settings(loopback=True), None, LOOPBACK),
        (settings(loopback=True), MACHINE, replace(LOOPBACK, redirection=ONLY_DNS)),
        (
            settings(loopback=True),
            replace(MACHINE, redirected=False),
            replace(LOOPBACK, redirection=ONLY_DNS),
        ),
        (  # the DNS port that the machine leads to, but for one that was asked for
            settings(),
            replace(MACHINE, dns_port=5300),
            replace(SET_UP, dns=("127.0.0.1", 5300), redirection=replace(LED, dns_port=5300)),
        ),
        (settings({"port": 5301}), MACHINE, replace(SET_UP, dns=("127.0.0.1", 5301))),
        (settings(), IPV6, SET_UP_IPV6),
        (settings(ip_ranges=("10.77.0.0/16",)), None, replace(PLAIN, ranges=(ip_network("10.77.0.0/16"),))),
        (settings(ip_ranges=("10.77.0.0/16",)), MACHINE, SET_UP),
        (settings({"enabled": False}), None, replace(PLAIN, dns=None)),
        (
            settings({"port": 53, "tcp": False, "ttl_s": 7.4}),
            None,
            replace(PLAIN, dns=("127.0.0.1", 53), tcp=False, ttl_s=7),
        ),
        (
            replace(settings(), zones=(ZoneSettings("prod.local", "prod"),)),
            None,
            replace(PLAIN, zones=("cluster.local", "prod.local")),
        ),
    ],
)
def test_the_plan(wanted: Settings, machine: State | None, plan: NamingPlan) -> None:
    assert plan_naming(wanted, machine, present) == plan


@pytest.mark.parametrize(("machine", "led_to"), [(None, []), (replace(MACHINE, resolv_conf=RESOLV_CONF), ["10.8.0.1"])])
@pytest.mark.parametrize(("port", "own"), [(5353, []), (53, ["127.0.0.1"])])
def test_a_server_at_our_address_is_another_where_our_port_is(
    port: int, own: list[str], machine: State | None, led_to: list[str]
) -> None:
    """As dnsmasq or unbound at 127.0.0.1 port 53, which is asked first."""

    def asked(ours: Collection[str]) -> tuple[tuple[str, int], ...]:
        return tuple((address, 53) for address in ours)

    expected = tuple((address, 53) for address in [*own, *led_to])
    assert plan_naming(settings({"port": port}), machine, asked).resolvers == expected


@pytest.mark.parametrize("resolv_conf", [None, RESOLV_CONF])
def test_the_servers_of_before_where_there_are_none_now(resolv_conf: Path | None) -> None:
    assert plan_naming(settings(), replace(MACHINE, resolv_conf=resolv_conf), lambda _: ()).resolvers == FORMER


@pytest.mark.parametrize(
    ("planned", "listening", "address"),
    [
        (SET_UP, ["127.0.0.1"], "10.8.0.2"),
        (SET_UP_IPV6, ["127.0.0.1", "::1"], "fd00:8::2"),
        (replace(SET_UP, redirection=ONLY_DNS), ["127.0.0.1"], "127.0.0.1"),  # macOS: nobody listens at 10.8.0.2
        (LOOPBACK, ["127.0.0.1"], "127.0.0.1"),
        (PLAIN, [], "127.0.0.1"),
        (PLAIN, ["192.0.2.7"], "192.0.2.7"),
        (PLAIN, ["fe80::1%eth0"], "fe80::1"),
        (PLAIN, ["0.0.0.0"], "127.0.0.1"),
        (PLAIN, ["::"], "::1"),
        (replace(PLAIN, dns=("192.0.2.7", 53)), ["0.0.0.0"], "192.0.2.7"),
        (replace(PLAIN, dns=("0.0.0.0", 53)), ["0.0.0.0"], "127.0.0.1"),
    ],
)
def test_the_tunnels_own_address(planned: NamingPlan, listening: list[str], address: str) -> None:
    assert tunnel_address(planned, [(host, 8080) for host in listening]) == ip_address(address)


# the plan made true


type Make = Callable[[], Naming]


@pytest.fixture
async def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Make]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO)
    made: list[tuple[Naming, Clusters]] = []

    def one() -> Naming:
        clusters = Clusters(Settings())
        made.append((Naming(clusters, VirtualDestinations()), clusters))
        return made[-1][0]

    yield one
    for found, clusters in made:
        await found.aclose()
        await clusters.aclose()


@pytest.fixture(params=["tasks", "eager tasks"])
def eager(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "eager tasks")


def plan(port: int, **changes: Any) -> NamingPlan:
    return replace(PLAIN, dns=("127.0.0.1", port), resolvers=(), **changes)


async def version(port: int, zone: str = "cluster.local") -> Dug:
    """A question that needs no cluster."""
    return await dig(("127.0.0.1", port), f"dns-version.{zone}", "TXT")


def told_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_changes_while_it_runs(make: Make, eager: bool) -> None:
    if eager:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as in mitmproxy
    port, other = free_port(), free_port()
    found = make()
    await found.apply(plan(port))
    assert (await version(port)).data == ['"1.1.0"']
    # the same port again and again, and at once
    for changed in (plan(port, ttl_s=9), plan(port, tcp=False), plan(port, shared=PROXY_IP), plan(port)):
        await found.apply(changed)
        assert found.dns_address == ("127.0.0.1", port)
    assert (await version(port)).answer[0][1] == "5"
    await found.apply(plan(port, ttl_s=9))
    assert (await version(port)).answer[0][1] == "9"
    await found.apply(plan(other))
    assert (await version(other)).data == ['"1.1.0"']
    with pytest.raises(TimeoutError):
        await dig(("127.0.0.1", port), "dns-version.cluster.local", "TXT", timeout_s=1)
    await found.apply(replace(plan(other), dns=None))
    assert found.dns_address is None


async def test_other_resolvers_leave_the_listeners(make: Make) -> None:
    found, port = make(), free_port()
    wanted = plan(port, ranges=(LOOPBACK_RANGE,), loopback=True)
    await found.apply(wanted)
    listeners = found._listeners
    await found.apply(replace(wanted, resolvers=NOW, ttl_s=9))
    assert (await version(port)).answer[0][1] == "9"
    assert found._listeners is listeners
    await found.apply(replace(wanted, zones=("corp.example",)))
    assert found._listeners is not listeners


async def test_the_tunnels_own_name_follows_it(make: Make) -> None:
    found, port = make(), free_port()
    found._listening = lambda: (("127.0.0.9", 8080),)
    await found.apply(plan(port))
    dug = await dig(("127.0.0.1", port), "kube-tunnel.internal")
    assert (dug.data, (await dig(("127.0.0.1", port), "kube-tunnel.internal", "AAAA")).nodata) == (["127.0.0.9"], True)
    await found.apply(plan(port, proxy_ips=(PROXY_IP,), redirection=LED))
    assert (await dig(("127.0.0.1", port), "kube-tunnel.internal")).data == ["10.8.0.2"]


@pytest.mark.parametrize(
    ("listening", "wanted", "words"),
    [
        ([("127.0.0.1", 80)], {"redirection": LED}, "-m kubetunnel netsetup up --port 80"),
        ([("127.0.0.1", 8080)], {"redirection": LED}, ""),
        ([], {"redirection": LED}, ""),
        ([], {"loopback": True, "ranges": (LOOPBACK_RANGE,)}, "kube-tunnel --loopback --dns"),
    ],
)
async def test_what_leads_elsewhere_is_told_of_once(
    make: Make,
    caplog: pytest.LogCaptureFixture,
    listening: list[tuple[str, int]],
    wanted: dict[str, Any],
    words: str,
) -> None:
    found = make()
    found._listening = lambda: tuple(listening)
    for _ in range(3):
        await found.apply(replace(plan(0), dns=None, **wanted))
    told = told_of(caplog)
    assert len(told) == bool(words)
    assert not words or told[0].endswith(words)


@pytest.mark.parametrize(
    ("at", "dns_ips", "told"),
    [("127.0.0.1", (), False), ("0.0.0.0", (), True), ("0.0.0.0", (ip_address("0.0.0.0"),), False)],
)
async def test_a_dns_server_for_others_is_warned_of(
    make: Make, caplog: pytest.LogCaptureFixture, at: str, dns_ips: tuple[Address, ...], told: bool
) -> None:
    """Not so at an address of ours, which netsetup made."""
    await make().apply(replace(PLAIN, dns=(at, free_port()), resolvers=(), dns_ips=dns_ips))
    assert (f"DNS server on {at}: everyone who can reach this address" in caplog.text) == told


async def test_the_same_plan_changes_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    found, wanted = make(), plan(free_port())
    await found.apply(wanted)
    told = len(caplog.records)
    for _ in range(3):
        await found.apply(wanted)
    assert len(caplog.records) == told


async def test_a_taken_port_is_told_of_once_and_had_when_it_is_free(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        wanted = plan(port, tcp=False)  # the TCP port of that number may be anybody's
        await found.apply(wanted)
        monkeypatch.setattr(naming, "RETRY_S", 0.0)
        await found.apply(replace(wanted, ttl_s=6))
        for _ in range(3):
            await found.apply(replace(wanted, ttl_s=6))
        assert found.dns_address is None
        with pytest.raises(NotAServiceName):  # the rest is there
            found._virtual.host("10.8.0.9")
    assert len(told_of(caplog)) == 2, "one for each plan"
    assert f"port {port}" in told_of(caplog)[0]
    await found.apply(replace(wanted, ttl_s=6))
    assert (await version(port)).data == ['"1.1.0"']


async def test_it_is_not_tried_again_before_its_time(make: Make) -> None:
    found = make()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        wanted = plan(taken.getsockname()[1])
        await found.apply(wanted)
    await found.apply(wanted)
    assert found.dns_address is None


async def test_netsetup_comes_and_goes(make: Make) -> None:
    found, port = make(), free_port()
    virtual = found._virtual
    there = replace(
        plan_naming(settings({"port": port}), replace(MACHINE, ranges=(ip_network("10.77.0.0/24"),)), present),
        resolvers=(),
    )
    await found.apply(plan(port))
    assert virtual.host("10.77.0.9") == "10.77.0.9"
    await found.apply(there)
    with pytest.raises(NotAServiceName, match="it is no Service's"):
        virtual.host("10.77.0.9")
    assert (await dig(("127.0.0.1", port), "-x", "10.77.0.9")).nxdomain
    await found.apply(plan(port))
    assert virtual.host("10.77.0.9") == "10.77.0.9"


async def test_zones_come_and_go(make: Make) -> None:
    clusters = Clusters(replace(Settings(), zones=(ZoneSettings("prod.local", "prod"),)))
    port = free_port()
    found = Naming(clusters, VirtualDestinations())
    try:
        await found.apply(plan(port, zones=clusters.zones))
        assert (await version(port, "prod.local")).data == ['"1.1.0"']
        clusters.configure(Settings(), None)
        await found.apply(plan(port, zones=clusters.zones))
        assert (await version(port, "prod.local")).status == "REFUSED"
    finally:
        await found.aclose()
        await clusters.aclose()


# two tunnels


async def test_of_two_tunnels_one_listens_at_loopback(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "RETRY_S", 0.0)
    first, second = make(), make()
    wanted = plan(free_port(), ranges=(LOOPBACK_RANGE,), loopback=True)
    other = replace(wanted, dns=("127.0.0.1", free_port()))
    await first.apply(wanted)
    for _ in range(3):
        await second.apply(other)
    assert first.dns_address is not None
    assert second.dns_address is None
    (told,) = told_of(caplog)
    assert f"process {os.getpid()}, listens at loopback addresses already" in told
    assert f"ps -fp {os.getpid()}" in told
    await first.aclose()
    await second.apply(other)
    assert second.dns_address is not None


def test_a_claim_without_a_place_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        LoopbackClaim.take(tmp_path / "file" / "claim").close()


def test_a_claim_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "claim"
    held = LoopbackClaim.take(path)
    with pytest.raises(ClaimedByAnother):
        LoopbackClaim.take(path)
    held.close()
    LoopbackClaim.take(path).close()


# resolv.conf


def test_a_resolv_conf_that_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "resolv.conf"
    ours = "nameserver 10.8.0.1 # kube-tunnel\nnameserver 192.0.2.53\n"
    path.write_text(ours)
    watch = ResolvConfWatch(path, "10.8.0.1")
    watch.look()
    assert not caplog.records
    for content in ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n", f"nameserver 192.0.2.3\n{ours}", None):
        path.unlink()
        if content is not None:
            path.write_text(content)
        watch.look()
    (told,) = told_of(caplog)
    assert told.endswith(f"sudo sed -i --follow-symlinks '1i nameserver 10.8.0.1 # kube-tunnel' {path}")
    path.write_text(ours)
    watch.look()
    watch.look()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


async def test_it_is_looked_at_while_the_plan_stays(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.8.0.1 # kube-tunnel\n")
    found, wanted = make(), plan(free_port(), resolv_conf=(path, "10.8.0.1"))
    await found.apply(wanted)
    assert not told_of(caplog)
    path.write_text("nameserver 192.0.2.1\n")
    await found.apply(wanted)
    await found.apply(wanted)
    assert len(told_of(caplog)) == 1
