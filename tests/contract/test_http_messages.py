"""HTTP messages pass as they are and when they come; what pods of the demo cannot do is in tests/proxy."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from pathlib import Path

import pytest

from tests.contract.test_protocols import H2C
from tests.proxy.loopback import connect, received, rest
from tests.tunnel import Tunnel

VERSIONS = pytest.mark.parametrize("version", ["--http1.1", H2C])
FIRST_BYTE_S = 0.6  # on a busy machine; bench/ measures it


@VERSIONS
def test_head(tunnel: Tunnel, version: str) -> None:
    answer = tunnel.get("echo.demo", "/bytes?n=5000", "--head", version)
    assert (answer.status, answer.headers["content-length"]) == (200, "5000")
    assert b"\x00" not in answer.body, "the head alone"
    assert tunnel.get("echo.demo", "/bytes?n=5000", version).body[1:2] == bytes([31])


@VERSIONS
@pytest.mark.parametrize("code", [204, 304])
def test_answers_without_a_body(tunnel: Tunnel, version: str, code: int) -> None:
    answer = tunnel.get("echo.demo", f"/status?code={code}", version)
    assert (answer.status, answer.body, answer.exit_code) == (code, b"", 0)


def test_connection_close_of_the_client(tunnel: Tunnel) -> None:
    with connect(tunnel.port) as client:
        client.sendall(b"GET /hostname HTTP/1.1\r\nHost: echo.demo\r\nConnection: close\r\n\r\n")
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.rpartition(b"\r\n\r\n")[2].startswith(b"echo-")


def test_http_1_0_ends_with_the_connection(tunnel: Tunnel) -> None:
    answer = tunnel.get("echo.demo", "/stream?n=3&ms=1", "--http1.0")
    assert len(answer.text.splitlines()) == 3


@pytest.mark.parametrize("finishes", [False, True])
def test_pipelined_requests_are_answered_in_order(tunnel: Tunnel, finishes: bool) -> None:
    requests = [
        f"GET /{'delay?ms=300' if n == 0 else 'a'}{'&' if n == 0 else '?'}n={n} HTTP/1.1\r\nHost: echo.demo\r\n\r\n"
        for n in range(4)
    ]
    ends = "" if finishes else "Connection: close\r\n"
    last = f"GET /hostname HTTP/1.1\r\nHost: echo.demo\r\n{ends}\r\n"
    with connect(tunnel.port) as client:
        client.sendall("".join([*requests, last]).encode())
        if finishes:
            client.shutdown(socket.SHUT_WR)
        answer = rest(client)
    assert re.findall(rb'"query":"[^"]*n=(\d)"', answer) == [b"0", b"1", b"2", b"3"]
    assert answer.count(b"HTTP/1.1 200") == 5


def test_a_pod_invites_the_body(tunnel: Tunnel) -> None:
    """`Expect: 100-continue`: the client sends nothing of the body before."""
    head = b"PUT /upload HTTP/1.1\r\nHost: echo.demo\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with connect(tunnel.port) as client:
        client.sendall(head)
        assert received(client, 12) == b"HTTP/1.1 100"
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += received(client, 1)
        client.sendall(b"hello")
        assert received(client, 12) == b"HTTP/1.1 200"


def first_bytes_after(client: socket.socket, request: str, until: bytes) -> tuple[float, float]:
    """Seconds to the first occurrence of `until` and to the end."""
    started = time.monotonic()
    client.sendall(request.encode())
    data = b""
    while until not in data:
        data += client.recv(1 << 16)
    first_s = time.monotonic() - started
    rest(client)
    return first_s, time.monotonic() - started


@pytest.mark.parametrize(("path", "until"), [("/sse?n=3&ms=1000", b"data: "), ("/stream?n=3&ms=1000", b"0 echo-")])
def test_a_slow_stream_comes_as_it_is_sent(tunnel: Tunnel, path: str, until: bytes) -> None:
    with connect(tunnel.port) as client:
        request = f"GET {path} HTTP/1.1\r\nHost: echo.demo\r\nConnection: close\r\n\r\n"
        first_s, total_s = first_bytes_after(client, request, until)
    assert first_s < FIRST_BYTE_S
    assert total_s > 2


@VERSIONS
def test_a_large_body_that_is_cut_short(tunnel: Tunnel, version: str) -> None:
    answer = tunnel.get("echo.demo", "/abort", version)
    assert answer.exit_code != 0 or answer.reason == "UpstreamReset"


def test_a_client_that_has_finished_sending_gets_its_answer(tunnel: Tunnel) -> None:
    with socket.create_connection(("127.0.0.1", tunnel.port), 10) as client:
        client.sendall(b"GET /delay?ms=300 HTTP/1.1\r\nHost: echo.demo\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"path":"/delay"' in answer.replace(b" ", b"")


CALLS_AS_HTTP = pytest.mark.parametrize(
    "content_type",
    ["application/grpc-web+proto", "application/grpc-web-text", "application/connect+proto", "application/proto"],
)


@VERSIONS
@CALLS_AS_HTTP
def test_grpc_web_and_connect_pass_as_http(tunnel: Tunnel, tmp_path: Path, version: str, content_type: str) -> None:
    message = b"\x00\x00\x00\x00\x04\x0a\x02hi\x80\x00\xff"
    (tmp_path / "message").write_bytes(message)
    fields = ["-H", f"Content-Type: {content_type}", "-H", "Connect-Protocol-Version: 1", "-H", "X-Grpc-Web: 1"]
    answer = tunnel.get("echo.demo", "/s.v1.S/Call", version, *fields, "--data-binary", f"@{tmp_path / 'message'}")
    seen = answer.json
    assert seen["body_sha256"] == hashlib.sha256(message).hexdigest()
    assert (seen["method"], seen["path"]) == ("POST", "/s.v1.S/Call")
    assert seen["headers"]["Content-Type"] == [content_type]
    assert seen["headers"]["Connect-Protocol-Version"] == seen["headers"]["X-Grpc-Web"] == ["1"]


@VERSIONS
@CALLS_AS_HTTP
def test_grpc_web_and_connect_are_refused_as_http(tunnel: Tunnel, version: str, content_type: str) -> None:
    answer = tunnel.get("nothere.demo", "/s.v1.S/Call", version, "-H", f"Content-Type: {content_type}", "-d", "x")
    assert (answer.status, answer.reason) == (404, "ServiceNotFound")
    assert answer.json["reason"] == "ServiceNotFound"
