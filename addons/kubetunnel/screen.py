"""What a person sees first: one screen of what listens where, which cluster it is, and what to try."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Facts:
    """What the screen is made of.

    Attributes:
        proxy: host:port of each address that the tunnel listens on.
        dns: address and port; None where there is no DNS server.
        cluster: server, context, namespace and user in words; where there is no cluster yet, why.
        ca: the certificate of the authority that signs for HTTPS.
        leads: whether names and addresses lead to the tunnel for every program (`netsetup up`).
        commands: to try.
    """

    version: str
    proxy: Sequence[str]
    dns: tuple[str, int] | None
    zones: Sequence[str]
    dashboard: str
    cluster: str
    ca: Path
    leads: bool = False
    commands: Sequence[str] = ()


def screen(facts: Facts) -> str:
    """The lines, joined."""
    dns = "off" if facts.dns is None else f"{facts.dns[0]} port {facts.dns[1]}, for {', '.join(facts.zones)}"
    reach = "every program, by name" if facts.leads else "HTTP, HTTPS, gRPC and SOCKS5, by Host or as their proxy"
    rows = [
        ("Cluster:", facts.cluster),
        ("Proxy:", f"{', '.join(facts.proxy)} for {reach}"),
        ("DNS:", dns),
        ("Dashboard:", facts.dashboard),
        ("HTTPS:", f"curl --cacert {_home(facts.ca)} …; for more: kube-tunnel ca"),
        ("End:", "Ctrl-C"),
    ]
    lines = [f"kube-tunnel {facts.version} is ready."]
    lines += [f"  {name:<10} {text}" for name, text in rows]
    if facts.commands:
        lines += ["Try:", *(f"  {command}" for command in facts.commands)]
    return "\n".join(lines)


def _home(path: Path) -> str:
    try:
        return f"~/{shlex.quote(str(path.relative_to(Path.home())))}"
    except ValueError:
        return shlex.quote(str(path))
