"""Each protocol by each way in: the listening port itself, as an HTTP proxy, by SOCKS5; the client is curl."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.conftest import ClusterUnderTest
from tests.tunnel import Answer, InstalledTunnel, Tunnel, curl, without_proxies

NAME = "echo.demo.svc.cluster.local"
H2C = "--http2-prior-knowledge"


def ca_file(tunnel: Tunnel) -> Path:
    """The certificate that clients are told to trust."""
    return tunnel.confdir / "mitmproxy-ca-cert.pem"


@dataclass(frozen=True)
class Way:
    """How curl gets to the tunnel; the URL names the Service."""

    name: str
    options: tuple[str, ...]

    def ask(self, tunnel: Tunnel, url: str, *arguments: str) -> Answer:
        options = [option.format(at=f"127.0.0.1:{tunnel.port}") for option in self.options]
        return curl(*options, *arguments, url, timeout_s=10)


DIRECT = Way("direct", ("--connect-to", "::{at}"))
PROXY = Way("proxy", ("-x", "http://{at}"))
CONNECT = Way("connect", ("-p", "-x", "http://{at}"))
SOCKS5 = Way("socks5", ("--socks5-hostname", "{at}"))
WAYS = pytest.mark.parametrize("way", [DIRECT, PROXY, CONNECT, SOCKS5], ids=lambda way: way.name)
# -x alone asks for http:// URLs in absolute form, which is HTTP/1.1 by nature
TUNNELLED_WAYS = pytest.mark.parametrize("way", [DIRECT, CONNECT, SOCKS5], ids=lambda way: way.name)


@WAYS
def test_http1(tunnel: Tunnel, way: Way) -> None:
    seen = way.ask(tunnel, f"http://{NAME}/a/b?x=1", "--http1.1").json
    assert (seen["proto"], seen["path"], seen["query"], seen["host"]) == ("HTTP/1.1", "/a/b", "x=1", NAME)
    assert seen["tls"] is False


@TUNNELLED_WAYS
def test_http2_with_prior_knowledge(tunnel: Tunnel, way: Way) -> None:
    answer = way.ask(tunnel, f"http://{NAME}/a/b?x=1", H2C, "-d", "body")
    seen = answer.json
    assert answer.http_version == "2"
    assert (seen["proto"], seen["path"], seen["query"], seen["host"]) == ("HTTP/2.0", "/a/b", "x=1", NAME)
    assert (seen["method"], seen["body"]) == ("POST", "body")


@WAYS
@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_https_by_alpn(tunnel: Tunnel, way: Way, option: str, version: str) -> None:
    answer = way.ask(tunnel, f"https://{NAME}/a", option, "-k")
    seen = answer.json
    assert answer.http_version == version
    assert (seen["tls"], seen["host"], seen["path"]) == (True, NAME, "/a")
    assert seen["proto"] == ("HTTP/2.0" if version == "2" else "HTTP/1.1")


@WAYS
def test_https_verifies_with_our_ca(tunnel: Tunnel, way: Way) -> None:
    assert way.ask(tunnel, f"https://{NAME}/hostname", "--cacert", str(ca_file(tunnel))).text.startswith("echo-")


def test_without_our_ca_there_is_no_trust(tunnel: Tunnel) -> None:
    assert DIRECT.ask(tunnel, f"https://{NAME}/hostname").exit_code == 60


def test_the_ca_is_the_users_alone(tunnel: Tunnel) -> None:
    keys = [tunnel.confdir / "mitmproxy-ca.pem", tunnel.confdir / "mitmproxy-ca.p12"]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600, 0o600]


def test_the_sni_names_the_service_where_the_host_is_another(tunnel: Tunnel) -> None:
    answer = DIRECT.ask(tunnel, f"https://{NAME}/a", "-k", "-H", "Host: www.example.com")
    assert (answer.status, answer.json["host"]) == (200, "www.example.com")


@pytest.mark.parametrize("url", [f"http://{NAME}:443/", f"https://{NAME}:80/"])
@TUNNELLED_WAYS
def test_the_pod_is_spoken_to_as_its_port_is(tunnel: Tunnel, way: Way, url: str) -> None:
    """TLS to the client says nothing of TLS to the pod."""
    answer = way.ask(tunnel, url, "-k", "--http1.1")
    assert answer.json["tls"] is url.startswith("http:")


def test_an_upgrade_to_h2c_is_answered_in_http1(tunnel: Tunnel) -> None:
    answer = tunnel.get(NAME, "/a", "--http2")  # curl offers Upgrade: h2c
    assert (answer.status, answer.http_version) == (200, "1.1")
    assert "Http2-Settings" not in answer.json["headers"]


@TUNNELLED_WAYS
def test_force_http2(http2_tunnel: Tunnel, way: Way) -> None:
    answer = way.ask(http2_tunnel, f"http://{NAME}/a", "--http1.1")
    assert (answer.http_version, answer.json["proto"]) == ("1.1", "HTTP/2.0")


def test_an_app_protocol_from_the_settings_wins(http1_tunnel: Tunnel) -> None:
    answer = DIRECT.ask(http1_tunnel, f"http://{NAME}/a", H2C)
    assert (answer.http_version, answer.json["proto"]) == ("2", "HTTP/1.1")


def test_twelve_requests_at_once_of_one_http2_connection(http1_tunnel: Tunnel, tmp_path: Path) -> None:
    """To a pod that speaks HTTP/1.1 only: mitmproxy opens five upstreams, and the sixth request waits for ever."""
    command = [
        "curl", "-q", "-k", "--silent", "--max-time", "10", "--http2", "--parallel", "--parallel-max", "50",
        "--connect-to", f"::127.0.0.1:{http1_tunnel.port}", "-o", f"{tmp_path}/#1",
        "-w", '{"status": "%{http_code}", "connects": %{num_connects}, "seconds": %{time_total}}\n',
        f"https://{NAME}:80/delay?ms=500&n=[1-12]",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=20, env=without_proxies())
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [fact["status"] for fact in facts] == ["200"] * 12
    assert sum(fact["connects"] for fact in facts) == 1
    seen = [json.loads((tmp_path / str(n)).read_text()) for n in range(1, 13)]
    assert {(one["proto"], one["query"]) for one in seen} == {("HTTP/1.1", f"ms=500&n={n}") for n in range(1, 13)}
    assert max(fact["seconds"] for fact in facts) < 4, "one after the other"


# TLS to the pod


@pytest.mark.parametrize("way", [DIRECT, CONNECT], ids=lambda way: way.name)
def test_the_pods_certificate_is_verified_where_the_user_gives_a_ca(
    cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory, tunnel: Tunnel, way: Way
) -> None:
    if cluster.app_ca is None:
        pytest.skip("NOT TESTED: no CA of the demo's certificate; set KUBECONFIG_APP_CA")
    options = [
        "--set", f"kube_services=echo.demo:443 ca_file={cluster.app_ca}",
        "--set", f"kube_services=echo.demo:9443 app_protocol=https ca_file={ca_file(tunnel)}",
    ]  # fmt: skip
    with InstalledTunnel(
        tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig, options=options
    ) as verifying:
        verified = way.ask(verifying, f"https://{NAME}/hostname", "-k")
        assert (verified.status, verified.reason) == (200, None), verified.text
        refused = way.ask(verifying, f"https://{NAME}:9443/", "-k", "--http1.1")
        assert "Traceback" not in verifying.log, verifying.log
    assert (refused.status, refused.reason) == (502, "UpstreamProtocol"), refused.stderr
    assert "certificate" in refused.json["detail"].lower()


@pytest.mark.parametrize("way", [DIRECT, CONNECT, SOCKS5], ids=lambda way: way.name)
def test_passthrough_leaves_tls_to_the_pod(cluster: ClusterUnderTest, http2_tunnel: Tunnel, way: Way) -> None:
    if cluster.app_ca is None:
        pytest.skip("NOT TESTED: no CA of the demo's certificate; set KUBECONFIG_APP_CA")
    answer = way.ask(http2_tunnel, f"https://{NAME}/a", "--cacert", str(cluster.app_ca), "--http1.1")
    assert (answer.status, answer.json["proto"]) == (200, "HTTP/1.1"), answer.stderr
