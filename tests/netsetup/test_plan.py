"""Wanted, found -> steps; and what a machine is without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netsetup.errors import BadWishError, LinkTakenError, StepError
from netsetup.found import Found, FoundLink, FoundResolver, FoundRoute, without
from netsetup.layout import Wanted, choose_layout
from netsetup.operations import (
    AddAddress,
    AddAlias,
    AddLink,
    AddRoute,
    EditResolvConf,
    LinkResolvConf,
    MakeDirectory,
    Operation,
    Redirect,
    SetLinkResolver,
    WriteFile,
    link_mac,
)
from netsetup.plan import notes, plan
from netsetup.resolv_conf import Edit, edited, nameservers
from tests.netsetup.machines import RESOLV_CONF, laptop


def planned(found: Found, wanted: Wanted | None = None) -> tuple[Operation, ...]:
    wanted = wanted or Wanted()
    return plan(wanted, choose_layout(wanted, found), found)


def last(kind: str, wanted: Wanted | None = None, **resolver: object) -> tuple[Operation, ...]:
    """What concerns the resolver alone."""
    found = laptop(resolver=replace(FoundResolver(kind, ("192.168.1.1",)), **resolver))  # type: ignore[arg-type]
    steps = planned(found, wanted)
    return steps[[isinstance(step, Redirect) for step in steps].index(True) + 1 :]


def test_a_linux_machine_with_nothing_but_resolv_conf() -> None:
    assert planned(laptop()) == (
        AddLink("kube-dns0", link_mac("kube-dns0")),
        AddLink("kube-proxy0", link_mac("kube-proxy0")),
        AddAddress("kube-dns0", "10.8.0.1/24"),
        AddAddress("kube-proxy0", "10.8.0.2/24"),
        AddRoute("kube-proxy0", "10.8.0.0/24", "10.8.0.2"),
        AddRoute("kube-proxy0", "10.9.0.0/24", "10.8.0.2"),
        Redirect("nft", ("10.8.0.0/24", "10.9.0.0/24"), "10.8.0.1", "10.8.0.2", 8080, 5353, forwarded=False),
        EditResolvConf("/etc/resolv.conf", "/etc/resolv.conf", "10.8.0.1", RESOLV_CONF),
    )


def test_the_wanted_names_and_ports() -> None:
    wanted = Wanted(dns_link="d", proxy_link="p", port=80, dns_port=53535, forwarded=True)
    steps = planned(laptop(redirector="iptables"), wanted)
    assert [step.name for step in steps if isinstance(step, AddLink)] == ["d", "p"]
    redirect = next(step for step in steps if isinstance(step, Redirect))
    assert (redirect.program, redirect.port, redirect.dns_port, redirect.forwarded) == ("iptables", 80, 53535, True)


def test_systemd_resolved() -> None:
    wanted = Wanted(zones=("cluster.local", "Prod.Local."))
    domains = ("~cluster.local", "~prod.local", "~kube-tunnel.internal", "~0.8.10.in-addr.arpa", "~0.9.10.in-addr.arpa")
    assert last("systemd-resolved", wanted) == (SetLinkResolver("kube-dns0", "10.8.0.1", domains),)
    steps = planned(laptop(resolver=FoundResolver("systemd-resolved")))
    assert [step.carrier for step in steps if isinstance(step, AddLink)] == [True, False]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("../run/systemd/resolve/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
        ("resolv.conf.of-the-office", "/run/systemd/resolve/stub-resolv.conf"),  # itself a link to resolved's file
    ],
)
def test_a_link_past_systemd_resolved_leads_to_it(link: str, target: str) -> None:
    found = laptop(resolver=FoundResolver("systemd-resolved", bypass=link))
    steps = planned(found)
    assert isinstance(steps[-2], SetLinkResolver)
    assert steps[-1] == LinkResolvConf("/etc/resolv.conf", target, link)
    there = replace(found, resolver=FoundResolver("systemd-resolved"))
    assert without(there, steps).resolver.bypass == link


SEARCHED = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")


def test_a_search_list() -> None:
    wanted = Wanted(search="shop", zones=("cluster.local", "prod.local"))
    (resolved,) = last("systemd-resolved", wanted)
    assert isinstance(resolved, SetLinkResolver)
    assert resolved.domains == (
        *SEARCHED, "~prod.local", "~kube-tunnel.internal", "~0.8.10.in-addr.arpa", "~0.9.10.in-addr.arpa",
    )  # fmt: skip
    for content, domain, search in (
        (b"search corp\n", "home.example", SEARCHED),
        (b"nameserver 192.168.1.1\n", "home.example", ("home.example", *SEARCHED)),  # which is searched by itself else
        (None, "", SEARCHED),
    ):
        resolver = FoundResolver("resolv.conf", resolv_conf=content, domain=domain)
        found = laptop(resolver=resolver)
        edit = plan(wanted, choose_layout(wanted, found), found)[-1]
        assert isinstance(edit, EditResolvConf)
        assert edit.search == search
    for kind in ("NetworkManager", "resolver-directory"):
        found = laptop(resolver=FoundResolver(kind))
        assert "search list is left" in notes(wanted, choose_layout(wanted, found), found)[0]
    with pytest.raises(BadWishError, match="not a Namespace"):
        choose_layout(Wanted(search="a.b"), laptop())


def test_where_all_servers_are_asked_at_once_ours_is_the_only_one() -> None:
    found = laptop(resolver=FoundResolver("resolv.conf", resolv_conf=RESOLV_CONF, asks_all_at_once=True))
    edit = planned(found)[-1]
    assert isinstance(edit, EditResolvConf)
    assert nameservers(edited(edit.before, edit.wanted)) == ("10.8.0.1",)
    assert "the only one" in notes(Wanted(), choose_layout(Wanted(), found), found)[0]
    assert not notes(Wanted(), choose_layout(Wanted(), laptop()), laptop())


def test_network_manager() -> None:
    directory = "/etc/NetworkManager/dnsmasq.d"
    (step,) = last("NetworkManager", directories=frozenset([directory]))
    assert isinstance(step, WriteFile)
    assert step.path == f"{directory}/kube-tunnel.conf"
    zones = ("cluster.local", "kube-tunnel.internal", "0.8.10.in-addr.arpa", "0.9.10.in-addr.arpa")
    assert step.content.decode().endswith("".join(f"\nserver=/{zone}/10.8.0.1" for zone in zones) + "\n")
    assert step.reload == ("nmcli", "general", "reload", "dns-full")
    assert last("NetworkManager")[0] == MakeDirectory(directory)


def test_macos() -> None:
    office = b"nameserver 192.0.2.1\n"
    resolver = FoundResolver("resolver-directory", ("192.168.1.1",), files={"/etc/resolver/corp.example": office})
    found = laptop(resolver=resolver, redirector=None, aliases=True)
    aliases = [AddAlias("10.8.0.1"), AddAlias("10.8.0.2")]
    first, second, directory, *files = planned(found, Wanted(zones=("cluster.local", "corp.example"), dns_port=5300))
    assert [first, second] == aliases
    assert directory == MakeDirectory("/etc/resolver")
    assert [(f.path, f.before) for f in files if isinstance(f, WriteFile)] == [
        ("/etc/resolver/cluster.local", None),
        ("/etc/resolver/corp.example", office),
        ("/etc/resolver/kube-tunnel.internal", None),
        ("/etc/resolver/0.8.10.in-addr.arpa", None),
        ("/etc/resolver/0.9.10.in-addr.arpa", None),
    ]
    assert all(isinstance(f, WriteFile) and f.content.endswith(b"\nnameserver 127.0.0.1\nport 5300\n") for f in files)


def test_a_link_of_that_name_is_there() -> None:
    with pytest.raises(LinkTakenError, match="Choose another name: --proxy-link") as refused:
        planned(laptop(FoundLink("kube-proxy0", "52:54:00:00:00:01")))
    assert "delete" not in str(refused.value)
    with pytest.raises(LinkTakenError, match="sudo ip link delete kube-dns0"):  # ours, of a lost state file
        planned(laptop(FoundLink("kube-dns0", link_mac("kube-dns0"))))


def test_nothing_can_redirect() -> None:
    with pytest.raises(StepError, match="Install nftables"):
        planned(laptop(redirector=None))


def test_every_step_has_its_line() -> None:
    past = laptop(resolver=FoundResolver("systemd-resolved", bypass="/run/systemd/resolve/resolv.conf"))
    steps = (*planned(laptop()), *planned(past)[-2:], *last("NetworkManager"), AddAlias("10.8.0.1"))
    assert len({step.text for step in steps}) == len(steps)
    assert not any("\n" in step.text for step in steps)


def done(steps: tuple[Operation, ...], found: Found) -> Found:
    """The machine with these steps done."""
    layout = choose_layout(Wanted(), found)
    links = (
        *found.links,
        FoundLink("kube-dns0", link_mac("kube-dns0"), (layout.dns_address,)),
        FoundLink("kube-proxy0", link_mac("kube-proxy0"), (layout.proxy_address,)),
    )
    routes = (*found.routes, *(FoundRoute(prefix, "kube-proxy0") for prefix in layout.ranges))
    content = edited(RESOLV_CONF, Edit("10.8.0.1"))
    resolver = replace(found.resolver, resolv_conf=content, servers=("10.8.0.1", "192.168.1.1"))
    return replace(found, links=links, routes=routes, resolver=resolver)


def test_a_machine_without_our_steps_is_what_it_was() -> None:
    steps = planned(laptop())
    assert without(done(steps, laptop()), steps) == laptop()


def test_a_link_that_somebody_else_has_made_stays() -> None:
    theirs = FoundLink("kube-dns0", "52:54:00:00:00:01")
    assert theirs in without(laptop(theirs), planned(laptop())).links


def test_the_server_that_resolved_lists_for_our_link_is_not_somebody_elses() -> None:
    found = laptop(resolver=FoundResolver("systemd-resolved", ("192.168.1.1", "10.8.0.1")))
    step = SetLinkResolver("kube-dns0", "10.8.0.1", ("~cluster.local",))
    assert without(found, [step]).resolver.servers == ("192.168.1.1",)
