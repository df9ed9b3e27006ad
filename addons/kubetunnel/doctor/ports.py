"""The ports that the tunnel and its DNS server want: free, ours already, or somebody else's."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import ip_address

from kubetunnel.doctor.dns_question import dns_server_answers
from kubetunnel.doctor.port_owners import bind_error, owner_of
from kubetunnel.doctor.verdict import Verdict, fail, ok, warn
from kubetunnel.listening_ports import DEFAULT_PORTS, another_port
from kubetunnel.redirection import LOOPBACK, LOOPBACK_IPV6, Redirection
from kubetunnel.running_tunnel import tunnel_answers

_UNPRIVILEGED = 1024


@dataclass(frozen=True, slots=True)
class Binding:
    """What was found at a port of this machine.

    Attributes:
        error: errno of the attempt to listen there, 0 where it succeeded.
        ours: whether it answers as ours do.
        owner: who has it, if that is known.
        ip: the address.
    """

    port: int
    error: int
    ours: bool = False
    owner: str | None = None
    ip: str = LOOPBACK

    @property
    def where(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def asked_at(ip: str) -> str:
    """Where a program of this machine asks a server that listens at this address, or at every one."""
    if not ip_address(ip).is_unspecified:
        return ip
    return LOOPBACK_IPV6 if ":" in ip else LOOPBACK


def judge_tunnel_port(found: Binding) -> Verdict:
    check, where = "tunnel's port", found.where
    if found.ours:
        return ok(check, f"a tunnel of ours runs at {where}")
    if not found.error:
        return ok(check, f"{where} is free")
    if found.error == errno.EACCES:
        return fail(
            check,
            f"{where} may not be bound by you: it is below {_UNPRIVILEGED}",
            f"kube-tunnel --port {another_port(found.port)}    "
            f"(or: sudo sysctl net.ipv4.ip_unprivileged_port_start={found.port})",
        )
    taken = found.owner or "another program"
    return fail(check, f"{where} is taken by {taken}", f"kube-tunnel --port {another_port(found.port)}")


def judge_dns_port(found: Binding) -> Verdict:
    check, where = "DNS port", found.where
    if found.ours:
        return ok(check, f"a DNS server of ours answers at {where}")
    if not found.error:
        return ok(check, f"{where} is free")
    if found.error == errno.EADDRNOTAVAIL:
        return warn(check, f"{found.ip} is no address of this machine (dns.ip)", f"kube-tunnel --dns-ip {LOOPBACK}")
    if found.error == errno.EACCES:
        reason = f"may not be bound by you: it is below {_UNPRIVILEGED}"
    else:
        reason = f"is taken by {found.owner or 'another program'}"
    note = " (5353 is that of mDNS, too)" if found.port == 5353 else ""
    # the proxy and the Host header do without
    return warn(check, f"{where} {reason}{note}", f"kube-tunnel --dns-port {another_port(found.port)}")


def check_tunnel_port(port: int) -> Verdict:
    """Blocks for the time of a bind and a request to loopback."""
    error = bind_error("tcp", LOOPBACK, port)
    if error is None:
        return judge_tunnel_port(Binding(port, 0))
    ours = tunnel_answers(LOOPBACK, port)
    return judge_tunnel_port(Binding(port, error.errno or errno.EIO, ours, owner_of("tcp", LOOPBACK, port)))


def judge_redirection(redirection: Redirection, tunnel: tuple[str, int] | None, dns: tuple[str, int] | None) -> Verdict:
    """Whether the machine leads to where tunnel and DNS server are, or would be.

    Args:
        tunnel: None where none runs and no port of its own is asked for, so that it takes the machine's.
        dns: None where it is turned off.
    """
    check = "redirection"
    problem, _, command = redirection.problem([tunnel] if tunnel else [], dns).rpartition(" See: ")
    if problem:
        return fail(check, problem, command)
    leads = [f"{redirection.dns_ip} port 53 to port {redirection.dns_port}"]
    if redirection.proxy_port is not None:
        leads.insert(0, f"virtual IPs to port {redirection.proxy_port}")
    return ok(check, f"{', '.join(leads)}: as the settings have it")


def find_tunnel(asked: int | None, redirected: int | None) -> int | None:
    """The port where a tunnel of ours runs, else the one that is asked for, if any. Blocks for a request each.

    Args:
        asked: the settings' port.
        redirected: the port that virtual IPs lead to.
    """
    tried = dict.fromkeys(port for port in (redirected, asked, *DEFAULT_PORTS) if port)
    return next((port for port in tried if tunnel_answers(LOOPBACK, port)), asked or None)


def listens_at(host: str, port: int) -> tuple[str, int]:
    """Where the tunnel of a port is, or would be: at `host` too, unless it runs at 127.0.0.1 alone. Blocks likewise."""
    elsewhere = tunnel_answers(LOOPBACK, port) and not tunnel_answers(host, port)
    return LOOPBACK if elsewhere else host, port


def free_default_port() -> int:
    """The port that a tunnel would take that is not told any."""
    return next((port for port in DEFAULT_PORTS if bind_error("tcp", LOOPBACK, port) is None), DEFAULT_PORTS[-1])


def check_dns_port(ip: str, port: int, zone: str) -> Verdict:
    """Blocks likewise."""
    for kind in ("udp", "tcp"):
        error = bind_error(kind, ip, port)
        if error is not None:
            ours = dns_server_answers(asked_at(ip), port, zone)
            return judge_dns_port(Binding(port, error.errno or errno.EIO, ours, owner_of(kind, ip, port), ip))
    return judge_dns_port(Binding(port, 0, ip=ip))
