"""Whether a program that asks for a name of the zone asks us in the end."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from kubetunnel.core.names import TUNNEL_NAME
from kubetunnel.doctor.dns_question import dns_server_answers, own_name, resolve
from kubetunnel.doctor.network import UP
from kubetunnel.doctor.ports import asked_at
from kubetunnel.doctor.verdict import Verdict, fail, ok, skip, warn
from kubetunnel.redirection import LOOPBACK, LOOPBACK_IPV6
from netsetup.privileges import as_root
from netsetup.resolvers import DNS_PORT
from netsetup.state import State

CHECK, NAME_CHECK = "DNS path", "tunnel's name"


@dataclass(frozen=True, slots=True)
class DnsPath:
    """What was found.

    Attributes:
        wanted: the address that netsetup routes the zone to; None where nothing is set up.
        server: whether our DNS server answers at its port.
        routed: whether it does where the system is told that it is.
        system: what the system's resolver says of the zone's name server.
        ip: where our DNS server listens, or would.
    """

    zone: str
    wanted: str | None
    server: bool
    routed: bool
    system: tuple[str, ...]
    ip: str = LOOPBACK


def judge_dns_path(found: DnsPath) -> Verdict:
    name = own_name(found.zone)
    if found.wanted is None:
        return _judge_without_netsetup(found, name)
    if not found.server:
        return fail(CHECK, f"the zone {found.zone} is routed to a DNS server that does not run", "kube-tunnel")
    if not found.routed:
        mend = f"{UP}    (what is there: {as_root('netsetup', 'status')})"
        # the redirection leads to loopback of its version, and a server of 127.0.0.1 is at ::1 where need be
        if asked_at(found.ip) not in (LOOPBACK, LOOPBACK_IPV6 if ":" in found.wanted else LOOPBACK):
            mend = f"kube-tunnel --dns-ip {LOOPBACK}"
        return fail(CHECK, f"the DNS server runs, but {found.wanted} port 53 does not lead to it", mend)
    if not found.system:
        return fail(CHECK, f"the system's resolver does not find {name}: it does not ask us", UP)
    if not {found.wanted, found.ip} & {*found.system}:
        return fail(CHECK, f"somebody else answers for {found.zone}: {name} is {_listed(found.system)}", UP)
    return ok(CHECK, f"names of {found.zone} come to the tunnel, by {found.wanted}")


def _judge_without_netsetup(found: DnsPath, name: str) -> Verdict:
    if found.server and found.ip in found.system:
        return ok(CHECK, f"names of {found.zone} come to the tunnel, by {found.ip}")
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


def check_dns_path(zone: str, listens: tuple[str, int], state: State | None) -> Verdict:
    """Blocks for some seconds at most.

    Args:
        listens: the DNS server's address and port, as the settings have them.
    """
    ip, port = str(ip_address(listens[0])), listens[1]
    wanted, led_to = None, (asked_at(ip), port)
    if state is not None:
        wanted = str(state.dns_ip)
        # where nothing is redirected (macOS) the system is told the server's own port
        led_to = (wanted, DNS_PORT) if state.redirected else (LOOPBACK, state.dns_port)
    server = dns_server_answers(asked_at(ip), port, zone)
    routed = server and dns_server_answers(*led_to, zone)
    return judge_dns_path(DnsPath(zone, wanted, server, routed, resolve(own_name(zone)), ip))


def check_tunnel_name() -> Verdict:
    """Whether the tunnel's own name resolves; to be asked where names of the zones do. Blocks likewise."""
    return judge_tunnel_name(resolve(TUNNEL_NAME))


def judge_tunnel_name(system: tuple[str, ...]) -> Verdict:
    if system:
        return ok(NAME_CHECK, f"{TUNNEL_NAME} is {_listed(system)}")
    text = f"the system's resolver does not find {TUNNEL_NAME}: the tunnel's pages are at its address alone"
    return warn(NAME_CHECK, text, UP)


def _listed(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses)
