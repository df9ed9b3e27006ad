"""The ports that the tunnel and its DNS server want: free, ours already, or somebody else's."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from kubetunnel.doctor.dns_question import dns_server_answers
from kubetunnel.doctor.port_owners import bind_error, owner_of
from kubetunnel.doctor.verdict import Verdict, fail, ok, warn
from kubetunnel.running_tunnel import tunnel_answers

LOOPBACK = "127.0.0.1"
_UNPRIVILEGED = 1024


@dataclass(frozen=True, slots=True)
class Binding:
    """What was found at a port of loopback.

    Attributes:
        error: errno of the attempt to listen there, 0 where it succeeded.
        ours: whether it answers as ours do.
        owner: who has it, if that is known.
    """

    port: int
    error: int
    ours: bool = False
    owner: str | None = None


def judge_tunnel_port(found: Binding) -> Verdict:
    check, where = "tunnel's port", f"{LOOPBACK}:{found.port}"
    if found.ours:
        return ok(check, f"a tunnel of ours runs at {where}")
    if not found.error:
        return ok(check, f"{where} is free")
    if found.error == errno.EACCES:
        return fail(
            check,
            f"{where} may not be bound by you: it is below {_UNPRIVILEGED}",
            f"kube-tunnel --port {found.port + 8000}    "
            f"(or: sudo sysctl net.ipv4.ip_unprivileged_port_start={found.port})",
        )
    taken = found.owner or "another program"
    return fail(check, f"{where} is taken by {taken}", f"kube-tunnel --port {_another(found.port)}")


def judge_dns_port(found: Binding) -> Verdict:
    check, where = "DNS port", f"{LOOPBACK}:{found.port}"
    if found.ours:
        return ok(check, f"a DNS server of ours answers at {where}")
    if not found.error:
        return ok(check, f"{where} is free")
    if found.error == errno.EACCES:
        reason = f"may not be bound by you: it is below {_UNPRIVILEGED}"
    else:
        reason = f"is taken by {found.owner or 'another program'}"
    note = " (5353 is that of mDNS, too)" if found.port == 5353 else ""
    # the proxy and the Host header do without
    return warn(check, f"{where} {reason}{note}", f"kube-tunnel --dns-port {_another(found.port)}")


def check_tunnel_port(port: int) -> Verdict:
    """Blocks for the time of a bind and a request to loopback."""
    error = bind_error("tcp", LOOPBACK, port)
    if error is None:
        return judge_tunnel_port(Binding(port, 0))
    ours = tunnel_answers(LOOPBACK, port)
    return judge_tunnel_port(Binding(port, error.errno or errno.EIO, ours, owner_of("tcp", LOOPBACK, port)))


def check_dns_port(port: int, zone: str) -> Verdict:
    """Blocks likewise."""
    for kind in ("udp", "tcp"):
        error = bind_error(kind, LOOPBACK, port)
        if error is not None:
            ours = dns_server_answers(LOOPBACK, port, zone)
            return judge_dns_port(Binding(port, error.errno or errno.EIO, ours, owner_of(kind, LOOPBACK, port)))
    return judge_dns_port(Binding(port, 0))


def _another(port: int) -> int:
    return port + 2 if port < 65534 else port - 2
