"""`netsetup up` and `down` in a network namespace of the test's own, with real clients; afterwards all is as it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup import office_dns
from tests.netsetup.private_network import RESOLV_CONF, STATE, Machine, machine, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

STAND_IN = Path(__file__).with_name("stand_in.py")
# what the plan of a machine with nothing but resolv.conf has
STEPS = 8

# Runs netsetup, and kills it at a step. argv: the function of netsetup.setup, the step, before or after, then its own
KILLED_AT = """
import os, signal, sys
from netsetup import setup
from netsetup.__main__ import main

name, at, moment, *arguments = sys.argv[1:]
do, done = getattr(setup, name), 0

def killed(step):
    global done
    if done == int(at) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    said = do(step)
    if done == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    return said

setattr(setup, name, killed)
sys.argv[1:] = arguments
main()
"""

# The same with an error in the place of the kill
FAILED_AT = """
import sys
from netsetup import setup
from netsetup.__main__ import main
from netsetup.errors import StepError

at, error, *arguments = sys.argv[1:]
apply, done = setup.apply, 0

def failing(step):
    global done
    if done == int(at):
        raise KeyboardInterrupt if error == "ctrl-c" else StepError("the test's own")
    apply(step)
    done += 1

setup.apply = failing
sys.argv[1:] = arguments
main()
"""

# Ctrl-C, again and again, while it is undone
IMPATIENT = """
import os, signal, sys
from netsetup import setup
from netsetup.__main__ import main

undo = setup.undo

def interrupted(step):
    os.kill(os.getpid(), signal.SIGINT)
    return undo(step)

setup.undo = interrupted
main()
"""

CONTAINER = """
set -e
ip netns add box
ip link add box0 type veth peer name eth0 netns box
ip address add 172.31.0.1/30 dev box0
ip link set box0 up
ip -n box address add 172.31.0.2/30 dev eth0
ip -n box link set eth0 up
ip -n box route add default via 172.31.0.1
"""

# As another user; all is imported before, for the checkout may be root's own
AS_NOBODY = """
import os
import netsetup.links, netsetup.setup
from netsetup.__main__ import main

os.setgroups([]), os.setgid(65534), os.setuid(65534)
main()
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


@pytest.fixture
def tunnelled(own: Machine) -> Iterator[Machine]:
    """Up, with the stand-in for the tunnel listening."""
    own.netsetup("up")
    with _stand_in(own):
        yield own


def _stand_in(own: Machine) -> _StandIn:
    return _StandIn(own)


class _StandIn:
    def __init__(self, own: Machine) -> None:
        self._process = own.start(sys.executable, str(STAND_IN), "8080", "5353")

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_client_reaches_the_tunnel_on_any_port(tunnelled: Machine) -> None:
    for port in (80, 443, 5432, 8080, 50051):
        assert tunnelled.run("curl", "-sS", "-m", "5", f"http://10.8.0.77:{port}/").stdout == f"10.8.0.77:{port}"
    # the second range; the proxy's own address, which a shared answer names
    assert tunnelled.run("curl", "-sS", "-m", "5", "http://10.9.0.200/").stdout == "10.9.0.200:80"
    assert tunnelled.run("curl", "-sS", "-m", "5", "http://10.8.0.2:81/").stdout == "10.8.0.2:81"


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_raw_tcp_reaches_the_tunnel(tunnelled: Machine) -> None:
    assert tunnelled.run("redis-cli", "-h", "10.8.0.9", "ping").stdout == "10.8.0.9:6379\n"


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")
@pytest.mark.parametrize("how", ["+notcp", "+tcp"])
@pytest.mark.parametrize("server", ["@10.8.0.1", ""])  # and the one that resolv.conf names
def test_port_53_of_the_dns_address_leads_to_the_dns_server(tunnelled: Machine, how: str, server: str) -> None:
    asked = [*([server] if server else []), "+short", "+time=2", "+tries=1", how, "api.shop.svc.cluster.local"]
    assert tunnelled.run("dig", *asked).stdout == "10.8.0.77\n"


def test_a_resolver_that_names_the_link_reaches_the_dns_server(tunnelled: Machine) -> None:
    # systemd-resolved sets IP_UNICAST_IF to the link whose server it asks
    asked = tunnelled.python(
        "import socket, struct; from dnslib import DNSRecord\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)\n"
        "s.setsockopt(socket.IPPROTO_IP, 50, struct.pack('!I', socket.if_nametoindex('kube-dns0')))\n"
        "s.connect(('10.8.0.1', 53)); s.send(bytes(DNSRecord.question('a.b.svc.cluster.local').pack()))\n"
        "print(DNSRecord.parse(s.recv(512)).short())"
    )
    assert asked.stdout == "10.8.0.77\n"


def test_what_is_not_ours_is_left_alone(tunnelled: Machine) -> None:
    udp = tunnelled.python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)\n"
        "s.connect(('10.8.0.77', 443))\n"
        # the sender of a rejected packet is told EPERM by its own kernel
        "try: s.send(b'x'); s.recv(1)\nexcept (ConnectionRefusedError, PermissionError): print('refused')"
    )
    assert udp.stdout == "refused\n"  # at once, not by a timeout
    # the DNS address has no other port, loopback none but its own
    assert tunnelled.run("curl", "-sS", "-m", "5", "http://10.8.0.1/", check=False).returncode == 7
    assert tunnelled.run("curl", "-sS", "-m", "5", "http://127.0.0.1:81/", check=False).returncode == 7


def test_a_range_of_ipv6(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up", "--ip-ranges", "fd00:8::/64")
    with _stand_in(own):
        reached = own.run("curl", "-sS", "-m", "5", "http://[fd00:8::77]:5432/").stdout
    assert reached == "[fd00:8::77]:5432"
    assert (own.etc / "resolv.conf").read_text().startswith("nameserver fd00:8::1 ")
    own.netsetup("down")
    assert own.facts() == before


def test_forwarded_connections_only_when_asked(own: Machine) -> None:
    own.netsetup("up")
    assert "prerouting" not in own.run("nft", "list", "ruleset").stdout
    own.netsetup("up", "--forwarded")
    own.netsetup("status")
    # a container, with this machine as its router
    own.run("sh", "-c", CONTAINER)
    with own.start(sys.executable, str(STAND_IN), "8080", "5353", "172.31.0.1") as tunnel:
        assert tunnel.stdout is not None
        assert tunnel.stdout.readline() == "ready\n"
        inside = ["ip", "netns", "exec", "box", "curl", "-sS", "-m", "5"]
        assert own.run(*inside, "http://10.8.0.77:5432/").stdout == "10.8.0.77:5432"
        tunnel.kill()


def test_down_leaves_no_trace(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    up = own.facts()
    assert {link["ifname"] for link in up["ip -j link"]} == {"lo", "kube-dns0", "kube-proxy0"}
    assert (own.etc / "resolv.conf").read_bytes() == b"nameserver 10.8.0.1 # kube-tunnel\n" + RESOLV_CONF
    own.netsetup("status")
    own.netsetup("down")
    assert own.facts() == before
    assert "nothing to undo" in own.netsetup("down").stdout
    assert own.netsetup("status", check=False).returncode == 1


def test_status_as_json(own: Machine) -> None:
    assert json.loads(own.netsetup("status", "--json", check=False).stdout) == {
        "up": False,
        "pieces": [],
        "conflicts": [],
    }
    own.netsetup("up")
    status = json.loads(own.netsetup("status", "--json").stdout)
    assert status["up"] is True
    assert [piece["found"] for piece in status["pieces"]] == [True] * STEPS
    own.run("ip", "link", "delete", "kube-proxy0")
    status = json.loads(own.netsetup("status", "--json", check=False).stdout)
    assert status["up"] is False
    assert {"wanted": "link kube-proxy0", "found": False} in status["pieces"]


def test_options_that_make_no_sense(own: Machine) -> None:
    before = own.facts()
    for options, why in (
        (["--ip-ranges", "10.8.0.1/24"], "has host bits set"),
        (["--ip-ranges", "10.8.0.0/31"], "no room"),
        (["--dns-ip", "ten"], "does not appear to be"),
        (["--port", "0"], "not in the range"),
        (["--zone", "a b"], "not a DNS zone"),
        (["--user", "no-such-user-here"], "no user no-such-user-here"),
    ):
        refused = own.netsetup("up", *options, check=False)
        assert refused.returncode in (1, 2)
        assert why in refused.stderr
    assert own.facts() == before


def test_up_twice_is_up_once(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    up = own.facts()
    assert "already" in own.netsetup("up").stdout
    assert own.facts() == up
    own.netsetup("down")
    assert own.facts() == before


def test_other_wishes_replace_what_is_there(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    own.netsetup("up", "--port", "9090", "--dns-link", "k-dns", "--ip-ranges", "10.77.0.0/16", "--zone", "prod.local")
    assert {link["ifname"] for link in own.json("ip", "-j", "link")} == {"lo", "k-dns", "kube-proxy0"}
    assert (own.etc / "resolv.conf").read_bytes() == b"nameserver 10.77.0.1 # kube-tunnel\n" + RESOLV_CONF
    own.netsetup("status")
    own.netsetup("down")
    assert own.facts() == before


def test_a_wish_that_cannot_be_had_changes_nothing(own: Machine) -> None:
    own.netsetup("up")
    up = own.facts()
    own.run("ip", "link", "add", "vpn0", "type", "bridge")
    up = own.facts()
    refused = own.netsetup("up", "--dns-link", "vpn0", check=False)
    assert refused.returncode == 1
    assert "vpn0" in refused.stderr
    assert own.facts() == up


def test_a_vpns_range_is_picked_around(own: Machine) -> None:
    own.run("ip", "link", "add", "vpn0", "type", "bridge")
    # an address that the kernel gives it by itself would change while we look
    own.run("ip", "link", "set", "vpn0", "addrgenmode", "none")
    own.run("ip", "link", "set", "vpn0", "up")
    own.run("ip", "address", "add", "10.8.0.5/24", "dev", "vpn0")
    before = own.facts()
    assert "note: 10.8.0.0/24 is taken by the address 10.8.0.5/24 of vpn0" in own.netsetup("up").stdout
    assert [a["local"] for a in own.json("ip", "-j", "address", "show", "kube-dns0")[0]["addr_info"]] == ["10.9.0.1"]
    own.netsetup("down")
    assert own.facts() == before
    own.run("ip", "route", "add", "10.0.0.0/8", "dev", "vpn0", "table", "52")
    refused = own.netsetup("up", check=False)
    assert refused.returncode == 1
    assert "10.9.0.0/24 is taken by the route 10.0.0.0/8 to vpn0" in refused.stderr


def test_a_vpn_that_comes_later_is_told_of_and_picked_around(own: Machine) -> None:
    own.netsetup("up", "--ip-ranges", "10.8.0.0/24,10.9.0.0/24")
    own.run("ip", "link", "add", "vpn0", "type", "bridge")
    own.run("ip", "address", "add", "10.8.0.5/16", "dev", "vpn0")
    status = own.netsetup("status", check=False)
    assert status.returncode == 1
    assert "CONFLICT 10.8.0.0/24 is taken by the address 10.8.0.5/16 of vpn0" in status.stdout
    own.netsetup("up", "--ip-ranges", "10.8.0.0/24,10.9.0.0/24")
    assert json.loads((own.run("cat", STATE)).stdout)["layout"]["ranges"] == ["10.9.0.0/24"]
    own.netsetup("status")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", range(STEPS))
def test_killed_at_each_step_of_up(own: Machine, at: int, moment: str) -> None:
    before = own.facts()
    killed = own.python(KILLED_AT, "apply", str(at), moment, "up", check=False)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if at % 2:
        # another up takes what was left for no more than it is
        own.netsetup("up")
        own.netsetup("status")
    own.netsetup("down")
    assert own.facts() == before


def test_what_a_kill_leaves_is_not_taken_for_a_network(own: Machine) -> None:
    own.python(KILLED_AT, "apply", str(STEPS - 1), "after", "up", check=False)
    assert own.python("from netsetup.state import read_state; print(read_state())").stdout == "None\n"
    status = own.netsetup("status", check=False)
    assert status.returncode == 1
    assert "-m netsetup down\n" in status.stdout


@pytest.mark.parametrize("at", range(STEPS))
def test_killed_at_each_step_of_down(own: Machine, at: int) -> None:
    before = own.facts()
    own.netsetup("up")
    killed = own.python(KILLED_AT, "undo", str(at), "after", "down", check=False)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    own.netsetup("down")
    assert own.facts() == before


@pytest.mark.parametrize("error", ["failure", "ctrl-c"])
@pytest.mark.parametrize("at", [0, STEPS - 2, STEPS - 1])
def test_a_failing_step_undoes_the_others(own: Machine, at: int, error: str) -> None:
    before = own.facts()
    failed = own.python(FAILED_AT, str(at), error, "up", check=False)
    assert failed.returncode == 1
    assert "the test's own" in failed.stderr or "Aborted" in failed.stderr
    assert own.facts() == before


def test_ctrl_c_waits_for_the_end_of_down(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    ended = own.python(IMPATIENT, "down", check=False)
    assert ended.returncode == 1
    assert "Aborted" in ended.stderr
    assert own.facts() == before


def test_the_plan_has_the_steps_that_are_killed_at(own: Machine) -> None:
    assert len(own.netsetup("up", "--dry-run").stdout.splitlines()) == STEPS


def test_down_can_be_looked_at_first(own: Machine) -> None:
    assert own.netsetup("down", "--dry-run").stdout.startswith("nothing: no ")
    own.netsetup("up")
    during = own.facts()
    told = own.python(AS_NOBODY, "down", "--dry-run").stdout.splitlines()
    assert own.facts() == during
    undone = own.netsetup("down").stdout.splitlines()
    assert len(told) == len(undone) - 1  # and "Down."
    assert all(line.startswith("- ") for line in told)


def test_the_way_out_without_a_state_file(own: Machine) -> None:
    (own.etc / "resolv.conf").write_bytes(RESOLV_CONF.replace(b"edns0", b"rotate edns0"))
    before = own.facts()
    own.netsetup("up", "--search", "shop")
    own.run("tee", STATE, stdin="{")
    refused = own.netsetup("down", check=False)
    assert refused.returncode == 1
    commands = refused.stderr.partition("See: ")[2].replace("sudo ", "")
    own.run("sh", "-ec", commands)
    own.run("rmdir", "/var/lib/kube-tunnel")
    assert own.facts() == before


MDNS = """
import socket, time
responder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
responder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
responder.bind(("", 5353))
print("listening", flush=True)
time.sleep(600)
"""


def test_beside_a_responder_of_mdns_names_do_not_wait_for_it(own: Machine) -> None:
    """Port 53 leads to a port that is closed while no tunnel runs, so that the next server is asked at once."""
    before = own.facts()
    with own.start(sys.executable, "-c", MDNS) as responder:
        try:
            assert responder.stdout is not None
            responder.stdout.readline()
            assert "so the DNS server's is 5354" in own.netsetup("up").stdout
            assert own.netsetup("up").stdout.startswith("it is up as wanted already")
            asked = own.run("dig", "@10.8.0.1", "+time=20", "+tries=1", "example.com", check=False)
            assert "refused" in asked.stdout
        finally:
            responder.kill()
    assert own.netsetup("up").stdout.startswith("it is up as wanted already")
    own.netsetup("down")
    assert own.facts() == before


def test_the_way_out_where_the_state_file_is_gone(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    own.run("rm", "-r", "/var/lib/kube-tunnel")
    assert "kube-dns0, kube-proxy0, a line in /etc/resolv.conf" in own.netsetup("status", check=False).stdout
    for words in (("up",), ("up", "--dry-run"), ("down",)):
        refused = own.netsetup(*words, check=False)
        assert refused.returncode == 1
    own.run("sh", "-ec", refused.stderr.partition("See: ")[2].replace("sudo ", ""))
    assert own.facts() == before
    assert own.netsetup("down").stdout.startswith("There is nothing to undo")


def test_a_line_that_others_have_put_back_is_told_of(own: Machine) -> None:
    """As VPN clients do, which have kept a copy."""
    before = own.facts()
    (own.etc / "resolv.conf").write_bytes(b"nameserver 10.8.0.1 # kube-tunnel\n" + RESOLV_CONF)
    refused = own.netsetup("down", check=False)
    assert "a line in /etc/resolv.conf" in refused.stderr
    own.netsetup("up")
    own.netsetup("down")
    assert own.facts() == before


def test_a_broken_state_file_is_told_of_in_an_event_loop_too(own: Machine) -> None:
    own.netsetup("up")
    own.run("tee", STATE, stdin="{")
    look = """
import asyncio
from netsetup.errors import StateError
from netsetup.state import read_state
async def look():
    try:
        read_state()
    except StateError as error:
        print(error)
asyncio.run(look())
"""
    assert "sudo ip link delete kube-dns0" in own.python(look).stdout


def test_what_is_told_to_nobody_is_done_all_the_same(own: Machine) -> None:
    before = own.facts()
    closed = "import sys; from netsetup.__main__ import main; sys.stdout = open('/dev/full', 'w', buffering=1); main()"
    own.python(closed, "up", check=False)
    own.netsetup("status")
    own.python(closed, "down", check=False)
    assert own.facts() == before


def test_a_disk_that_is_full_by_now(own: Machine) -> None:
    own.run("mount", "-t", "tmpfs", "-o", "size=64k", "none", "/var/lib")
    before = own.facts()
    own.netsetup("up")
    own.run("sh", "-c", "! cat /dev/zero > /var/lib/filled")
    assert own.netsetup("down").stdout.endswith("Down.\n")
    own.run("rm", "/var/lib/filled")
    assert own.facts() == before


def test_a_disk_that_is_full_in_the_middle(own: Machine) -> None:
    own.run("mount", "-t", "tmpfs", "-o", "size=4k", "none", "/var/lib")  # a page: room for one file
    before = own.facts()
    failed = own.netsetup("up", check=False)
    assert failed.returncode == 1
    assert failed.stderr.endswith("cannot be written: No space left on device.\n")
    assert "Not everything" not in failed.stderr
    assert own.facts() == before


def start_again(own: Machine) -> None:
    """Leaves what a reboot or a power cut leaves: the files, and a state file of another boot."""
    for link in ("kube-dns0", "kube-proxy0"):
        own.run("ip", "link", "delete", link)
    own.run("nft", "flush", "ruleset")
    own.run("sed", "-i", 's/"boot_id": ".*"/"boot_id": "of-before"/', STATE)


EXAMINED = """
from kubetunnel.core.settings import NetworkSettings
from kubetunnel.doctor.network import check_network
for verdict in check_network(NetworkSettings()):
    print(verdict.level, verdict.check, verdict.found, "->", verdict.mend)
"""
OUTLIVED = (
    "The network of netsetup up ended when the machine was started again, but 10.8.0.1 is asked for names still "
    "(/etc/resolv.conf): they come late, or not at all."
)


def test_after_a_reboot(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    assert OUTLIVED not in own.netsetup("status").stdout
    start_again(own)
    read = "from netsetup.state import read_state; print(read_state())"
    assert own.python(read).stdout == "None\n"
    status = own.netsetup("status", check=False)
    assert status.returncode == 1
    assert f"{OUTLIVED} What undoes it: sudo " in status.stdout
    examined = own.python(EXAMINED).stdout
    assert f"fail interfaces {OUTLIVED} -> " in examined
    assert "-m kubetunnel netsetup up " in examined
    (own.etc / "resolv.conf").write_bytes(RESOLV_CONF)  # as DHCP clients do
    for told in (own.netsetup("status", check=False).stdout, own.python(EXAMINED).stdout):
        assert OUTLIVED not in told
    (own.etc / "resolv.conf").write_bytes(b"nameserver 10.8.0.1 # kube-tunnel\n" + RESOLV_CONF)
    said = own.netsetup("down").stdout
    assert "link kube-dns0 was gone already" in said
    assert "/etc/resolv.conf put back" in said
    assert own.facts() == before


def test_up_after_a_reboot(own: Machine) -> None:
    before = own.facts()
    own.netsetup("up")
    start_again(own)
    own.netsetup("up")
    assert OUTLIVED not in own.netsetup("status").stdout
    assert (own.etc / "resolv.conf").read_bytes().count(b"kube-tunnel") == 1
    own.netsetup("down")
    assert own.facts() == before


@pytest.mark.parametrize(
    "deletion",
    [
        ("ip", "link", "delete", "kube-dns0"),
        ("ip", "route", "delete", "10.9.0.0/24"),
        ("ip", "address", "flush", "dev", "kube-proxy0"),
        ("nft", "delete", "table", "inet", "kube_tunnel"),
        ("nft", "flush", "chain", "inet", "kube_tunnel", "output"),
        ("rm", "/etc/resolv.conf"),
    ],
    ids=" ".join,
)
def test_deleted_by_hand(own: Machine, deletion: tuple[str, ...]) -> None:
    before = own.facts()
    own.netsetup("up")
    own.run(*deletion)
    status = own.netsetup("status", check=False)
    assert status.returncode == 1
    assert "MISSING" in status.stdout
    own.netsetup("up")  # mends it
    own.netsetup("status")
    own.run(*deletion)
    own.netsetup("down")
    assert own.facts() == before


def test_a_link_of_somebody_else_is_left(own: Machine) -> None:
    own.run("ip", "tuntap", "add", "vpn0", "mode", "tun")  # a link without a MAC address
    own.netsetup("up")
    own.run("ip", "link", "delete", "kube-dns0")
    own.run("ip", "link", "add", "kube-dns0", "type", "bridge")
    own.run("ip", "address", "add", "10.8.0.1/24", "dev", "kube-dns0")
    others = own.json("ip", "-j", "address", "show", "kube-dns0")
    assert "link kube-dns0 was gone already" in own.netsetup("down").stdout
    assert own.json("ip", "-j", "address", "show", "kube-dns0") == others
    assert {link["ifname"] for link in own.json("ip", "-j", "link")} == {"lo", "vpn0", "kube-dns0"}


def test_resolv_conf_that_somebody_else_has_edited(own: Machine) -> None:
    own.netsetup("up")
    path = own.etc / "resolv.conf"
    path.write_bytes(path.read_bytes().replace(b"edns0", b"edns0 rotate") + b"nameserver 192.0.2.55\n")
    assert "our line taken out" in own.netsetup("down").stdout
    assert path.read_bytes() == RESOLV_CONF.replace(b"edns0", b"edns0 rotate") + b"nameserver 192.0.2.55\n"


def test_what_would_keep_clients_from_asking_us_is_held_and_comes_back(own: Machine) -> None:
    path = own.etc / "resolv.conf"
    path.write_bytes(RESOLV_CONF.replace(b"edns0", b"rotate edns0"))
    own.run("ip", "address", "add", "192.0.2.53/32", "dev", "lo")
    before = own.facts()
    own.netsetup("up", "--search", "shop")
    own.netsetup("status")
    assert "already" in own.netsetup("up", "--search", "shop").stdout
    # of many questions of one process each comes to us first
    names = "import socket; print({socket.gethostbyname(f'{name}.shop.svc.cluster.local.') for name in 'abcdefgh'})"
    with _stand_in(own), own.start(sys.executable, office_dns.__file__, "192.0.2.53") as office:
        assert office.stdout is not None
        assert office.stdout.readline() == "ready\n"
        found = own.run(sys.executable, "-c", names, check=False)
        office.kill()
    assert found.stdout == "{'10.8.0.77'}\n", found
    own.netsetup("down")
    assert own.facts() == before
    # in a file that somebody else has changed
    own.netsetup("up", "--search", "shop")
    path.write_bytes(path.read_bytes() + b"nameserver 192.0.2.55\n")
    own.netsetup("down")
    assert path.read_bytes() == RESOLV_CONF.replace(b"edns0", b"rotate edns0") + b"nameserver 192.0.2.55\n"


def test_resolv_conf_that_is_a_symbolic_link(own: Machine) -> None:
    path = own.etc / "resolv.conf"
    (own.etc / "resolvconf").mkdir()
    path.rename(own.etc / "resolvconf" / "real")
    path.symlink_to("resolvconf/real")
    before = own.facts()
    own.netsetup("up")
    assert path.is_symlink()
    assert path.read_bytes().startswith(b"nameserver 10.8.0.1 ")
    own.netsetup("down")
    assert own.facts() == before
    own.netsetup("up")
    # what `sed -i` does to a link
    own.run("sed", "-i", "s/corp/campus/", "/etc/resolv.conf")
    assert not path.is_symlink()
    own.netsetup("down")
    assert path.read_bytes() == RESOLV_CONF.replace(b"corp", b"campus")
    assert (own.etc / "resolvconf" / "real").read_bytes() == RESOLV_CONF


def test_no_resolv_conf(own: Machine) -> None:
    (own.etc / "resolv.conf").unlink()
    before = own.facts()
    own.netsetup("up")
    assert (own.etc / "resolv.conf").read_bytes() == b"nameserver 10.8.0.1 # kube-tunnel\n"
    own.netsetup("down")
    assert own.facts() == before


def test_two_instances(own: Machine) -> None:
    hold = (
        "import sys; from netsetup.layout import Wanted; from netsetup.setup import network\n"
        "with network(Wanted()) as state: print(state.dns_ip, flush=True); sys.stdin.readline()"
    )
    before = own.facts()
    with subprocess.Popen(
        own.command(sys.executable, "-c", hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "10.8.0.1\n"
        for command in ("up", "down"):
            refused = own.netsetup(command, check=False)
            assert refused.returncode == 1
            assert "Another netsetup" in refused.stderr
        assert "Where that was killed, what undoes it: sudo " in own.netsetup("status").stdout
        first.communicate("end\n")
    assert own.facts() == before


def test_terminated_in_a_step(own: Machine) -> None:
    # nft that never ends; SIGTERM then undoes what was done
    before = own.facts()
    own.stub("nft", 'case "$*" in *-f*) echo in >> $LOG; exec sleep 60;; *) exec /usr/sbin/nft "$@";; esac')
    with own.start(sys.executable, "-m", "netsetup", "up") as up:
        assert up.stdout is not None
        while not up.stdout.readline().startswith("+ route 10.9"):
            pass
        up.terminate()
        up.communicate(timeout=20)
    assert up.returncode == 128 + signal.SIGTERM
    assert own.facts() == before


def test_only_root_may(own: Machine) -> None:
    before = own.facts()
    refused = own.python(AS_NOBODY, "up", "--port", "81", check=False)
    assert refused.returncode == 1
    assert f"See: sudo {sys.executable} -I -m netsetup up --port 81\n" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    # and the plan is anybody's
    assert "+ address 10.8.0.1/24 of kube-dns0" in own.python(AS_NOBODY, "up", "--dry-run").stdout
    assert own.facts() == before
    own.netsetup("up")
    assert own.python(AS_NOBODY, "up", "--dry-run", "--port", "8080").stdout == "nothing: it is up as wanted\n"
    status = own.python(AS_NOBODY, "status").stdout
    assert "ok       address 10.8.0.1/24 of kube-dns0" in status
    assert "unknown  redirection" in status
