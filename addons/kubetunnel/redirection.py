"""Whether what the machine redirects to is where we listen: else connections to virtual IPs are refused, or another's.

`netsetup up` and the tunnel are told their ports separately, and either may be started anew with another one.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from kubetunnel.core.settings import DnsSettings, Settings
from netsetup.privileges import as_root, settings_in
from netsetup.state import State

LOOPBACK = "127.0.0.1"
LOOPBACK_IPV6 = "::1"  # where redirections of IPv6 addresses lead


def dns_port(settings: Settings, machine: State | None) -> int:
    """The DNS server's: that which the machine leads to, where the settings name none but the default."""
    port = settings.dns.port
    return machine.dns_port if machine is not None and port == DnsSettings().port else port


def setting_up(*options: str) -> str:
    """The command line that sets the network up for a tunnel with these settings: zones and ranges are theirs."""
    return as_root("kubetunnel", "netsetup", "up", *options, keep=settings_in(os.environ))


def mending_what_outlived() -> str:
    """What to type where the resolver is led to a network that is gone (`netsetup.status.outlived_files`)."""
    return f"{setting_up()}    (or, to do without it: {as_root('netsetup', 'down')})"


@dataclass(frozen=True, slots=True)
class Redirection:
    """Where the machine leads virtual IPs to, and port 53 of the DNS address.

    Attributes:
        proxy_port: on loopback; None where no ports are redirected.
        host: the loopback address that it is, of the virtual IPs' version.
    """

    dns_ip: str
    proxy_port: int | None
    dns_port: int
    host: str = LOOPBACK

    @classmethod
    def of(cls, machine: State, *, ports: bool = True) -> Self:
        """`ports`: whether names are answered with virtual IPs at all."""
        host = LOOPBACK if machine.dns_ip.version == 4 or not machine.redirected else LOOPBACK_IPV6
        return cls(
            str(machine.dns_ip), machine.proxy_port if ports and machine.redirected else None, machine.dns_port, host
        )

    def leads_to(self, dns: tuple[str, int] | None) -> str:
        """A sentence to be added where the DNS server cannot have its port; "" where nothing leads there."""
        if dns is None or dns[1] != self.dns_port:
            return ""
        return (
            f" {self.dns_ip} port 53 leads there. See, for another one: "
            f"{setting_up('--dns-port', str(self.dns_port + 1))}"
        )

    def problem(self, listening: Collection[tuple[str, int]], dns: tuple[str, int] | None) -> str:
        """What does not fit, with the command that mends it; "" where all does.

        Args:
            listening: the tunnel's addresses; none while it does not listen yet.
            dns: the DNS server's, None where it is turned off. One at 127.0.0.1 listens at ::1 as well where need be.
        """
        problems, options, flags = [], [], []
        if self.proxy_port is not None and listening and not any(self._is_there(a, self.proxy_port) for a in listening):
            host, port = next(iter(listening))
            problems.append(
                f"Virtual IPs lead to {self.host} port {self.proxy_port}, but the tunnel is at {host}:{port}"
            )
            if port != self.proxy_port:
                options += ["--port", str(port)]
            else:
                flags += ["--set", f"listen_host={LOOPBACK}"]
        if dns is not None and dns[1] != self.dns_port:
            problems.append(
                f"{self.dns_ip} port 53 leads to port {self.dns_port}, but the DNS server is at port {dns[1]}"
            )
            options += ["--dns-port", str(dns[1])]
        elif dns is not None and not self._is_there(dns, self.dns_port) and dns[0] != LOOPBACK:
            problems.append(f"{self.dns_ip} port 53 leads to {self.host}, but the DNS server is at {dns[0]}")
            flags += ["--dns-ip", LOOPBACK]
        if not problems:
            return ""
        mend = setting_up(*options) if options else shlex.join(["kube-tunnel", *flags])
        return f"{'; '.join(problems)} (netsetup up). See: {mend}"

    def _is_there(self, address: tuple[str, int], port: int) -> bool:
        # asyncio's listeners at `::` do not take IPv4
        everywhere = ip_address("::" if ":" in self.host else "0.0.0.0")  # noqa: S104 - compared, not bound
        return address[1] == port and ip_address(address[0].partition("%")[0]) in (ip_address(self.host), everywhere)
