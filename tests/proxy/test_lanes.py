"""Which upstreams share a connection to the API server, and when one is left for another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.connection import Server

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.explained import explain
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.policy import IDLE_TIMEOUT_S, HttpPolicy
from kubetunnel.proxy.http.request import MAX_SMALL_BYTES
from tests.proxy.http_playbook import Playbook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"


class Forwarded(asyncio.Transport):
    """A port-forward stream that may have bad neighbours."""

    crowded = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.crowded if name == "crowded" else default


class Opener:
    """What opens upstreams: it asks whether each may share, and tells of its stream."""

    def __init__(self, **options: Any) -> None:
        self.lanes = Lanes()
        self.shared: list[bool] = []
        self.transports: list[Forwarded] = []
        self.book = Playbook(lanes=self.lanes, requestheaders=self.stream, open_at_once=False, **options)

    @staticmethod
    def stream(flow: http.HTTPFlow) -> None:
        flow.request.stream = "x-stream" in flow.request.headers

    def ask(self, request: bytes) -> None:
        self.book.from_client(request)
        self.open()

    def open(self) -> None:
        while self.book.opening:
            server = self.book.opening[0].connection
            assert isinstance(server, Server)
            self.shared.append(self.lanes.is_shared(server))
            self.transports.append(Forwarded())
            self.lanes.opened(server, self.transports[-1], self.explain)
            self.book.opened()

    @staticmethod
    def explain(error: KubeTunnelError) -> None:
        explain(error, kubectl="kubectl --context prod", namespace="shop", pod="api-0")


def head(length: int | None, *fields: bytes) -> bytes:
    body = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"\r\n".join([b"PUT / HTTP/1.1", b"Host: api.shop", body, *fields, b"", b""])


@pytest.mark.parametrize(
    ("request_head", "shared"),
    [
        (GET, True),
        (head(0), True),
        (head(10) + bytes(10), True),
        (head(MAX_SMALL_BYTES, b"X-Stream: 1"), True),
        (head(MAX_SMALL_BYTES + 1, b"X-Stream: 1"), False),
        (head(MAX_SMALL_BYTES + 1) + bytes(MAX_SMALL_BYTES + 1), False),
        (head(None, b"X-Stream: 1"), False),
        (head(None) + b"1\r\nx\r\n0\r\n\r\n", True),  # held back until whole
        (GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", False),
    ],
)
def test_small_requests_may_share(request_head: bytes, shared: bool) -> None:
    opener = Opener()
    opener.ask(request_head)
    assert opener.shared == [shared]


def test_what_may_be_http2_does_not_share() -> None:
    """Its upstream carries all that follows, be it bulk."""
    opener = Opener(h2_client=True, h2_upstream=True)
    opener.book.h2_client().request()
    opener.open()
    assert opener.shared == [False]


def test_an_http2_client_of_an_http1_pod_shares_once_that_is_known() -> None:
    opener = Opener(h2_client=True)
    peer = opener.book.h2_client()
    for _ in range(3):
        peer.request()
    opener.open()
    assert opener.shared == [False, True, True]


def test_a_large_request_gets_an_upstream_of_its_own() -> None:
    opener = Opener()
    opener.ask(GET)
    opener.book.from_upstream(OK)
    opener.ask(head(MAX_SMALL_BYTES + 1) + bytes(MAX_SMALL_BYTES + 1))
    assert opener.shared == [True, False]
    opener.book.from_upstream(OK)
    opener.ask(GET)  # which may go on either
    opener.book.from_upstream(OK)
    opener.ask(head(MAX_SMALL_BYTES + 1) + bytes(MAX_SMALL_BYTES + 1))
    assert len(opener.shared) == 2
    assert not opener.book.closed


def test_at_the_bound_a_large_request_takes_the_place_of_an_idle_one() -> None:
    opener = Opener(policy=HttpPolicy(max_upstreams=1))
    opener.ask(GET)
    opener.book.from_upstream(OK)
    opener.ask(head(MAX_SMALL_BYTES + 1) + bytes(MAX_SMALL_BYTES + 1))
    assert opener.shared == [True, False]
    assert opener.book.closed == opener.book.upstreams[:1]


def test_a_crowded_upstream_is_left_at_the_next_request() -> None:
    opener = Opener()
    opener.ask(GET)
    opener.transports[0].crowded = True
    opener.book.from_upstream(OK)
    assert opener.book.to_client() == OK, "it is not cut off"
    assert not opener.book.closed
    opener.ask(GET)
    assert opener.book.closed == opener.book.upstreams[:1]
    assert opener.book.to_upstream(1) == GET


def test_an_idle_upstream_is_closed_after_a_while() -> None:
    opener = Opener()
    opener.ask(GET)
    opener.book.pass_time(10 * IDLE_TIMEOUT_S)
    opener.book.from_upstream(OK)
    assert not opener.book.closed, "it was at work"
    opener.book.pass_time(IDLE_TIMEOUT_S - 1)
    opener.ask(GET)
    opener.book.from_upstream(OK)
    opener.book.pass_time(IDLE_TIMEOUT_S - 1)
    assert not opener.book.closed
    opener.book.pass_time(1)
    assert opener.book.closed == opener.book.upstreams
    assert not opener.book.wakeups
    opener.ask(GET)
    assert len(opener.book.upstreams) == 2


def test_a_failure_of_a_pod_comes_with_the_command_that_shows_it() -> None:
    opener = Opener()
    opener.ask(b"POST / HTTP/1.1\r\nHost: api.shop\r\nContent-Length: 0\r\n\r\n")
    opener.lanes.closed(opener.book.upstreams[0])
    opener.book.upstream_closes()
    command = b'"command": "kubectl --context prod -n shop logs api-0 --all-containers --tail=20"'
    assert command in opener.book.to_client()
