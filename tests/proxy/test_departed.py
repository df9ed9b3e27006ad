"""Clients that have gone away, and those that only look so."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from mitmproxy.connection import Client

from kubetunnel.proxy.raw.departed import departed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' kernel")

LOOPBACK = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.fixture(params=LOOPBACK, ids=["IPv4", "IPv6"])
def connection(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, Client, socket.socket]]:
    family, host = request.param
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as near,
    ):
        accepted, peername = listening.accept()
        with accepted:
            yield near, Client(peername=peername[:2], sockname=accepted.getsockname()[:2]), accepted


def test_one_that_has_closed_has_departed(connection: tuple[socket.socket, Client, socket.socket]) -> None:
    near, client, accepted = connection
    assert departed([client]) == []
    near.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    assert departed([client]) == [], "it only sends no more"
    near.close()
    assert departed([client]) == [client]


def test_one_with_a_socket_for_both_families() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_INET6) as near:
        near.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        near.connect(("::ffff:127.0.0.1", listening.getsockname()[1]))
        accepted, peername = listening.accept()
        with accepted:
            client = Client(peername=peername, sockname=accepted.getsockname())
            assert departed([client]) == []
            near.close()
            assert departed([client]) == [client]


def test_nobody_asked_for_nobody_departed() -> None:
    assert departed([]) == []


def test_a_client_of_another_machine_is_not_known() -> None:
    assert departed([Client(peername=("192.0.2.1", 40000), sockname=("127.0.0.1", 8080))]) == []
