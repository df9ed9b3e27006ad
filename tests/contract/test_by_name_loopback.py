"""`--loopback`: no root and no redirection. DNS tells an address of 127.0.0.0/8, where the Service's ports are listened
at; the clients here ask our DNS server for it as a resolver would that is pointed at it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.contract.by_name_clients import grpc, tcp, websocket
from tests.contract.conftest import ClusterUnderTest
from tests.netsetup.dug import Dug, dig
from tests.tunnel import Answer, InstalledTunnel, Tunnel, curl

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="anybody may listen at all of 127.0.0.0/8 on Linux alone"),
    pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed"),
]

ZONE = "cluster.local"
ECHO, PAIR = f"echo.demo.svc.{ZONE}", f"pair.demo.svc.{ZONE}"
STS = f"echo-sts.demo.svc.{ZONE}"


@dataclass
class Resolving:
    """The tunnel, and the way from a name and a port to where a client connects to."""

    tunnel: Tunnel
    dns: tuple[str, int]
    known: dict[str, str] = field(default_factory=dict)

    def dig(self, *words: str) -> Dug:
        return asyncio.run(dig(self.dns, *words))

    def at(self, name: str, port: int) -> tuple[str, int]:
        """Below 1024 it may be another port, which the log tells."""
        if name not in self.known:
            (self.known[name],) = self.dig(name, "A").data
        moved = re.search(rf"{re.escape(name)} port {port}: listening at [\d.]+:(\d+)", self.tunnel.log)
        return self.known[name], int(moved[1]) if moved else port

    def curl(self, name: str, port: int, path: str, *arguments: str, scheme: str = "http") -> Answer:
        host, number = self.at(name, port)
        return curl(*arguments, f"{scheme}://{host}:{number}{path}", timeout_s=20)


@pytest.fixture(scope="module")
def here(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resolving]:
    options = ["--set", "kube_network_loopback=true", "--set", "kube_dns_port=0"]
    with InstalledTunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig, options=options) as tunnel:
        told = tunnel.wait_for(r"DNS server on ([\d.]+) port (\d+)")
        yield Resolving(tunnel, (told[1], int(told[2])))
        assert "Traceback" not in tunnel.log, tunnel.log


def test_each_name_has_an_address_of_its_own(here: Resolving) -> None:
    names = (ECHO, PAIR, f"echo.other.svc.{ZONE}", f"echo-sts-0.{STS}", f"echo-sts-1.{STS}")
    addresses = [here.at(name, 80)[0] for name in names]
    assert len(set(addresses)) == len(names)
    assert all(address.startswith("127.64.") for address in addresses)
    assert here.dig(STS, "A").data == sorted(addresses[3:])
    assert here.dig("-x", addresses[0]).data == [f"{ECHO}."]
    assert here.dig(f"_grpc._tcp.{ECHO}", "SRV").data == [f"0 100 9090 {ECHO}."]


def test_the_tunnels_own_name(here: Resolving) -> None:
    name, port = "kube-tunnel.internal", here.tunnel.port
    (address,) = here.dig(name, "A").data
    assert here.dig(name, "AAAA").nodata
    for path in ("/health", "/dashboard"):
        answer = curl("--resolve", f"{name}:{port}:{address}", f"http://{name}:{port}{path}", timeout_s=20)
        assert answer.status == 200, answer


@pytest.mark.parametrize(
    ("port", "scheme", "arguments", "version"),
    [
        (80, "http", [], "1.1"),
        (80, "http", ["--http2-prior-knowledge"], "2"),
        (443, "https", ["-k"], "2"),
        (443, "https", ["-k", "--http1.1"], "1.1"),
    ],
)
def test_http(here: Resolving, port: int, scheme: str, arguments: list[str], version: str) -> None:
    answer = here.curl(ECHO, port, "/hostname", *arguments, scheme=scheme)
    assert (answer.status, answer.http_version) == (200, version), answer
    assert answer.text.startswith("echo-")


@pytest.mark.parametrize("pod", ["echo-sts-0", "echo-sts-1"])
def test_a_pod_of_a_headless_service(here: Resolving, pod: str) -> None:
    assert here.curl(f"{pod}.{STS}", 8080, "/hostname").text == f"{pod}\n"


@pytest.mark.parametrize(
    ("name", "port", "status", "reason"),
    [
        (ECHO, 9999, 502, "ConnectionRefused"),
        (ECHO, 9002, 502, "UpstreamReset"),
        (f"unready.demo.svc.{ZONE}", 80, 503, "NoReadyEndpoints"),
        (f"zero.demo.svc.{ZONE}", 80, 503, "NoReadyEndpoints"),
    ],
)
def test_refusals(here: Resolving, name: str, port: int, status: int, reason: str) -> None:
    answer = here.curl(name, port, "/")
    assert (answer.status, answer.reason) == (status, reason)


def test_a_port_that_the_service_has_not_got_is_refused_by_the_system(here: Resolving) -> None:
    assert here.curl(ECHO, 81, "/").exit_code == 7


def test_names_that_do_not_exist(here: Resolving) -> None:
    for name in (f"nothere.demo.svc.{ZONE}", f"echo.nowhere.svc.{ZONE}", f"echo-sts-7.{STS}"):
        assert here.dig(name, "A").nxdomain, name


def test_grpc(here: Resolving) -> None:
    told = grpc("{}:{}".format(*here.at(ECHO, 9090)))
    assert told.pop("pod").startswith("echo-")
    assert told == {
        "unary": "héllo",
        "server_stream": 20,
        "client_stream": 5000,
        "bidi": ["one", "two"],
        "fail": ["FAILED_PRECONDITION", "why"],
        "reflection": True,
        "health": 1,
    }


def test_websocket(here: Resolving) -> None:
    assert websocket("ws://{}:{}/ws".format(*here.at(ECHO, 80)))[0] == "héllo"


@pytest.mark.parametrize(
    ("port", "sent", "got", "end"),
    [
        (7, "\\0binary\\xff\\n", "\0binary\xff\n", None),
        (9001, "", "220 echo", None),
        (9002, "\\0any", "", "ConnectionResetError"),
        (9999, "\\0any", "", "ConnectionResetError"),
    ],
)
def test_raw_tcp(here: Resolving, port: int, sent: str, got: str, end: str | None) -> None:
    host, number = here.at(ECHO, port)
    told = tcp(host, str(number), sent)
    assert told["end"] == end
    assert told["got"].startswith(got)
