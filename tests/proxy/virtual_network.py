"""A machine with virtual IPs: a network namespace as set up for them, and the tunnel in it on a simulated cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, PodTemplate
from kubetunnel.virtual_addresses import VirtualAddresses
from tests import tunnel
from tests.proxy.databases import postgres_program, postgres_server, redis_server
from tests.simulated import simulated
from tests.tunnel import Tunnel

ZONE = "svc.cluster.local"
ECHO, PAIR, UNREADY = f"echo.demo.{ZONE}", f"pair.demo.{ZONE}", f"unready.demo.{ZONE}"
POD = f"echo-sts-0.echo-sts.demo.{ZONE}"
REDIS, POSTGRES = f"redis.demo.{ZONE}", f"postgres.demo.{ZONE}"
NAMES = (ECHO, PAIR, UNREADY, POD)

TUNNEL_PORT = 18080
US, SHARED, RANGE, LOOPBACK_RANGE = "10.8.0.1", "10.8.0.2", "10.8.0.0/24", "127.64.0.0/16"
IPV6_US, IPV6_RANGE = "fd00:9::1", "fd00:8::/64"
IN_NAMESPACE = "KUBE_TUNNEL_TEST_NAMESPACE"  # set within one that is the test's own

_RULES = f"""
    table inet virtual {{
        chain output {{
            type nat hook output priority -100
            ip daddr {RANGE} ip daddr != {US} tcp dport 1-65535 redirect to :{TUNNEL_PORT}
            ip6 daddr {IPV6_RANGE} tcp dport 1-65535 redirect to :{TUNNEL_PORT}
        }}
    }}"""


@dataclass(frozen=True)
class World:
    """Where everything is. `found`: name and port -> where a client connects to."""

    tunnel: Tunnel
    redirects: bool
    addresses: dict[str, str]
    ports: dict[tuple[str, int], int]

    def at(self, name: str, port: int) -> tuple[str, int]:
        return self.addresses[name], self.ports.get((name, port), port)

    def url(self, name: str, port: int, scheme: str = "http") -> str:
        host, number = self.at(name, port)
        return f"{scheme}://[{host}]:{number}" if ":" in host else f"{scheme}://{host}:{number}"


def redirect_to_the_tunnel() -> None:
    for command in (
        "ip link set lo up",
        f"ip address add {US}/32 dev lo",
        f"ip route add {RANGE} dev lo src {US}",
        f"ip -6 address add {IPV6_US}/128 dev lo nodad",  # a source at once
        f"ip -6 route add {IPV6_RANGE} dev lo src {IPV6_US}",
    ):
        subprocess.run(command.split(), check=True)
    subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, check=True)


@contextlib.contextmanager
def world(
    directory: Path,
    *options: str,
    shared: bool = False,
    ipv6: bool = False,
    loopback_range: str = LOOPBACK_RANGE,
) -> Iterator[World]:
    """By redirection where this is a namespace of our own, else by listeners on loopback, at a range for each world."""
    virtual_range = IPV6_RANGE if ipv6 else RANGE
    redirects = bool(os.environ.get(IN_NAMESPACE))
    kubeconfig, path = directory / "kubeconfig", directory / "virtual-addresses.json"
    with contextlib.ExitStack() as stack:
        databases = _databases(stack)
        stack.enter_context(simulated(lambda cluster: _populate(cluster, databases, kubeconfig)))
        names = (*NAMES, *(f"{name}.demo.{ZONE}" for name in databases))
        virtual = {
            "ranges": [virtual_range] if redirects else [loopback_range],
            "path": str(path),
            "shared": [SHARED] if shared else [],
            "loopback": [] if redirects else names,
        }
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tunnel, "ADDON", Path(__file__).parent / "virtual_addon.py")
        proxy = stack.enter_context(
            Tunnel(
                directory,
                kubeconfig=kubeconfig,
                options=[*options, *(["-p", str(TUNNEL_PORT)] if redirects else [])],
                env={"VIRTUAL": json.dumps(virtual)},
            )
        )
        proxy.wait_for("Names are ready", 20)
        if redirects:
            yield World(proxy, redirects, asyncio.run(_assign(path, virtual_range, names)), {})
        else:
            yield _listening(proxy, names)
        assert "Traceback" not in proxy.log, proxy.log
        assert "has crashed" not in proxy.log, proxy.log


async def _assign(path: Path, virtual_range: str, names: tuple[str, ...]) -> dict[str, str]:
    """As a DNS server that is a process of its own would."""
    kept = VirtualAddresses([ip_network(virtual_range)], path=path, reserved=[ip_address(US), ip_address(SHARED)])
    return {name: str(await kept.address_of(name)) for name in names}


def _listening(proxy: Tunnel, names: tuple[str, ...]) -> World:
    addresses = {name: proxy.wait_for(rf"{re.escape(name)} is at ([\d.]+)\.", 20)[1] for name in names}
    told = re.findall(r"(\S+) port (\d+): listening at [\d.]+:(\d+), since", proxy.log)
    return World(proxy, False, addresses, {(name, int(port)): int(number) for name, port, number in told})


def _databases(stack: contextlib.ExitStack) -> dict[str, tuple[int, int]]:
    """Name -> Service port, and where the program really listens; those that this machine has."""
    found = {}
    if tunnel_has("redis-server"):
        found["redis"] = 6379, stack.enter_context(redis_server())
    if postgres_program("postgres") and postgres_program("initdb"):
        authority = CertificateAuthority("database-test-ca")
        found["postgres"] = 5432, stack.enter_context(postgres_server(authority, POSTGRES))
    return found


def tunnel_has(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True).returncode == 0


async def _populate(cluster: SimCluster, databases: dict[str, tuple[int, int]], kubeconfig: Path) -> None:
    cluster.kubeconfig(kubeconfig)
    for name, (port, listening) in databases.items():
        pod = await cluster.add_pod("demo", name, PodTemplate({"app": name}, (Container(name, name),)))
        assert pod.workload is not None
        pod.workload.map_port(port, ("127.0.0.1", listening))
        await cluster.add_service(ServiceSpec("demo", name, (Port(port, name),), {"app": name}))
