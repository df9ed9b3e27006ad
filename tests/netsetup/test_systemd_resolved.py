"""A real systemd-resolved in a namespace of the test's own: our zones are asked at us, and nothing else is."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_virtual import Started
from tests.netsetup import office_dns
from tests.netsetup.private_network import Machine, machine
from tests.netsetup.resolver_daemons import BUS, RESOLVED, Daemons, daemons, why_not_with
from tests.netsetup.test_up_down import KILLED_AT, STAND_IN, STEPS

WHY_NOT = why_not_with(RESOLVED, BUS)
MISSING = [name for name in ("dig", "curl") if shutil.which(name) is None]
WHY_NOT = WHY_NOT or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

OFFICE_SERVER = "192.0.2.53"
SETTINGS = f"[Resolve]\nDNS={OFFICE_SERVER}\nFallbackDNS=\n"
# towards the Internet: the office's server is not asked without TLS
STRICT = "DNSSEC=yes\nDNSOverTLS=yes\n"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    """In a network with a DNS server that knows no zone of ours."""
    with machine(tmp_path) as made:
        made.run("ip", "address", "add", f"{OFFICE_SERVER}/32", "dev", "lo")
        with started(made, office_dns.__file__, OFFICE_SERVER):
            yield made


@pytest.fixture(autouse=True)
def running(own: Machine) -> Iterator[Daemons]:
    """systemd-resolved on its bus, and its stub in resolv.conf."""
    with daemons(own) as running:
        running.start_resolved(SETTINGS)
        lead_to(own, "stub-resolv.conf")
        yield running


@contextmanager
def started(own: Machine, *argv: str) -> Iterator[None]:
    with own.start(sys.executable, *argv) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


@pytest.fixture
def up(own: Machine) -> Iterator[Machine]:
    """Up, with the stand-in for the tunnel, which answers every question."""
    own.netsetup("up")
    with started(own, str(STAND_IN), "8080", "5353"):
        yield own


def lead_to(own: Machine, name: str) -> None:
    (own.etc / "resolv.conf").unlink()
    (own.etc / "resolv.conf").symlink_to(f"../run/systemd/resolve/{name}")


def reached(own: Machine, name: str) -> str:
    """By any program, unconfigured."""
    return own.run("curl", "-sS", "-m", "9", f"http://{name}:5432/", check=False).stdout


def dug(own: Machine, *words: str) -> str:
    return own.run("dig", "+short", "+tries=1", "+time=5", *words, check=False).stdout


def changed(running: Daemons, own: Machine, more: str) -> None:
    (own.etc / "systemd" / "resolved.conf").write_text(SETTINGS + more)
    running.restart_resolved()


def test_split_dns(up: Machine) -> None:
    assert reached(up, "api.shop.svc.cluster.local") == "10.8.0.77:5432"
    assert dug(up, "api.shop.svc.cluster.local") == "10.8.0.77\n"
    assert "status: NOERROR" in up.run("dig", "+tries=1", "-x", "10.8.0.77").stdout
    assert dug(up, office_dns.KNOWN) == f"{office_dns.ADDRESS}\n"
    assert reached(up, "kube-tunnel.internal") == "10.8.0.77:5432"
    assert dug(up, "printer.internal") == "", "the office's server does not know it"
    assert reached(up, "api.shop") == ""  # without a search list


def test_down_leaves_no_trace(own: Machine) -> None:
    before, link = own.facts(), own.run("resolvectl", "status").stdout
    own.netsetup("up")
    own.netsetup("status")
    assert "already" in own.netsetup("up").stdout
    own.netsetup("down")
    assert own.facts() == before
    assert own.run("resolvectl", "status").stdout == link


def test_a_users_strictness_is_not_for_us(own: Machine, running: Daemons, up: Machine) -> None:
    changed(running, own, STRICT)
    assert reached(up, "api.shop.svc.cluster.local") == "10.8.0.77:5432"


def test_resolved_that_is_started_again_still_asks_us(up: Machine, running: Daemons) -> None:
    running.restart_resolved()
    up.netsetup("status")
    assert reached(up, "api.shop.svc.cluster.local") == "10.8.0.77:5432"


def test_a_link_past_resolved_leads_to_it_as_long_as_we_are_up(own: Machine) -> None:
    lead_to(own, "resolv.conf")  # its servers, none of which knows the zone
    before = own.facts()
    own.netsetup("up")
    own.netsetup("status")
    assert "already" in own.netsetup("up").stdout
    with started(own, str(STAND_IN), "8080", "5353"):
        assert reached(own, "api.shop.svc.cluster.local") == "10.8.0.77:5432"
        assert dug(own, office_dns.KNOWN) == f"{office_dns.ADDRESS}\n"
    own.netsetup("down")
    assert own.facts() == before
    own.netsetup("up")
    lead_to(own, "resolv.conf")  # by hand
    assert "MISSING  link /etc/resolv.conf" in own.netsetup("status", check=False).stdout
    own.netsetup("down")
    assert own.facts() == before


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", [STEPS - 1, STEPS])
def test_killed_where_resolved_is_told(own: Machine, at: int, moment: str) -> None:
    lead_to(own, "resolv.conf")
    before, told = own.facts(), own.run("resolvectl", "status").stdout
    killed = own.python(KILLED_AT, "apply", str(at), moment, "up", check=False)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    own.netsetup("down")
    assert own.facts() == before
    assert own.run("resolvectl", "status").stdout == told


def test_a_link_past_a_resolved_without_a_stub(own: Machine, running: Daemons) -> None:
    changed(running, own, "DNSStubListener=no\n")
    lead_to(own, "resolv.conf")
    before, servers = own.facts(), own.run("cat", "/run/systemd/resolve/resolv.conf").stdout
    own.netsetup("up")
    with started(own, str(STAND_IN), "8080", "5353"):
        assert reached(own, "api.shop.svc.cluster.local") == "10.8.0.77:5432"
    own.netsetup("down")
    assert own.facts() == before
    assert own.run("cat", "/run/systemd/resolve/resolv.conf").stdout == servers


def test_a_search_list(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up", "--search", "shop")
    own.netsetup("status")
    with started(own, str(STAND_IN), "8080", "5353"):
        for name in ("api", "api.shop", "api.shop.svc"):
            assert reached(own, name) == "10.8.0.77:5432"
    own.netsetup("down")
    assert own.facts() == before
    assert "cluster.local" not in own.run("resolvectl", "status").stdout


def test_the_tunnel_itself(own: Machine, tmp_path: Path) -> None:
    before = own.facts()
    own.environ |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    own.environ.pop("SUDO_USER", None)
    tunnel = Started(own, "--demo", "--virtual", "--search", "demo")
    try:
        tunnel.wait_for("Try:")
        for name in ("echo.demo.svc.cluster.local", "echo", "echo.demo.svc"):
            assert own.run("curl", "-sS", "-m", "20", f"http://{name}/hostname").stdout.startswith("echo-")
        (address,) = dug(own, "echo.demo.svc.cluster.local").split()
        assert own.run("getent", "ahostsv4", "echo.demo").stdout.startswith(f"{address} ")
        assert dug(own, "-x", address) == "echo.demo.svc.cluster.local.\n"
        assert dug(own, "-x", "10.8.0.1") == "ns.dns.cluster.local.\n"
        assert dug(own, "-x", "10.8.0.2") == "kube-tunnel.internal.\n"
        assert own.run("curl", "-sS", "-m", "20", "http://kube-tunnel.internal/health").stdout.startswith("{")
        assert dug(own, "ns.dns.cluster.local") == "10.8.0.1\n"
        assert "NXDOMAIN" in own.run("dig", "nope.demo.svc.cluster.local").stdout
        assert dug(own, office_dns.KNOWN) == f"{office_dns.ADDRESS}\n"
    finally:
        status = tunnel.end()
    assert status == 0
    assert own.facts() == before


def test_a_network_with_other_servers(own: Machine, running: Daemons, tmp_path: Path) -> None:
    own.environ |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    own.environ.pop("SUDO_USER", None)
    tunnel = Started(own, "--demo", "--virtual")
    try:
        tunnel.wait_for("Try:")
        asked = ("sh", "-c", f"dig +short +tries=1 @10.8.0.1 {office_dns.KNOWN} | grep -qx {office_dns.ADDRESS}")
        own.run(*asked)
        own.run("ip", "address", "replace", "192.0.2.54/32", "dev", "lo")
        own.run("ip", "address", "delete", f"{OFFICE_SERVER}/32", "dev", "lo")
        with started(own, office_dns.__file__, "192.0.2.54"):
            (own.etc / "systemd" / "resolved.conf").write_text(SETTINGS.replace(OFFICE_SERVER, "192.0.2.54"))
            running.restart_resolved()
            running.wait_for(*asked)
    finally:
        tunnel.end()
