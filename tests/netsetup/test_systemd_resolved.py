"""A real systemd-resolved in a namespace of the test's own: our zones are asked at us, and nothing else is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup.private_network import Machine, machine
from tests.netsetup.resolver_daemons import BUS, RESOLVED, daemons, why_not_with
from tests.netsetup.test_up_down import STAND_IN

WHY_NOT = why_not_with(RESOLVED, BUS)
MISSING = [name for name in ("dig", "curl") if shutil.which(name) is None]
WHY_NOT = WHY_NOT or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# as strict towards the Internet as a user can be; the server is never reached
STRICT = "[Resolve]\nDNS=192.0.2.53\nFallbackDNS=\nDNSSEC=yes\nDNSOverTLS=yes\n"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    """With systemd-resolved on its bus, and its stub in resolv.conf."""
    with machine(tmp_path) as made, daemons(made) as started:
        started.start_resolved(STRICT)
        (made.etc / "resolv.conf").unlink()
        (made.etc / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        yield made


def test_split_dns(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    own.netsetup("status")
    assert "already" in own.netsetup("up").stdout
    with own.start(sys.executable, str(STAND_IN), "8080", "5353") as tunnel:
        assert tunnel.stdout is not None
        assert tunnel.stdout.readline() == "ready\n"
        # any program, unconfigured
        assert own.run("curl", "-sS", "-m", "9", "http://api.shop.svc.cluster.local:5432/").stdout == "10.8.0.77:5432"
        assert own.run("dig", "+short", "+tries=1", "api.shop.svc.cluster.local").stdout == "10.8.0.77\n"
        assert "status: NOERROR" in own.run("dig", "+tries=1", "-x", "10.8.0.77").stdout
        # the stand-in answers every question, so an answer would mean that it was asked
        foreign = own.run("dig", "+short", "+tries=1", "+time=1", "www.example.com", check=False).stdout
        assert "10.8.0.77" not in foreign
        tunnel.kill()
    own.netsetup("down")
    assert own.facts() == before
    assert "10.8.0.1" not in own.run("resolvectl", "status").stdout
