"""Refusals against the table of the contract."""

from __future__ import annotations

import json

import pytest
from mitmproxy import http

from kubetunnel.core import errors
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.explained import explain
from kubetunnel.proxy.refusals import CODES, refusal

CONTRACT = [
    ("NotAServiceName", 400, 3, 4),
    ("ServiceNotFound", 404, 5, 4),
    ("NamespaceNotFound", 404, 5, 4),
    ("PortNotExposed", 404, 5, 5),
    ("NoReadyEndpoints", 503, 14, 1),
    ("NotForwardable", 501, 12, 2),
    ("Forbidden", 502, 7, 2),
    ("Unauthenticated", 502, 16, 2),
    ("ClusterUnreachable", 502, 14, 3),
    ("ConnectionRefused", 502, 14, 5),
    ("UpstreamReset", 502, 14, None),
    ("UpstreamProtocol", 502, 14, None),
    ("Timeout", 504, 4, 6),
]


def request(http2: bool = False, **headers: str) -> http.Request:
    made = http.Request.make("POST", "http://api.shop/", headers={k.replace("_", "-"): v for k, v in headers.items()})
    made.http_version = "HTTP/2.0" if http2 else "HTTP/1.1"
    return made


def test_the_table_has_no_other_reasons() -> None:
    assert set(CODES) == {row[0] for row in CONTRACT}


def test_every_error_has_a_reason_of_the_table() -> None:
    def below(cls: type[KubeTunnelError]) -> list[type[KubeTunnelError]]:
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    floors = ("kubetunnel.core.", "kubetunnel.cluster.", "kubetunnel.forward.", "kubetunnel.proxy.")
    # others are for the terminal and the log
    for cls in (each for each in below(KubeTunnelError)[1:] if each.__module__.startswith(floors)):
        assert cls("x").reason in CODES, cls


def test_a_subclass_keeps_the_reason_of_its_parent() -> None:
    assert errors.KubeconfigError("x").reason == "ClusterUnreachable"


@pytest.mark.parametrize(("reason", "status", "grpc", "socks5"), CONTRACT)
def test_each_row(reason: str, status: int, grpc: int, socks5: int | None) -> None:
    error = getattr(errors, reason)("Wanted a, found b.", command="kubectl get svc")
    answer = refusal(error, request())
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-kube-tunnel-error"] == reason
    problem = json.loads(answer.content or b"")
    assert problem["detail"] == "Wanted a, found b."
    assert problem["command"] == "kubectl get svc"
    assert (problem["reason"], problem["status"], problem["title"]) == (reason, status, error.title)
    trailers_only = refusal(error, request(http2=True, content_type="application/grpc+proto"))
    assert trailers_only.status_code == 200
    assert trailers_only.headers["grpc-status"] == str(grpc)
    assert trailers_only.content == b""
    assert CODES[reason].socks5 == socks5


def test_a_grpc_message_is_percent_encoded() -> None:
    answer = refusal(errors.Timeout("50 % of «api»"), request(http2=True, content_type="application/grpc"))
    assert answer.headers["grpc-message"] == "50 %25 of %C2%ABapi%C2%BB"


@pytest.mark.parametrize("http2", [False, True])
def test_grpc_web_is_http(http2: bool) -> None:
    answer = refusal(errors.Timeout("late"), request(http2, content_type="application/grpc-web+proto"))
    assert answer.status_code == 504


def test_the_answer_to_head_has_no_body() -> None:
    head = request()
    head.method = "HEAD"
    assert refusal(errors.Timeout("late"), head).content == b""


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (errors.ConnectionRefused("x"), "kubectl --context a -n shop get pod api-0 -o wide"),
        (errors.UpstreamReset("x"), "kubectl --context a -n shop logs api-0 --all-containers --tail=20"),
        (errors.UpstreamProtocol("x"), "kubectl --context a -n shop logs api-0 --all-containers --tail=20"),
        (errors.Timeout("x"), "kubectl --context a -n shop logs api-0 --all-containers --tail=20"),
        (errors.Timeout("x", command="another"), "another"),
        (errors.UpstreamReset("x", command="kubectl -n shop get pod x"), "kubectl --context a -n shop get pod x"),
        (errors.UpstreamReset("x", command="kubectl --context a get pod"), "kubectl --context a get pod"),
        (errors.ClusterUnreachable("x"), None),
    ],
)
def test_a_failure_of_a_pod_is_explained(error: KubeTunnelError, command: str | None) -> None:
    explain(error, kubectl="kubectl --context a", namespace="shop", pod="api-0")
    assert error.command == command
