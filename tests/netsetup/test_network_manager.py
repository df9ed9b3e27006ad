"""A real NetworkManager with its dnsmasq in a namespace of the test's own: our zones alone are asked at us."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup.private_network import Machine, machine
from tests.netsetup.resolver_daemons import BUS, DNSMASQ, NETWORK_MANAGER, daemons, why_not_with
from tests.netsetup.test_up_down import STAND_IN

WHY_NOT = why_not_with(NETWORK_MANAGER, DNSMASQ, BUS)
MISSING = [name for name in ("dig", "curl") if shutil.which(name) is None]
WHY_NOT = WHY_NOT or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

SETTINGS = """[main]
dns=dnsmasq
rc-manager=file
plugins=keyfile
auth-polkit=root-only
"""
# the server is never reached
NETWORK = (
    "type bridge con-name lan ifname lan0 ipv4.method manual ipv4.addresses 198.51.100.2/24 "
    "ipv4.gateway 198.51.100.1 ipv4.dns 192.0.2.53 ipv6.method disabled bridge.stp no"
)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made, daemons(made) as started:
        started.start_network_manager(SETTINGS)
        made.run("nmcli", "connection", "add", *NETWORK.split())
        started.wait_for("grep", "-q", "127.0.0.1", "/etc/resolv.conf")
        started.wait_for("sh", "-c", "nmcli -t -f STATE general | grep -q ^connected")
        yield made


def test_split_dns(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    own.netsetup("status")
    with own.start(sys.executable, str(STAND_IN), "8080", "5353") as tunnel:
        assert tunnel.stdout is not None
        assert tunnel.stdout.readline() == "ready\n"
        assert own.run("curl", "-sS", "-m", "9", "http://api.shop.svc.cluster.local:5432/").stdout == "10.8.0.77:5432"
        assert own.run("dig", "+short", "+tries=1", "-x", "10.8.0.77").stdout
        assert own.run("curl", "-sS", "-m", "9", "http://kube-tunnel.internal/").stdout == "10.8.0.77:80"
        assert not own.run("dig", "+short", "+tries=1", "+time=1", "printer.internal", check=False).stdout.startswith(
            "10."
        )
        foreign = own.run("dig", "+short", "+tries=1", "+time=1", "www.example.com", check=False).stdout
        assert "10.8.0.77" not in foreign
        tunnel.kill()
    own.netsetup("down")
    assert own.facts() == before
