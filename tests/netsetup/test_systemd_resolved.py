"""A real systemd-resolved in a namespace of the test's own: our zones are asked at us, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netsetup.private_network import Machine, machine, why_not
from tests.netsetup.test_up_down import STAND_IN

RESOLVED = next(
    (p for p in map(Path, ("/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved")) if p.exists()), None
)
MISSING = [name for name in ("resolvectl", "dbus-daemon", "dig", "curl") if shutil.which(name) is None]
WHY_NOT = why_not() or ("systemd-resolved is not installed" if RESOLVED is None else None)
WHY_NOT = WHY_NOT or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

START_LIMIT_S = 20
BUS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_type="method_call"/><allow send_destination="*"/>
<allow receive_sender="*"/><allow own="*"/></policy></busconfig>"""
# as strict towards the Internet as a user can be; the server is never reached
STRICT = "[Resolve]\nDNS=192.0.2.53\nFallbackDNS=\nDNSSEC=yes\nDNSOverTLS=yes\n"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    """With systemd-resolved on its bus, and its stub in resolv.conf."""
    with machine(tmp_path) as made, ExitStack() as running:
        with (made.etc / "passwd").open("a") as accounts, (made.etc / "group").open("a") as groups:
            accounts.write("systemd-resolve:x:64991:64991::/:/usr/sbin/nologin\n")
            groups.write("systemd-resolve:x:64991:\n")
        (made.etc / "systemd").mkdir()
        (made.etc / "systemd" / "resolved.conf").write_text(STRICT)
        (made.etc / "resolv.conf").unlink()
        (made.etc / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        made.run("mkdir", "-p", "/run/dbus", "/run/systemd/resolve")
        made.run("chown", "64991:64991", "/run/systemd/resolve")
        made.run("tee", "/run/bus.conf", stdin=BUS)
        for argv in (["dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile"], [str(RESOLVED)]):
            daemon = subprocess.Popen(
                made.command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=made.environ
            )
            running.enter_context(daemon)
            running.callback(daemon.kill)
            _wait_for(
                made, *(["test", "-S", "/run/dbus/system_bus_socket"] if argv[0] == "dbus-daemon" else ["resolvectl"])
            )
        yield made


def _wait_for(own: Machine, *argv: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while own.run(*argv, check=False).returncode != 0:
        assert time.monotonic() < deadline, argv
        time.sleep(0.05)


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
