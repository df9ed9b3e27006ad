"""`netsetup up` and `down` where systemd-resolved or NetworkManager resolve (stubs of both), and with iptables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup.private_network import Machine, machine, why_not
from tests.netsetup.test_up_down import STAND_IN

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# logs what changes, keeps what it is told, and answers queries as resolvectl(1) does
RESOLVECTL = """
verb=$1 link=$2
if [ $# -gt 2 ]; then shift 2; echo "$verb $link $*" >> $LOG; echo "$*" > /run/stub-$verb-$link
elif [ "$verb" = revert ]; then echo "revert $link" >> $LOG; rm -f /run/stub-*-$link
else echo "Link 7 ($link): $(cat /run/stub-$verb-$link 2>/dev/null)"; fi
"""
NMCLI = """
[ "$*" = "-t -f RUNNING general" ] && exec echo running
echo "$*" >> $LOG
cat /etc/NetworkManager/dnsmasq.d/* >> $LOG 2>/dev/null || true
"""
NETWORK_MANAGER = 'echo "[main]"; echo "dns=dnsmasq"'

DNSMASQ_FILE = "NetworkManager/dnsmasq.d/kube-tunnel.conf"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


@pytest.fixture
def resolved(own: Machine) -> Path:
    """systemd-resolved with its stub in resolv.conf; gives the log of what it is told."""
    return resolved_with_stub(own)


def resolved_with_stub(own: Machine) -> Path:
    """The same, for other tests."""
    own.run("mkdir", "-p", "/run/systemd/resolve")
    own.run("tee", "/run/systemd/resolve/stub-resolv.conf", stdin="nameserver 127.0.0.53\n")
    own.run("tee", "/run/systemd/resolve/resolv.conf", stdin="nameserver 192.0.2.53\nnameserver fe80::1%eth0\n")
    (own.etc / "resolv.conf").unlink()
    (own.etc / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return own.stub("resolvectl", RESOLVECTL)


def test_systemd_resolved_is_told_of_the_link(own: Machine, resolved: Path) -> None:
    before = own.facts()
    own.netsetup("up", "--zone", "cluster.local", "--zone", "prod.local")
    assert own.facts()["/etc"] == before["/etc"]
    # without a carrier resolved passes the link over
    assert "LOWER_UP" in own.json("ip", "-j", "link", "show", "kube-dns0")[0]["flags"]
    assert resolved.read_text().splitlines() == [
        "domain kube-dns0 ~cluster.local ~prod.local ~kube-tunnel.internal ~0.8.10.in-addr.arpa ~0.9.10.in-addr.arpa",
        "default-route kube-dns0 false",
        "dnssec kube-dns0 no",
        "dnsovertls kube-dns0 no",
        "llmnr kube-dns0 no",
        "mdns kube-dns0 no",
        "dns kube-dns0 10.8.0.1",
    ]
    read = "from netsetup.state import read_state; print(read_state().resolvers)"
    assert own.python(read).stdout == "(('192.0.2.53', 53), ('fe80::1%eth0', 53))\n"
    own.netsetup("status")
    own.run("resolvectl", "revert", "kube-dns0")  # by hand
    assert "MISSING  systemd-resolved" in own.netsetup("status", check=False).stdout
    resolved.write_text("")
    own.netsetup("down")
    assert resolved.read_text() == "revert kube-dns0\n"
    assert own.facts() == before


def test_a_resolved_that_refuses_undoes_the_rest(own: Machine, resolved: Path) -> None:
    before = own.facts()
    own.stub("resolvectl", 'case $1 in dns) echo "Unit dbus-org.freedesktop.resolve1 not found" >&2; exit 1;; esac')
    failed = own.netsetup("up", check=False)
    assert failed.returncode == 1
    assert "resolve1 not found" in failed.stderr
    assert own.facts() == before


def test_network_managers_dnsmasq_gets_a_file(own: Machine) -> None:
    log = own.stub("nmcli", NMCLI)
    own.stub("NetworkManager", NETWORK_MANAGER)
    (own.etc / "NetworkManager/dnsmasq.d").mkdir(parents=True)
    (own.etc / "NetworkManager/dnsmasq.d/office.conf").write_text("server=/corp.example/192.0.2.1\n")
    before = own.facts()
    own.netsetup("up")
    zones = ("cluster.local", "kube-tunnel.internal", "0.8.10.in-addr.arpa", "0.9.10.in-addr.arpa")
    told = "".join(f"server=/{zone}/10.8.0.1\n" for zone in zones)
    assert (own.etc / DNSMASQ_FILE).read_text().endswith(told)
    # the file is there when NetworkManager reads it, and is not when it does so again
    assert log.read_text().startswith("general reload dns-full\n")
    assert told in log.read_text()
    assert (own.etc / "resolv.conf").read_bytes() == before["/etc"]["resolv.conf"][2]
    own.netsetup("status")
    log.write_text("")
    own.netsetup("down")
    assert log.read_text() == "general reload dns-full\nserver=/corp.example/192.0.2.1\n"
    assert own.facts() == before


def test_the_directory_for_dnsmasq_is_made_and_removed(own: Machine) -> None:
    own.stub("nmcli", NMCLI)
    own.stub("NetworkManager", NETWORK_MANAGER)
    (own.etc / "NetworkManager").mkdir()
    before = own.facts()
    own.netsetup("up")
    assert (own.etc / DNSMASQ_FILE).exists()
    own.netsetup("down")
    assert own.facts() == before


def test_a_network_manager_without_dnsmasq_is_passed_over(own: Machine) -> None:
    own.stub("nmcli", NMCLI)
    own.stub("NetworkManager", 'echo "[main]"; echo "dns=none"')
    assert "nameserver 10.8.0.1 first in /etc/resolv.conf" in own.netsetup("up", "--dry-run").stdout


@pytest.mark.skipif(shutil.which("iptables") is None, reason="iptables is not installed")
def test_iptables_where_there_is_no_nft(own: Machine) -> None:
    before = own.facts()
    own.run("mount", "--bind", "/dev/null", shutil.which("nft") or "")
    own.run("iptables", "-A", "OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")  # the user's
    rules = [own.run("iptables", "-t", table, "-S").stdout for table in ("nat", "filter")]
    assert "redirection (iptables)" in own.netsetup("up").stdout
    own.netsetup("up")
    own.netsetup("status")
    with own.start(sys.executable, str(STAND_IN), "8080", "5353") as tunnel:
        assert tunnel.stdout is not None
        assert tunnel.stdout.readline() == "ready\n"
        assert own.run("curl", "-sS", "-m", "5", "http://10.8.0.77:5432/").stdout == "10.8.0.77:5432"
        if shutil.which("dig"):
            assert own.run("dig", "+short", "+tries=1", "a.b.svc.cluster.local").stdout == "10.8.0.77\n"
        tunnel.kill()
    own.run("iptables", "-t", "nat", "-D", "OUTPUT", "-j", "KUBE_TUNNEL")  # by hand
    assert "MISSING  redirection" in own.netsetup("status", check=False).stdout
    own.netsetup("down")
    assert [own.run("iptables", "-t", table, "-S").stdout for table in ("nat", "filter")] == rules
    own.run("umount", shutil.which("nft") or "")
    after = own.facts()
    # iptables-nft keeps its own empty tables
    assert {name: fact for name, fact in after.items() if not name.startswith("nft")} == {
        name: fact for name, fact in before.items() if not name.startswith("nft")
    }
