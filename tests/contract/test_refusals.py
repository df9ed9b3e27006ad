"""What a client is told when it fails: reason, status and a detail that helps, within 2 s."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.contract.conftest import ClusterUnderTest
from tests.proxy.loopback import connect
from tests.tunnel import WRITE_OUT, Answer, Tunnel, curl

LIMIT_S = 2.0
LATE_LIMIT_S = 8.0  # a GET is tried three times, and each time the runtime tells of a reset up to a second late


def limit_s(reason: str) -> float:
    """How long a refusal may take."""
    return LATE_LIMIT_S if reason == "UpstreamReset" else LIMIT_S


def refused(answer: Answer) -> tuple[str | None, int]:
    assert answer.exit_code == 0, answer.stderr
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) >= {"title", "detail", "reason", "status"}
    assert problem["reason"] == answer.reason
    assert problem["status"] == answer.status
    return answer.reason, answer.status


@pytest.mark.parametrize(
    ("host", "reason", "status", "told"),
    [
        ("www.example.com", "NotAServiceName", 400, "cluster.local"),
        ("echo.demo.svc.evil.com", "NotAServiceName", 400, "cluster.local"),
        ("-x-.demo.svc.cluster.local", "NotAServiceName", 400, "-x-"),
        ("_http._tcp.echo.demo.svc.cluster.local", "NotAServiceName", 400, "SRV"),
        ("nothere.demo.svc.cluster.local", "ServiceNotFound", 404, "nothere"),
        ("echo.nowhere.svc.cluster.local", "NamespaceNotFound", 404, "nowhere"),
        ("echo-sts-7.echo-sts.demo.svc.cluster.local:8080", "ServiceNotFound", 404, "echo-sts-0"),
        ("echo.demo.svc.cluster.local:81", "PortNotExposed", 404, "80 (http), 443 (https)"),
        ("unready.demo.svc.cluster.local", "NoReadyEndpoints", 503, "1"),
        ("zero.demo.svc.cluster.local", "NoReadyEndpoints", 503, "zero"),
        ("noselector.demo.svc.cluster.local", "NoReadyEndpoints", 503, "noselector"),
        ("external.demo.svc.cluster.local", "NotForwardable", 501, "example.invalid"),
        ("echo.demo.svc.cluster.local:9999", "ConnectionRefused", 502, "9999"),
        ("echo.demo.svc.cluster.local:9002", "UpstreamReset", 502, "9002"),
    ],
)
def test_each_reason(tunnel: Tunnel, host: str, reason: str, status: int, told: str) -> None:
    answer = tunnel.get(host, timeout_s=limit_s(reason))
    assert refused(answer) == (reason, status)
    assert told in answer.json["detail"]


def test_a_port_that_does_not_speak_http(tunnel: Tunnel) -> None:
    answer = tunnel.get("echo.demo:9001", timeout_s=LIMIT_S)  # greets with "220 ...", before any request
    assert refused(answer) in {("UpstreamProtocol", 502), ("UpstreamReset", 502)}


def test_without_a_host_there_is_no_service(tunnel: Tunnel) -> None:
    answer = tunnel.get("", "/", "--http1.0", timeout_s=LIMIT_S)
    assert refused(answer) == ("NotAServiceName", 400)
    assert "Host" in answer.json["detail"]


def test_a_proxy_request_is_refused_the_same(tunnel: Tunnel) -> None:
    answer = tunnel.via_proxy("http://nothere.demo.svc.cluster.local/", timeout_s=LIMIT_S)
    assert refused(answer) == ("ServiceNotFound", 404)
    assert answer.json["command"].startswith("kubectl ")


def test_an_upload_is_refused_without_waiting_for_its_end(tunnel: Tunnel) -> None:
    answer = tunnel.get("nothere.demo", "/upload", "--data-binary", "@-", "-H", "Expect:", timeout_s=LIMIT_S)
    assert refused(answer) == ("ServiceNotFound", 404)
    again = tunnel.get("echo.demo", timeout_s=LIMIT_S)
    assert again.status == 200


def test_a_long_upload_is_refused(tunnel: Tunnel) -> None:
    answer = curl("-H", "Host: echo.demo:9999", "-T", "-", tunnel.url + "/upload", stdin=bytes(3 << 20), timeout_s=10)
    assert refused(answer) == ("ConnectionRefused", 502)


def test_a_head_request_is_refused_without_a_body(tunnel: Tunnel) -> None:
    answer = tunnel.get("nothere.demo", "/", "--head", timeout_s=LIMIT_S)
    assert (answer.status, answer.reason) == (404, "ServiceNotFound")


def test_a_refusal_leaves_the_client_connection_usable(tunnel: Tunnel) -> None:
    answer = curl(
        "-H", "Host: nothere.demo", "-o", "/dev/null", f"{tunnel.url}/",
        "--next", "--silent", "--write-out", WRITE_OUT, "-H", "Host: echo.demo", f"{tunnel.url}/hostname",
    )  # fmt: skip
    assert answer.text.startswith("echo-")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1 x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: echo.demo\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: echo.demo\r\nA b: c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: echo.demo\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST /upload HTTP/1.1\r\nHost: echo.demo\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: echo.demo\r\nX-Long: " + b"a" * (65 << 10) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a:b:c\r\n\r\n", 400),
    ],
    ids=["start-line", "length", "field-name", "two-framings", "chunk", "too-long", "host"],
)
def test_what_is_no_request(tunnel: Tunnel, request_: bytes, status: int) -> None:
    with connect(tunnel.port) as client:
        client.settimeout(LIMIT_S)
        client.sendall(request_)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        problem = json.loads(answer.read())
    assert (answer.status, problem["status"]) == (status, status)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Kube-Tunnel-Error"] == problem["reason"] == "NotAServiceName"
    assert problem["title"]
    assert problem["detail"]


def test_the_command_of_a_refusal_names_the_kubeconfig(tunnel: Tunnel, cluster: ClusterUnderTest) -> None:
    command = tunnel.get("www.example.com").json["command"]
    assert command == f"kubectl --kubeconfig {cluster.kubeconfig} get services --all-namespaces"


def test_the_limited_user_may_not_forward(limited_tunnel: Tunnel) -> None:
    answer = limited_tunnel.get("echo.demo", timeout_s=LIMIT_S)
    assert refused(answer) == ("Forbidden", 502)
    assert "create" in answer.json["detail"]
    assert "pods/portforward" in answer.json["detail"]
    assert "auth can-i create pods" in answer.json["command"]


def test_the_limited_user_may_not_read_another_namespace(limited_tunnel: Tunnel) -> None:
    answer = limited_tunnel.get("echo.other", timeout_s=LIMIT_S)
    assert refused(answer) == ("Forbidden", 502)
    assert "services" in answer.json["detail"]
    assert "auth can-i" in answer.json["command"]


def test_the_limited_user_still_learns_that_a_service_is_not_there(limited_tunnel: Tunnel) -> None:
    assert refused(limited_tunnel.get("nothere.demo", timeout_s=LIMIT_S)) == ("ServiceNotFound", 404)
