"""Real clients at virtual IPs: every protocol on every port finds its Service by the address alone.

The cases run with listeners on loopback, and once more within a network namespace of their own, with an nftables
redirection in the place of the listeners.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from tests.contract.test_grpc import Echo, String
from tests.contract.test_protocols import ca_file
from tests.proxy.loopback import TIMEOUT_S, received, rest, socks5
from tests.proxy.virtual_network import (
    ECHO,
    IN_NAMESPACE,
    PAIR,
    POD,
    POSTGRES,
    REDIS,
    SHARED,
    UNREADY,
    World,
    redirect_to_the_tunnel,
    world,
)
from tests.tunnel import curl, without_proxies

redirected = pytest.mark.skipif(not os.environ.get(IN_NAMESPACE), reason="a listener exists for a Service's ports only")


@pytest.fixture(scope="module", autouse=True)
def network() -> None:
    if os.environ.get(IN_NAMESPACE):
        redirect_to_the_tunnel()


@pytest.fixture(scope="module")
def virtual(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("virtual")) as found:
        yield found


def dial(virtual: World, name: str, port: int) -> socket.socket:
    return socket.create_connection(virtual.at(name, port), TIMEOUT_S)


def assert_reset(connection: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        assert rest(connection) == b"", "the connection ended as if all was well"


@pytest.mark.skipif(bool(os.environ.get(IN_NAMESPACE)), reason="is in the namespace")
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, for a network namespace")
@pytest.mark.skipif(not (shutil.which("nft") and shutil.which("ip")), reason="needs nft and ip")
def test_the_same_by_redirection() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        capture_output=True, text=True, timeout=110, cwd=Path(__file__).parents[2],
        env={**os.environ, IN_NAMESPACE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# HTTP


@pytest.mark.parametrize("version", [["--http1.1"], ["--http2-prior-knowledge"], ["--http1.0"]])
def test_http(virtual: World, version: list[str]) -> None:
    answer = curl(*version, virtual.url(PAIR, 80) + "/hostname", "-H", "Host: elsewhere.example")
    assert (answer.status, answer.text) == (200, "pair\n"), answer


def test_the_pod_sees_the_host_that_was_asked_for(virtual: World) -> None:
    answer = curl(virtual.url(ECHO, 80) + "/", "-H", "Host: other.other.svc.cluster.local:7777")
    assert answer.json["host"] == "other.other.svc.cluster.local:7777"
    virtual.tunnel.wait_for(r"echo\.demo\.svc\.cluster\.local")


def test_many_requests_on_one_connection(virtual: World) -> None:
    url = virtual.url(PAIR, 80) + "/hostname"
    answer = curl(url, url, url)
    assert answer.text == "pair\n" * 3
    assert answer.connects == 0, "the last one used the connection of the first"


def test_a_pod_of_a_headless_service(virtual: World) -> None:
    assert curl(virtual.url(POD, 8080) + "/hostname").text == "echo-sts-0\n"
    with dial(virtual, POD, 9000) as client:
        client.sendall(b"raw")
        assert received(client, 3) == b"raw"


@pytest.mark.parametrize(
    ("sni", "names"),
    [(None, {ECHO}), ("elsewhere.example", {"elsewhere.example", ECHO})],
)
def test_tls_ends_here_with_a_leaf_for_the_service(virtual: World, sni: str | None, names: set[str]) -> None:
    context = ssl.create_default_context(cafile=ca_file(virtual.tunnel))
    context.check_hostname = False
    with context.wrap_socket(dial(virtual, ECHO, 443), server_hostname=sni) as client:
        der = client.getpeercert(binary_form=True)
        assert der is not None
        client.sendall(b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 200 ")
    leaf = x509.load_der_x509_certificate(der)
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names <= set(found.get_values_for_type(x509.DNSName))


def test_https_with_http2(virtual: World) -> None:
    answer = curl("-k", "--http2", virtual.url(ECHO, 443, "https") + "/hostname")
    assert (answer.status, answer.http_version) == (200, "2")


@pytest.mark.parametrize("port", [9090, 9443])
def test_grpc(virtual: World, port: int) -> None:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    host, number = virtual.at(ECHO, port)
    target = f"{host}:{number}"
    if port == 9090:
        channel = grpc.insecure_channel(target, options)
    else:
        authority = (ca_file(virtual.tunnel)).read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        channel = grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", ECHO)])
    with channel:
        assert Echo(channel).unary(String(value="hello"), timeout=TIMEOUT_S).value.endswith("hello")


# raw TCP


def test_raw_bytes(virtual: World) -> None:
    with dial(virtual, ECHO, 7) as client:
        for message in (b"\x00\x01binary", b"G", b"\x05\x01\x00", b"x" * 300_000):
            client.sendall(message)
            assert received(client, len(message)) == message


def test_the_server_speaks_first(virtual: World) -> None:
    with dial(virtual, ECHO, 9001) as client:
        assert received(client, 8) == b"220 echo"


def test_a_service_may_be_a_proxy_itself(virtual: World) -> None:
    """CONNECT is for it, as it stands: the raw echo gives it back."""
    request = b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n"
    with dial(virtual, ECHO, 7) as client:
        client.sendall(request)
        assert received(client, len(request)) == request


@pytest.mark.skipif(not (shutil.which("redis-cli") and shutil.which("redis-server")), reason="needs Redis")
def test_redis(virtual: World) -> None:
    host, port = virtual.at(REDIS, 6379)
    command = ["redis-cli", "-h", host, "-p", str(port), "PING"]
    done = subprocess.run(command, capture_output=True, timeout=30, env=without_proxies())
    assert done.stdout == b"PONG\n", done.stderr


@pytest.mark.skipif(not shutil.which("psql"), reason="needs PostgreSQL's psql")
@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_postgres(virtual: World, sslmode: str) -> None:
    if POSTGRES not in virtual.addresses:
        pytest.skip("needs PostgreSQL's server")
    host, port = virtual.at(POSTGRES, 5432)
    found = f"host={host} port={port} user=kube dbname=postgres sslmode={sslmode}"
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    command = ["psql", "-w", "-AtX", found, "-c", query]
    done = subprocess.run(command, capture_output=True, timeout=30, env=without_proxies())
    assert done.stdout == (b"t\n" if sslmode == "require" else b"f\n"), done.stderr


# what fails, in the client's own protocol


def test_http_refusals(virtual: World) -> None:
    not_ready = curl(virtual.url(UNREADY, 80))
    assert (not_ready.status, not_ready.reason) == (503, "NoReadyEndpoints")
    assert "none of them ready" in not_ready.json["detail"]
    in_http2 = curl("--http2-prior-knowledge", virtual.url(UNREADY, 80))
    assert (in_http2.status, in_http2.reason) == (503, "NoReadyEndpoints")
    refused = curl(virtual.url(ECHO, 9999))
    assert (refused.status, refused.reason) == (502, "ConnectionRefused")


def test_http_refusal_within_tls(virtual: World) -> None:
    answer = curl("-k", virtual.url(UNREADY, 80, "https"))
    assert (answer.status, answer.reason) == (503, "NoReadyEndpoints")


def test_grpc_refusal(virtual: World) -> None:
    host, port = virtual.at(UNREADY, 80)
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            Echo(channel).unary(String(value="hello"), timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "none of them ready" in refused.value.details()


@pytest.mark.parametrize("says", [b"\x00\x00\x00\x08raw", b"HELO", b""], ids=["binary", "words", "nothing"])
@pytest.mark.parametrize("name", [UNREADY, ECHO], ids=["not ready", "refused"])
def test_a_raw_client_is_reset(virtual: World, name: str, says: bytes) -> None:
    """Also one that waits for the server to speak first."""
    with dial(virtual, name, 80 if name == UNREADY else 9999) as client:
        if says:
            client.sendall(says)
        assert_reset(client)


@redirected
def test_a_port_that_the_service_has_not_got(virtual: World) -> None:
    answer = curl(virtual.url(PAIR, 81))
    assert (answer.status, answer.reason) == (404, "PortNotExposed")
    assert "80" in answer.json["detail"]
    with dial(virtual, PAIR, 81) as client:
        assert_reset(client)


@redirected
def test_an_address_that_is_nobodys(virtual: World) -> None:
    free = next(f"10.8.0.{n}" for n in range(3, 255) if f"10.8.0.{n}" not in virtual.addresses.values())
    answer = curl(f"http://{free}/")
    assert (answer.status, answer.reason) == (400, "NotAServiceName")
    assert f"{free} is in the range of the virtual IPs" in answer.json["detail"]
    with socket.create_connection((free, 5432), TIMEOUT_S) as client:
        assert_reset(client)


def test_the_tunnels_own_pages_are_not_at_the_address_of_a_service(virtual: World) -> None:
    for host in ([], ["-H", "Host: localhost"], ["-H", "Host: kube-tunnel.internal"]):
        for path in ("/health", "/metrics", "/dashboard"):
            answer = curl(*host, virtual.url(ECHO, 80) + path)
            assert answer.json["path"] == path
            assert answer.json["pod"].startswith("echo-")


def test_the_plain_port_is_as_ever(virtual: World) -> None:
    assert virtual.tunnel.get(PAIR).text == "pair\n"
    assert virtual.tunnel.via_proxy(f"http://{PAIR}/hostname").text == "pair\n"
    assert virtual.tunnel.get("127.0.0.1").reason == "NotAServiceName"


# literal virtual IPs, asked of the tunnel's port


def test_literal_addresses_in_requests(virtual: World) -> None:
    address, port = virtual.addresses[PAIR], virtual.tunnel.port
    url = f"http://{address}/hostname"
    for way in (
        ["-x", virtual.tunnel.url],
        ["-p", "-x", virtual.tunnel.url],
        ["--socks5", f"127.0.0.1:{port}"],
        ["--socks5-hostname", f"127.0.0.1:{port}"],
    ):
        assert curl(*way, url).text == "pair\n", way
    assert virtual.tunnel.get(address).text == "pair\n"
    assert virtual.tunnel.get(f"{address}:80").text == "pair\n"
    with socks5(port, virtual.addresses[ECHO], 7) as client:
        client.sendall(b"raw")
        assert received(client, 3) == b"raw"


def test_literal_addresses_that_are_nobodys(virtual: World) -> None:
    network = virtual.addresses[PAIR].rpartition(".")[0]
    free = next(f"{network}.{n}" for n in range(3, 255) if f"{network}.{n}" not in virtual.addresses.values())
    answer = virtual.tunnel.via_proxy(f"http://{free}/")
    assert (answer.status, answer.reason) == (400, "NotAServiceName")
    assert virtual.tunnel.get(free).reason == "NotAServiceName"
    assert curl("-p", "-x", virtual.tunnel.url, f"http://{free}/").connect_status == 400
    assert curl("--socks5", f"127.0.0.1:{virtual.tunnel.port}", f"http://{free}/").exit_code == 97


@pytest.mark.skipif(bool(os.environ.get(IN_NAMESPACE)), reason="says nothing of a redirection")
def test_literal_addresses_in_mitmproxys_regular_mode(tmp_path: Path) -> None:
    options = ("--mode", "regular", "--listen-host", "127.0.0.1")
    with world(tmp_path, *options, loopback_range="127.68.0.0/16") as regular:
        url = f"http://{regular.addresses[PAIR]}/hostname"
        assert regular.tunnel.via_proxy(url).text == "pair\n"
        assert regular.tunnel.via_proxy(url, "-p").text == "pair\n"


# one address for all


@pytest.fixture(scope="module")
def shared(virtual: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    virtual.tunnel.close()  # it has the port that the redirection leads to
    with world(tmp_path_factory.mktemp("shared"), shared=True) as found:
        yield found


def to_shared(name: str, port: int) -> list[str]:
    return ["--connect-to", f"{name}:{port}:{SHARED}:{port}"]


@redirected
def test_at_the_shared_address_the_host_tells_the_name(shared: World) -> None:
    assert curl(*to_shared(PAIR, 80), f"http://{PAIR}/hostname").text == "pair\n"
    assert curl(*to_shared(ECHO, 9999), f"http://{ECHO}:9999/").reason == "ConnectionRefused"
    over_tls = curl("-k", *to_shared(ECHO, 443), f"https://{ECHO}/hostname")
    assert over_tls.status == 200
    assert over_tls.text.startswith("echo-")


@redirected
def test_at_the_shared_address_the_port_counts(shared: World) -> None:
    """Not the one in the Host header, which names none here."""
    answer = curl("-H", f"Host: {ECHO}", f"http://{SHARED}:9999/")
    assert answer.reason == "ConnectionRefused", answer
    assert curl("-H", f"Host: {ECHO}", f"http://{SHARED}:81/").reason == "PortNotExposed"


@redirected
def test_at_the_shared_address_the_sni_tells_the_name(shared: World) -> None:
    context = ssl.create_default_context(cafile=ca_file(shared.tunnel))
    for port, says, hears in ((7, b"\x00raw", b"\x00raw"), (9001, b"", b"220 echo")):
        connection = socket.create_connection((SHARED, port), TIMEOUT_S)
        with context.wrap_socket(connection, server_hostname=ECHO) as client:
            client.sendall(says)
            assert received(client, len(hears)) == hears


@redirected
def test_at_the_shared_address_raw_bytes_name_nobody(shared: World) -> None:
    with socket.create_connection((SHARED, 5432), TIMEOUT_S) as client:
        client.sendall(b"\x00\x00\x00\x08raw")
        assert_reset(client)


@pytest.fixture(scope="module")
def ipv6(shared: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shared.tunnel.close()
    with world(tmp_path_factory.mktemp("ipv6"), "--listen-host", "::1", ipv6=True) as found:
        yield found


@redirected
def test_virtual_ips_of_version_6(ipv6: World) -> None:
    assert curl("-g", ipv6.url(PAIR, 80) + "/hostname").text == "pair\n"
    with dial(ipv6, ECHO, 7) as client:
        client.sendall(b"\x00raw")
        assert received(client, 4) == b"\x00raw"
    on_the_plain_port = f"http://[::1]:{ipv6.tunnel.port}"
    assert curl("-g", "-x", on_the_plain_port, ipv6.url(PAIR, 80) + "/hostname").text == "pair\n"
    assert curl("-g", "-H", f"Host: [{ipv6.addresses[PAIR]}]", f"{on_the_plain_port}/hostname").text == "pair\n"
