"""Requests for the tunnel itself through the HTTP layer, without I/O: no flow, no upstream."""

from __future__ import annotations

from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.proxy.context import Context

from kubetunnel.proxy.http.own import MAX_BODY_BYTES, OwnExchange
from tests.proxy.http_playbook import Playbook

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKS = [b"a", b"bc", None]


def is_own(context: Context, request: http.Request) -> bool:
    return request.host_header == "localhost"


class Answering:
    """The hooks."""

    def __init__(self, *chunks: bytes | None) -> None:
        self.exchanges: list[OwnExchange] = []
        self.chunks = list(chunks)

    def request(self, hook: Any) -> None:
        self.exchanges.append(hook)
        hook.response = http.Response.make(200, b"" if self.chunks else b"fine", {"X-Own": "1"})
        if self.chunks:
            hook.goes_on = True
            del hook.response.headers["content-length"]

    def chunk(self, hook: Any) -> None:
        hook.chunk = self.chunks.pop(0)


def playbook(answering: Answering, **arguments: Any) -> Playbook:
    book = Playbook(kube_own_request=answering.request, kube_own_chunk=answering.chunk, **arguments)
    book.layer._is_own = is_own
    return book


def test_an_own_request_is_no_flow_and_opens_nothing() -> None:
    answering = Answering()
    book = playbook(answering)
    book.from_client(GET)
    assert book.to_client() == b"HTTP/1.1 200 OK\r\nX-Own: 1\r\ncontent-length: 4\r\n\r\nfine"
    assert book.flows == []
    assert book.upstreams == []
    assert book.hook_names == ["kube_own_request"]


def test_a_connection_serves_the_tunnel_and_a_service_in_turn() -> None:
    answering = Answering()
    book = playbook(answering)
    book.from_client(GET)
    book.to_client()
    book.from_client(GET.replace(b"localhost", b"api.shop"))
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\npod")
    assert book.to_client().endswith(b"pod")
    book.from_client(GET)
    assert book.to_client().endswith(b"fine")
    assert [flow.request.host_header for flow in book.flows] == ["api.shop"]


def test_a_body_that_goes_on() -> None:
    book = playbook(Answering(*CHUNKS))
    book.from_client(GET)
    assert book.to_client().endswith(b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")


def test_head_has_no_body() -> None:
    book = playbook(Answering())
    book.from_client(GET.replace(b"GET", b"HEAD"))
    assert book.to_client().endswith(b"content-length: 4\r\n\r\n")


@pytest.mark.parametrize("size", [10, MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_bodies_of_requests(size: int) -> None:
    answering = Answering()
    book = playbook(answering)
    book.from_client(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    (exchange,) = answering.exchanges
    assert exchange.is_too_large == (size > MAX_BODY_BYTES)
    assert len(exchange.request.content or b"") == (0 if exchange.is_too_large else size)


def test_expect_is_answered_by_continue() -> None:
    answering = Answering()
    book = playbook(answering)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    book.from_client(head)
    assert book.to_client() == b"HTTP/1.1 100 Continue\r\n\r\n"
    book.from_client(b"{}")
    assert book.to_client().endswith(b"fine")


def test_a_client_that_leaves_is_told_at_once() -> None:
    told: list[bool] = []

    class Waiting(Answering):
        def chunk(self, hook: Any) -> None:
            hook.on_change.append(lambda: told.append(hook.has_left))
            book.client_closes()
            hook.chunk = self.chunks.pop(0)

    answering = Waiting(b"nobody reads this")
    book = playbook(answering)
    book.from_client(GET)
    assert told == [True]
    assert b"nobody" not in book.to_client()
