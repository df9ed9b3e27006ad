"""A request by name reaches a pod: HTTP/1.1 by Host header and as a proxy request."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.conftest import ClusterUnderTest
from tests.tunnel import Tunnel, curl

MIB = 1 << 20


def pattern(length: int) -> bytes:
    """The bytes that the pods' /bytes sends."""
    period = bytes(i * 31 % 251 for i in range(251))
    return (period * (length // 251 + 1))[:length]


@pytest.mark.parametrize(
    "host",
    [
        "echo.demo.svc.cluster.local",
        "echo.demo.svc.cluster.local.",
        "ECHO.Demo.SVC.Cluster.Local",
        "echo.demo.svc.cluster.local:80",
        "echo.demo.svc",
        "echo.demo",
        "echo",
    ],
)
def test_each_form_of_the_name_reaches_the_service(tunnel: Tunnel, host: str) -> None:
    answer = tunnel.get(host)
    assert (answer.status, answer.reason) == (200, None)
    assert answer.text.startswith("echo-")


def test_new_connections_go_to_both_pods(tunnel: Tunnel) -> None:
    # at the same time: one by one, a stream left over from another case would send all to the other pod
    with ThreadPoolExecutor(12) as executor:
        answers = list(executor.map(lambda _: tunnel.get("echo.demo", "/delay?ms=500"), range(12)))
    assert len({answer.json["pod"] for answer in answers}) == 2


def test_the_same_name_in_another_namespace_is_another_service(tunnel: Tunnel) -> None:
    assert tunnel.get("echo.other.svc.cluster.local").text == "echo\n"


@pytest.mark.parametrize("pod", ["echo-sts-0", "echo-sts-1"])
def test_a_pod_of_a_headless_service_by_its_name(tunnel: Tunnel, pod: str) -> None:
    url = f"http://{pod}.echo-sts.demo.svc.cluster.local:8080/hostname"
    assert tunnel.via_proxy(url).text == f"{pod}\n"


def test_a_pod_by_its_address(tunnel: Tunnel, cluster: ClusterUnderTest) -> None:
    from kubernetes import client, config

    with config.new_client_from_config(str(cluster.kubeconfig)) as api:
        address = client.CoreV1Api(api).read_namespaced_pod("pair", "demo").status.pod_ip
        api.rest_client.pool_manager.clear()
    name = address.replace(".", "-").replace(":", "-")
    assert tunnel.get(f"{name}.demo.pod.cluster.local:8080").text == "pair\n"


def test_a_named_target_port_of_the_second_container(tunnel: Tunnel) -> None:
    assert tunnel.get("pair.demo").text == "pair\n"


def test_without_a_port_the_one_that_fits_the_scheme_is_taken(tunnel: Tunnel) -> None:
    answer = tunnel.get("echo-sts.demo")  # has 8080 (http) and 9000 (tcp), no 80
    assert answer.status == 200
    assert answer.text.startswith("echo-sts-")


def test_the_request_arrives_as_it_was_sent(tunnel: Tunnel) -> None:
    answer = tunnel.get("echo.demo", "/a/b?x=1&x=2", "-X", "PUT", "-H", "X-Mine: yes", "--data-binary", "body")
    seen = answer.json
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == ("PUT", "/a/b", "x=1&x=2", "body")
    assert seen["host"] == "echo.demo"
    assert seen["headers"]["X-Mine"] == ["yes"]


def test_a_proxy_request_arrives_in_origin_form(tunnel: Tunnel) -> None:
    seen = tunnel.via_proxy("http://echo.demo.svc.cluster.local/a?x=1").json
    assert (seen["path"], seen["query"], seen["host"]) == ("/a", "x=1", "echo.demo.svc.cluster.local")


def test_a_client_connection_is_kept_alive(tunnel: Tunnel) -> None:
    url = f"{tunnel.url}/hostname"
    answer = curl("-H", "Host: echo.demo", url, "--next", "--silent", "-H", "Host: echo.demo", url)
    names = answer.text.split()
    assert len(names) == 2
    assert names[0] == names[1], "one client connection keeps its upstream"


def test_100_mib_down_arrive_whole(tunnel: Tunnel, tmp_path: Path) -> None:
    body = tmp_path / "body"
    answer = tunnel.get("echo.demo", "/bytes?n=100m", "--output", str(body))
    assert answer.status == 200
    wanted = hashlib.sha256(pattern(100 * MIB)).hexdigest()
    assert hashlib.sha256(body.read_bytes()).hexdigest() == wanted


def test_100_mib_up_arrive_whole(tunnel: Tunnel, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(pattern(100 * MIB))
    answer = tunnel.get("echo.demo", "/upload", "-T", str(body))
    assert answer.json["bytes"] == 100 * MIB
    assert answer.json["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()


def test_chunked_up_and_down(tunnel: Tunnel) -> None:
    sent = pattern(3 * MIB)
    up = curl("-H", "Host: echo.demo", "-T", "-", f"{tunnel.url}/upload", stdin=sent)
    assert up.json["sha256"] == hashlib.sha256(sent).hexdigest()
    assert tunnel.get("echo.demo", "/bytes?n=3m&chunked=1").body == sent


def test_a_streamed_body_comes_as_it_is_sent(tunnel: Tunnel) -> None:
    answer = tunnel.get("echo.demo", "/stream?n=5&ms=200")
    assert len(answer.text.splitlines()) == 5
    assert answer.total_s - answer.first_byte_s > 0.5, "the first line waited for the last"


def test_a_body_that_is_cut_short_is_an_error_for_the_client(tunnel: Tunnel) -> None:
    short = tunnel.get("echo.demo", "/abort")  # short enough to be held until it is whole
    assert (short.status, short.reason) == (502, "UpstreamReset")


@pytest.mark.parametrize("code", [201, 404, 500, 503])
def test_the_pods_own_status_passes(tunnel: Tunnel, code: int) -> None:
    answer = tunnel.get("echo.demo", f"/status?code={code}")
    assert (answer.status, answer.reason) == (code, None)
