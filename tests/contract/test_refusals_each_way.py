"""The same refusals as in test_refusals.py, told in HTTP/2, to CONNECT and in SOCKS5 (gRPC: test_grpc.py)."""

from __future__ import annotations

import pytest

from kubetunnel.proxy.refusals import CODES
from tests.contract.test_protocols import H2C
from tests.contract.test_refusals import LIMIT_S, limit_s, refused
from tests.proxy.loopback import connect, received, rest, socks5_request
from tests.tunnel import Tunnel, curl

# host, port, reason, HTTP status, SOCKS5 reply
ROWS = [
    ("www.example.com", 80, "NotAServiceName", 400, 4),
    ("nothere.demo.svc.cluster.local", 80, "ServiceNotFound", 404, 4),
    ("echo.nowhere.svc.cluster.local", 80, "NamespaceNotFound", 404, 4),
    ("echo.demo.svc.cluster.local", 81, "PortNotExposed", 404, 5),
    ("unready.demo.svc.cluster.local", 80, "NoReadyEndpoints", 503, 1),
    ("zero.demo.svc.cluster.local", 80, "NoReadyEndpoints", 503, 1),
    ("external.demo.svc.cluster.local", 80, "NotForwardable", 501, 2),
]
# what a runtime tells only after it took the stream, and so perhaps after our yes to CONNECT and SOCKS5
LATE_ROWS = [
    ("echo.demo.svc.cluster.local", 9999, "ConnectionRefused", 502),
    ("echo.demo.svc.cluster.local", 9002, "UpstreamReset", 502),
]
STATUSES = [row[:4] for row in ROWS]

TRIES = 10
CURLE_PROXY = 97  # curl's exit code for a handshake that the proxy refused


def socks5_reply(tunnel: Tunnel, host: str, port: int) -> int:
    """The code; nothing may follow one that is no success."""
    with connect(tunnel.port) as client:
        client.settimeout(LIMIT_S)
        client.sendall(b"\x05\x01\x00" + socks5_request(host, port))
        assert received(client, 2) == b"\x05\x00"
        answer = received(client, 10)
        assert (len(answer), answer[0], answer[2:]) == (10, 5, b"\x00\x01" + bytes(6))
        assert answer[1] == 0 or rest(client) == b""
        return answer[1]


@pytest.mark.parametrize(("host", "port", "reason", "status"), [*STATUSES, *LATE_ROWS])
def test_http2(tunnel: Tunnel, host: str, port: int, reason: str, status: int) -> None:
    answer = tunnel.get(f"{host}:{port}", "/", H2C, timeout_s=limit_s(reason))
    assert answer.http_version == "2"
    assert refused(answer) == (reason, status)
    assert answer.json["command"].startswith("kubectl ")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(("host", "port", "reason", "status"), [*STATUSES, *LATE_ROWS])
def test_tls(tunnel: Tunnel, host: str, port: int, reason: str, status: int, version: str) -> None:
    """The certificate is for the name that was asked for, also where there is no such Service."""
    at = f"::127.0.0.1:{tunnel.port}"
    url = f"https://{host}:{port}/"
    answer = curl("--connect-to", at, "--cacert", f"{tunnel.confdir}/mitmproxy-ca-cert.pem", version, url, timeout_s=8)
    assert refused(answer) == (reason, status)


@pytest.mark.parametrize(("host", "port", "reason", "status"), STATUSES)
def test_connect(tunnel: Tunnel, host: str, port: int, reason: str, status: int) -> None:
    answer = tunnel.via_proxy(f"http://{host}:{port}/", "-p", "-i", timeout_s=LIMIT_S)
    assert answer.connect_status == status
    with connect(tunnel.port) as client:
        client.settimeout(LIMIT_S)
        client.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += received(client, 1)
    assert f"x-kube-tunnel-error: {reason.lower()}".encode() in head.lower()


@pytest.mark.parametrize("tunnelling", ["connect", "socks5"])
@pytest.mark.parametrize(("host", "port", "reason", "status"), LATE_ROWS)
def test_http_through_a_tunnel_to_a_refused_port(
    tunnel: Tunnel, host: str, port: int, reason: str, status: int, tunnelling: str
) -> None:
    """Refused when it is opened, or later, in the answer to the request."""
    way = ("-p", "-x", tunnel.url) if tunnelling == "connect" else ("--socks5-hostname", f"127.0.0.1:{tunnel.port}")
    answer = curl(*way, f"http://{host}:{port}/", timeout_s=limit_s(reason))
    if answer.exit_code == 0:
        assert refused(answer) == (reason, status)
    elif tunnelling == "connect":
        assert answer.connect_status == status
    else:
        assert answer.exit_code == CURLE_PROXY, answer.stderr


def test_a_refused_port_is_told_when_it_is_opened(tunnel: Tunnel) -> None:
    """A runtime that is late may be taken for one that has connected, now and then."""
    name, port = "echo.demo.svc.cluster.local", 9999
    assert max(socks5_reply(tunnel, name, port) for _ in range(TRIES)) == CODES["ConnectionRefused"].socks5
    answers = [tunnel.via_proxy(f"http://{name}:{port}/", "-p", timeout_s=LIMIT_S) for _ in range(TRIES)]
    assert CODES["ConnectionRefused"].http in {answer.connect_status for answer in answers}


@pytest.mark.parametrize(("host", "port", "reply"), [(row[0], row[1], row[4]) for row in ROWS])
def test_socks5(tunnel: Tunnel, host: str, port: int, reply: int) -> None:
    assert socks5_reply(tunnel, host, port) == reply


def test_the_limited_user(limited_tunnel: Tunnel) -> None:
    assert socks5_reply(limited_tunnel, "echo.demo", 7) == 2
    assert limited_tunnel.via_proxy("http://echo.demo/", "-p", timeout_s=LIMIT_S).connect_status == 502
    assert refused(limited_tunnel.get("echo.demo", "/", H2C, timeout_s=LIMIT_S)) == ("Forbidden", 502)


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\x03", b"SSH-2.0-OpenSSH_9\r\n"])
def test_raw_bytes_to_nowhere_are_reset(tunnel: Tunnel, sent: bytes) -> None:
    with connect(tunnel.port) as client:
        client.settimeout(LIMIT_S)
        client.sendall(sent)
        with pytest.raises(ConnectionResetError):
            rest(client)


def test_an_ip_address_that_is_nobodys(tunnel: Tunnel) -> None:
    with connect(tunnel.port) as client:
        client.settimeout(LIMIT_S)
        client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x0a\x08\x00\x02\x00\x50")
        assert received(client, 12) == b"\x05\x00\x05\x04\x00\x01" + bytes(6)
