"""Each verdict of the doctor, from facts as data."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from kubetunnel.cluster.kubeconfig import Cluster, Kubeconfig
from kubetunnel.cluster.user import User
from kubetunnel.core.errors import KubeconfigError
from kubetunnel.doctor.api_request import ApiAnswer
from kubetunnel.doctor.cluster import (
    judge_api_server,
    judge_clock,
    judge_identity,
    judge_kubeconfig,
    judge_kubeconfig_error,
)
from kubetunnel.doctor.dns_path import DnsPath, judge_dns_path, judge_tunnel_name
from kubetunnel.doctor.network import judge_interfaces, judge_ranges
from kubetunnel.doctor.ports import Binding, judge_dns_port, judge_redirection, judge_tunnel_port
from kubetunnel.doctor.protocols import judge_protocols
from kubetunnel.doctor.rights import RIGHTS, Asked, Right, judge_rights
from kubetunnel.doctor.surroundings import judge_proxies, judge_versions
from kubetunnel.doctor.trust import Authority, judge_authority
from kubetunnel.doctor.verdict import Level, Verdict, as_json, as_text, fail, failed, ok, skip, warn
from kubetunnel.forward.negotiation import CHANNEL, SPDY, TUNNEL, Meaning
from kubetunnel.redirection import Redirection
from netsetup.errors import StateError
from netsetup.found import Found, FoundLink, FoundResolver, FoundRoute
from netsetup.layout import Layout, Wanted
from netsetup.operations import MakeDirectory, link_mac
from netsetup.state import Record
from netsetup.status import Piece, Status

ZONE = "cluster.local"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def answer(status: int, body: object = None, *, date_ahead_s: float = 0.0, took_s: float = 0.01) -> ApiAnswer:
    at_s = NOW.timestamp()
    served = format_datetime(NOW + timedelta(seconds=date_ahead_s), usegmt=True)
    return ApiAnswer(status, {"date": served}, json.dumps(body).encode(), at_s, at_s + took_s)


def says(verdict: Verdict, level: Level, *words: str) -> None:
    """A verdict of this level that has these words, and a command where one is due."""
    assert verdict.level is level, verdict
    for word in words:
        assert word in f"{verdict.found} -> {verdict.mend}", verdict
    assert bool(verdict.mend) or level in (Level.OK, Level.SKIP), verdict


# -- how they are shown

LINES = [
    ok("one", "is well"),
    warn("two", "is odd", "mend two"),
    fail("longer", "is broken", "mend it"),
    skip("s", "-"),
]


def test_as_text() -> None:
    assert as_text(LINES, coloured=False).splitlines() == [
        "ok    one     is well",
        "warn  two     is odd",
        "              -> mend two",
        "fail  longer  is broken",
        "              -> mend it",
        "skip  s       -",
    ]
    assert "\x1b[31mfail\x1b[0m  longer" in as_text(LINES, coloured=True)


def test_as_json() -> None:
    document = json.loads(as_json(LINES))
    assert document["ok"] is False
    assert document["checks"][1] == {"check": "two", "level": "warn", "found": "is odd", "mend": "mend two"}
    assert json.loads(as_json(LINES[:2]))["ok"] is True


def test_only_a_failure_is_a_failure() -> None:
    assert failed(LINES)
    assert not failed([LINES[0], LINES[1], LINES[3]])


# -- the cluster

CONFIG = Kubeconfig("test", "demo", Cluster("https://10.0.0.1:6443"), User(name="dev"), (), current=True)


def test_kubeconfig() -> None:
    [found] = judge_kubeconfig(CONFIG, {Path("/k"): 0o600})
    says(found, Level.OK, "context test", "user dev", "namespace demo", "https://10.0.0.1:6443", "/k")
    _, mode = judge_kubeconfig(CONFIG, {Path("/k"): 0o640})
    says(mode, Level.WARN, "/k", "chmod go= /k")
    insecure = replace(CONFIG, cluster=replace(CONFIG.cluster, insecure=True))
    says(judge_kubeconfig(insecure, {})[-1], Level.WARN, "insecure-skip-tls-verify")


def test_no_kubeconfig() -> None:
    says(judge_kubeconfig_error(KubeconfigError("No kubeconfig: looked for /k")), Level.FAIL, "--demo", "KUBECONFIG")
    broken = KubeconfigError("/k, line 3 is not valid YAML", command="kubectl config view")
    says(judge_kubeconfig_error(broken), Level.FAIL, "line 3", "kubectl config view")


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (answer(200, {"gitVersion": "v1.30.1"}), Level.OK, "v1.30.1"),
        (answer(403), Level.OK, "not told"),
        (answer(404, "nginx"), Level.FAIL, "404"),
        (answer(200, "a login page"), Level.FAIL, "curl"),
    ],
)
def test_api_server(found: ApiAnswer, level: Level, words: str) -> None:
    says(judge_api_server("https://api", found), level, words)


def test_identity() -> None:
    known = answer(201, {"status": {"userInfo": {"username": "jane"}}})
    says(judge_identity("dev", known, answer(201)), Level.OK, "dev as jane")
    old_server = answer(404, {"kind": "Status", "status": "Failure"})
    says(judge_identity("dev", old_server, answer(201)), Level.OK, "those of dev")
    refused = answer(401, {"message": "Unauthorized"})
    says(judge_identity("dev", refused, refused), Level.FAIL, "Unauthorized", "kubectl auth whoami")


@pytest.mark.parametrize(
    ("ahead_s", "took_s", "level", "words"),
    [
        (0, 0.01, Level.OK, "within seconds"),
        (8, 0.01, Level.OK, "within seconds"),
        (25, 20, Level.OK, "within seconds"),  # it may be the answer that took so long
        (60, 0.01, Level.WARN, "60 s behind"),
        (-60, 0.01, Level.WARN, "59 s ahead"),
        (3600, 0.01, Level.FAIL, "3600 s behind"),
    ],
)
def test_clock(ahead_s: float, took_s: float, level: Level, words: str) -> None:
    says(judge_clock(answer(200, date_ahead_s=ahead_s, took_s=took_s)), level, words)


def test_clock_of_a_server_that_does_not_tell() -> None:
    says(judge_clock(ApiAnswer(200, {}, b"", 0, 0)), Level.OK, "does not tell")


# -- rights

ALL = frozenset(RIGHTS)
SLICES = "endpointslices.discovery.k8s.io"


def rights(missing: str = "", *, slices: bool = True, user: str = "dev") -> list[Verdict]:
    """The verdicts of a user that lacks some: "get services, list pods"."""
    lost = {Right(*text.split()) for text in missing.split(", ") if text}
    assert lost <= ALL
    return judge_rights(Asked("shop", {right: right not in lost for right in RIGHTS}, slices, user))


def every(resource: str) -> str:
    return ", ".join(str(right) for right in RIGHTS if right.resource == resource)


@pytest.mark.parametrize(
    ("missing", "index", "level", "words"),
    [
        ("", 0, Level.OK, ("get, list and watch",)),
        ("watch services", 0, Level.WARN, ("no watch", "asked for again", "--verb=get,list,watch")),
        ("list services", 0, Level.WARN, ("no list", "got by its name")),
        ("get services, list services", 0, Level.FAIL, ("neither get nor list", "--resource=services")),
        ("", 1, Level.OK, ("EndpointSlices",)),
        (f"watch {SLICES}", 1, Level.WARN, ("no watch of EndpointSlices",)),
        (f"list {SLICES}", 1, Level.WARN, ("Endpoints are taken instead", f"--resource={SLICES}")),
        (f"list {SLICES}, {every('endpoints')}", 1, Level.WARN, ("selector",)),
        (f"list {SLICES}, {every('endpoints')}, list pods", 1, Level.FAIL, ("no Endpoints and no pods",)),
        ("", 2, Level.OK, ("list",)),
        ("list pods", 2, Level.WARN, ("names by address",)),
        ("", 3, Level.OK, ("create and get",)),
        ("get pods/portforward", 3, Level.WARN, ("SPDY alone",)),
        ("create pods/portforward", 3, Level.WARN, ("before Kubernetes 1.35",)),
        (every("pods/portforward"), 3, Level.FAIL, ("no pod can be reached", "--verb=create,get", "--user=dev")),
    ],
)
def test_rights(missing: str, index: int, level: Level, words: tuple[str, ...]) -> None:
    verdicts = rights(missing)
    says(verdicts[index], level, *words)
    others = {verdict.level for place, verdict in enumerate(verdicts) if place != index}
    if "pods" not in missing:
        assert others == {Level.OK}


def test_a_server_without_endpoint_slices_is_no_fault() -> None:
    says(rights(slices=False)[1], Level.OK, "no discovery.k8s.io/v1", "Endpoints are taken")
    says(rights(f"{every('endpoints')}, list pods", slices=False)[1], Level.FAIL, "--resource=endpoints")


def test_who_is_granted_a_role() -> None:
    lacking = every("pods/portforward")
    assert "--serviceaccount=shop:ci" in rights(lacking, user="system:serviceaccount:shop:ci")[3].mend
    assert "--user=USER" in rights(lacking, user="")[3].mend
    assert "'--user=jane doe'" in rights(lacking, user="jane doe")[3].mend


def test_rights_that_nobody_tells() -> None:
    [found] = judge_rights(Asked("shop", {}))
    says(found, Level.FAIL, "can-i --list -n shop")


def test_a_review_asks_for_the_right() -> None:
    assert Right("create", "pods/portforward").review("shop")["spec"]["resourceAttributes"] == {
        "namespace": "shop", "verb": "create", "group": "", "resource": "pods", "subresource": "portforward",
    }  # fmt: skip
    assert Right("list", SLICES).review("shop")["spec"]["resourceAttributes"] == {
        "namespace": "shop", "verb": "list", "group": "discovery.k8s.io", "resource": "endpointslices",
    }  # fmt: skip


UNKNOWN, FORBIDDEN = Meaning.UNKNOWN_PROTOCOL, Meaning.FORBIDDEN


@pytest.mark.parametrize(
    ("answers", "level", "words"),
    [
        ({TUNNEL: None, SPDY: None, CHANNEL: None}, Level.OK, "SPDY in WebSocket, SPDY/3.1, WebSocket v4 taken"),
        ({TUNNEL: UNKNOWN, SPDY: None, CHANNEL: None}, Level.OK, "not spoken"),
        ({TUNNEL: None, SPDY: UNKNOWN, CHANNEL: UNKNOWN}, Level.OK, "SPDY in WebSocket taken"),
        ({TUNNEL: UNKNOWN, SPDY: UNKNOWN, CHANNEL: None}, Level.WARN, "slowly"),
        ({TUNNEL: FORBIDDEN, SPDY: FORBIDDEN, CHANNEL: FORBIDDEN}, Level.FAIL, "can-i create pods --sub"),
        ({TUNNEL: UNKNOWN, SPDY: UNKNOWN, CHANNEL: UNKNOWN}, Level.FAIL, "port-forward pod/api-0"),
    ],
)
def test_protocols(answers: dict[str, Meaning | None], level: Level, words: str) -> None:
    says(judge_protocols(answers, "shop/api-0"), level, words)


# -- this machine


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (Binding(8080, 0), Level.OK, "127.0.0.1:8080 is free"),
        (Binding(8080, errno.EADDRINUSE, ours=True), Level.OK, "a tunnel of ours"),
        (Binding(8080, errno.EADDRINUSE, owner="java (pid 7)"), Level.FAIL, "taken by java (pid 7)"),
        (Binding(8080, errno.EADDRINUSE), Level.FAIL, "kube-tunnel --port 8082"),
        (Binding(80, errno.EACCES), Level.FAIL, "kube-tunnel --port 8080"),
    ],
)
def test_tunnel_port(found: Binding, level: Level, words: str) -> None:
    says(judge_tunnel_port(found), level, words)


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (Binding(5353, 0), Level.OK, "free"),
        (Binding(5353, errno.EADDRINUSE, ours=True), Level.OK, "a DNS server of ours"),
        (Binding(5353, errno.EADDRINUSE, owner="avahi-daemon (pid 7)"), Level.WARN, "avahi-daemon (pid 7) (5353 is"),
        (Binding(53, errno.EACCES), Level.WARN, "--dns-port 8053"),
        (Binding(5353, 0, ip="::1"), Level.OK, "[::1]:5353 is free"),
    ],
)
def test_dns_port(found: Binding, level: Level, words: str) -> None:
    says(judge_dns_port(found), level, words)


def test_redirection() -> None:
    led, dns = Redirection("10.8.0.1", 8080, 5353), ("127.0.0.1", 5353)
    says(judge_redirection(led, None, dns), Level.OK, "virtual IPs to port 8080", "10.8.0.1 port 53 to port 5353")
    says(judge_redirection(led, ("127.0.0.1", 8080), None), Level.OK)
    says(judge_redirection(led, ("127.0.0.1", 80), dns), Level.FAIL, "the tunnel is at 127.0.0.1:80", "up --port 80")
    says(judge_redirection(led, None, ("127.0.0.1", 5300)), Level.FAIL, "up --dns-port 5300")


@pytest.mark.parametrize(
    ("wanted", "server", "routed", "system", "level", "words"),
    [
        (None, False, False, (), Level.SKIP, "kube-tunnel run"),
        (None, True, False, (), Level.WARN, "the system does not ask it"),
        (None, True, False, ("127.0.0.1",), Level.OK, "come to the tunnel"),
        (None, False, False, ("10.96.0.10",), Level.WARN, "somebody else answers"),
        ("10.8.0.1", False, False, (), Level.FAIL, "does not run"),
        ("10.8.0.1", True, False, (), Level.FAIL, "10.8.0.1 port 53 does not lead"),
        ("10.8.0.1", True, True, (), Level.FAIL, "does not ask us"),
        ("10.8.0.1", True, True, ("10.96.0.10",), Level.FAIL, "is 10.96.0.10"),
        ("10.8.0.1", True, True, ("10.8.0.1",), Level.OK, "by 10.8.0.1"),
        ("10.8.0.1", True, True, ("127.0.0.1",), Level.OK, "by 10.8.0.1"),
    ],
)
def test_dns_path(
    wanted: str | None, server: bool, routed: bool, system: tuple[str, ...], level: Level, words: str
) -> None:
    says(judge_dns_path(DnsPath(ZONE, wanted, server, routed, system)), level, words)


def test_dns_path_to_another_address() -> None:
    found = DnsPath(ZONE, None, True, False, ("127.0.0.7",), "127.0.0.7")
    says(judge_dns_path(found), Level.OK, "by 127.0.0.7")
    says(judge_dns_path(replace(found, system=("127.0.0.1",))), Level.WARN, "does not ask it")
    led = replace(found, wanted="10.8.0.1", system=())
    says(judge_dns_path(led), Level.FAIL, "does not lead to it", "kube-tunnel --dns-ip 127.0.0.1")
    says(judge_dns_path(replace(led, ip="0.0.0.0")), Level.FAIL, "does not lead to it", "netsetup up")


def test_tunnel_name() -> None:
    says(judge_tunnel_name(("10.8.0.2",)), Level.OK, "kube-tunnel.internal is 10.8.0.2")
    says(judge_tunnel_name(()), Level.WARN, "does not find kube-tunnel.internal", "netsetup up")


RANGES = (ip_network("10.8.0.0/24"), ip_network("10.9.0.0/24"))
NOTHING = Found((), (), FoundResolver("resolv.conf"))


def routed(*routes: tuple[str, str]) -> Found:
    return replace(NOTHING, routes=tuple(FoundRoute(ip_network(prefix), link) for prefix, link in routes))


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (NOTHING, Level.OK, "nobody else's"),
        (routed(("0.0.0.0/0", "eth0"), ("0.0.0.0/1", "tun0")), Level.OK, "nobody else's"),
        (routed(("10.8.0.0/16", "tun0")), Level.WARN, "10.8.0.0/24 is taken by the route 10.8.0.0/16 to tun0 (a VPN)"),
        (routed(("10.0.0.0/8", "eth1")), Level.FAIL, "--ip-ranges"),
        (replace(NOTHING, links=(FoundLink("br0", "", (ip_interface("10.9.0.7/24"),)),)), Level.WARN, "of br0"),
    ],
)
def test_ranges(found: Found, level: Level, words: str) -> None:
    says(judge_ranges(RANGES, found), level, words)


def test_interfaces_without_netsetup() -> None:
    says(judge_interfaces(Status(None), []), Level.SKIP, "-m kubetunnel netsetup up")
    ours = FoundLink("kube-dns0", link_mac("kube-dns0"))
    lost = StateError("A line in /etc/resolv.conf.", command="sudo ip link delete kube-dns0")
    says(judge_interfaces(Status(None), [ours], lost), Level.WARN, "A line in", "ip link delete kube-dns0")
    theirs = judge_interfaces(Status(None), [FoundLink("kube-dns0", "52:54:00:00:00:01")])
    says(theirs, Level.WARN, "somebody else has a link kube-dns0", "--dns-link")
    assert "delete" not in theirs.mend


def set_up(*there: bool | None, complete: bool = True, conflicts: tuple[str, ...] = ()) -> Status:
    """A state file of as many steps, and whether each is there."""
    steps = [MakeDirectory(f"/step{number}") for number, _ in enumerate(there)]
    addresses = ip_interface("10.8.0.1/24"), ip_interface("10.8.0.2/24")
    record = Record(Wanted(), Layout(*addresses, RANGES), (), "a boot", list(steps), complete=complete)
    return Status(record, tuple(Piece(step, found) for step, found in zip(steps, there, strict=True)), conflicts)


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (set_up(True, True), Level.OK, "2 pieces of netsetup are there"),
        (set_up(True, None), Level.OK, "2 pieces of netsetup are there (1 that only root can see)"),
        (set_up(True, False), Level.FAIL, "/step1"),
        (set_up(True, complete=False), Level.FAIL, "-m netsetup down"),
        (set_up(True, conflicts=("10.8.0.0/24 is taken by tun0",)), Level.FAIL, "taken by tun0"),
    ],
)
def test_interfaces(found: Status, level: Level, words: str) -> None:
    says(judge_interfaces(found, []), level, words)


CA = Authority(Path("/ca/mitmproxy-ca-cert.pem"), NOW - timedelta(days=1), NOW + timedelta(days=365))


@pytest.mark.parametrize(
    ("found", "index", "level", "words"),
    [
        (CA, 0, Level.OK, "valid until 2027-06-01"),
        (replace(CA, not_after=NOW + timedelta(days=7)), 0, Level.WARN, "expires on 2026-06-08"),
        (replace(CA, not_after=NOW - timedelta(days=7)), 0, Level.FAIL, "expired on 2026-05-25"),
        (replace(CA, not_before=NOW + timedelta(days=1)), 0, Level.FAIL, "not valid before"),
        (replace(CA, open_files=(Path("/ca/key"),)), 0, Level.FAIL, "chmod 600 /ca/key"),
        (CA, 1, Level.WARN, "curl --cacert /ca/mitmproxy-ca-cert.pem"),
        (replace(CA, trusted_by=("/etc/ssl/cert.pem",)), 1, Level.OK, "/etc/ssl/cert.pem"),
    ],
)
def test_authority(found: Authority, index: int, level: Level, words: str) -> None:
    says(judge_authority(found, NOW)[index], level, words)


@pytest.mark.parametrize(
    ("environ", "level", "words"),
    [
        ({}, Level.OK, "none is set"),
        ({"http_proxy": "http://127.0.0.1:8080"}, Level.OK, "lead to the tunnel"),
        ({"HTTPS_PROXY": "http://corp:3128"}, Level.WARN, "HTTPS_PROXY (corp:3128)"),
        ({"http_proxy": "corp:3128"}, Level.WARN, ".cluster.local"),
        ({"http_proxy": "http://corp:3128", "no_proxy": "a.com, .cluster.local"}, Level.OK, "leave names"),
        ({"http_proxy": "http://corp:3128", "NO_PROXY": "local"}, Level.OK, "leave names"),
        ({"http_proxy": "http://corp:3128", "NO_PROXY": "*"}, Level.OK, "leave names"),
        ({"http_proxy": "http://corp:3128", "NO_PROXY": "ster.local"}, Level.WARN, "elsewhere"),
        ({"all_proxy": "http://[::1"}, Level.WARN, "unreadable"),
    ],
)
def test_proxies(environ: dict[str, str], level: Level, words: str) -> None:
    says(judge_proxies(environ, ZONE, 8080), level, words)


def test_a_proxy_password_is_not_shown() -> None:
    found = judge_proxies({"http_proxy": "http://jane:s3cret@corp:3128"}, ZONE, 8080)
    assert "s3cret" not in as_text([found], coloured=False)


@pytest.mark.parametrize(
    ("python", "mitmproxy", "level", "words"),
    [
        ((3, 12, 0), "12.2.3", Level.OK, "mitmproxy 12.2.3"),
        ((3, 11, 9), "12.2.3", Level.FAIL, "Python 3.12 is needed"),
        ((3, 13, 0), "12.3.0", Level.FAIL, "pip install"),
        ((3, 13, 0), "11.0", Level.FAIL, "12.2 is needed"),
        ((3, 13, 0), None, Level.FAIL, "missing"),
    ],
)
def test_versions(python: tuple[int, int, int], mitmproxy: str | None, level: Level, words: str) -> None:
    says(judge_versions(python, mitmproxy), level, words)
