"""Whether a program that asks for a name of the zone asks us in the end."""

from __future__ import annotations

from dataclasses import dataclass

from kubetunnel.doctor.dns_question import dns_server_answers, own_name, resolve
from kubetunnel.doctor.network import UP
from kubetunnel.doctor.ports import LOOPBACK
from kubetunnel.doctor.verdict import Verdict, fail, ok, skip, warn
from netsetup.privileges import as_root
from netsetup.state import State

CHECK = "DNS path"


@dataclass(frozen=True, slots=True)
class DnsPath:
    """What was found.

    Attributes:
        wanted: the address that netsetup routes the zone to; None where nothing is set up.
        server: whether our DNS server answers at its port.
        routed: whether it does where the system is told that it is.
        system: what the system's resolver says of the zone's name server.
    """

    zone: str
    wanted: str | None
    server: bool
    routed: bool
    system: tuple[str, ...]


def judge_dns_path(found: DnsPath) -> Verdict:
    name = own_name(found.zone)
    if found.wanted is None:
        return _judge_without_netsetup(found, name)
    if not found.server:
        return fail(CHECK, f"the zone {found.zone} is routed to a DNS server that does not run", "kube-tunnel")
    if not found.routed:
        return fail(
            CHECK,
            f"the DNS server runs, but {found.wanted} port 53 does not lead to it",
            f"{UP}    (what is there: {as_root('netsetup', 'status')})",
        )
    if not found.system:
        return fail(CHECK, f"the system's resolver does not find {name}: it does not ask us", UP)
    if found.wanted not in found.system and LOOPBACK not in found.system:
        return fail(CHECK, f"somebody else answers for {found.zone}: {name} is {_listed(found.system)}", UP)
    return ok(CHECK, f"names of {found.zone} come to the tunnel, by {found.wanted}")


def _judge_without_netsetup(found: DnsPath, name: str) -> Verdict:
    if found.server and LOOPBACK in found.system:
        return ok(CHECK, f"names of {found.zone} come to the tunnel, by {LOOPBACK}")
    if found.server:
        return warn(
            CHECK,
            f"the DNS server runs, but the system does not ask it for names of {found.zone}",
            f"{UP}    (one command alone: kube-tunnel run -- CMD)",
        )
    if found.system:
        text = f"somebody else answers for {found.zone}: {name} is {_listed(found.system)} (a VPN into the cluster?)"
        return warn(CHECK, text, "resolvectl query " + name)
    return skip(
        CHECK,
        "names of the cluster are not set up: they work by proxy, or with a Host header",
        f"kube-tunnel run -- CMD    (for all programs: {UP})",
    )


def check_dns_path(zone: str, dns_port: int, state: State | None) -> Verdict:
    """Blocks for some seconds at most."""
    wanted, port, redirected = None, dns_port, False
    if state is not None:
        wanted, port, redirected = str(state.dns_ip), state.dns_port, state.redirected
    server = dns_server_answers(LOOPBACK, port, zone)
    # where nothing is redirected (macOS) the system is told the server's own port
    routed = dns_server_answers(wanted, 53, zone) if wanted is not None and redirected else server
    return judge_dns_path(DnsPath(zone, wanted, server, routed, resolve(own_name(zone))))


def _listed(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses)
