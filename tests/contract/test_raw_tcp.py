"""Raw TCP: into the cluster by SOCKS5 and by CONNECT."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.contract.test_requests import pattern
from tests.proxy.loopback import connect, received, rest, socks5, socks5_request
from tests.tunnel import Tunnel

NAME = "echo.demo.svc.cluster.local"

type Dial = Callable[[int, str, int], socket.socket]


def http_connect(proxy_port: int, host: str, port: int) -> socket.socket:
    """A connection through the proxy, after its 200."""
    connection = connect(proxy_port)
    connection.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += received(connection, 1)
    assert head.startswith(b"HTTP/1.1 200"), head
    return connection


DIALS = pytest.mark.parametrize("dial", [socks5, http_connect], ids=["socks5", "connect"])


@DIALS
def test_echo(tunnel: Tunnel, dial: Dial) -> None:
    with dial(tunnel.port, NAME, 7) as client:
        for message in (b"\x00\x01binary", b"GE", b"x" * 100_000):
            client.sendall(message)
            assert received(client, len(message)) == message


@DIALS
def test_the_server_speaks_first(tunnel: Tunnel, dial: Dial) -> None:
    with dial(tunnel.port, NAME, 9001) as client:
        greeting = received(client, 8)
        assert greeting == b"220 echo"
        while received(client, 1) != b"\n":
            pass
        client.sendall(b"EHLO\r\n")
        assert received(client, 6) == b"EHLO\r\n"


@DIALS
def test_bulk_both_ways_at_once(tunnel: Tunnel, dial: Dial) -> None:
    sent = pattern(16 << 20)
    with dial(tunnel.port, NAME, 7) as client:
        sending = threading.Thread(target=client.sendall, args=(sent,))
        sending.start()
        got = received(client, 1 << 18)
        while len(got) < len(sent) and (more := client.recv(1 << 20)):
            got += more
        sending.join()
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()


@DIALS
def test_a_pod_that_resets_resets_the_client(tunnel: Tunnel, dial: Dial) -> None:
    with dial(tunnel.port, NAME, 9002) as client:
        client.sendall(b"\x00anything")
        with pytest.raises(ConnectionResetError):
            rest(client)


def is_refused(client: socket.socket) -> bool:
    """Whether what was accepted is reset then: a runtime tells of a refused port only after it took the stream."""
    client.sendall(b"\x00anything")
    with pytest.raises(ConnectionResetError):
        rest(client)
    return True


def test_a_port_that_refuses_by_socks5(tunnel: Tunnel) -> None:
    with connect(tunnel.port) as client:
        client.sendall(b"\x05\x01\x00" + socks5_request(NAME, 9999))
        reply = received(client, 12)[3]
        assert reply == 5 or (reply == 0 and is_refused(client))


def test_a_port_that_refuses_by_connect(tunnel: Tunnel) -> None:
    with connect(tunnel.port) as client:
        client.sendall(f"CONNECT {NAME}:9999 HTTP/1.1\r\nHost: {NAME}:9999\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += received(client, 1)
        refused = head.startswith(b"HTTP/1.1 502") and b"X-Kube-Tunnel-Error: ConnectionRefused" in head
        assert refused or (head.startswith(b"HTTP/1.1 200") and is_refused(client))


@DIALS
def test_the_end_of_the_client_is_kept_from_the_pod(tunnel: Tunnel, dial: Dial) -> None:
    """A runtime would not pass it on but cut everything a second later: no answer comes, and nothing is cut."""
    with dial(tunnel.port, NAME, 9003) as client:
        client.sendall(b"\x00counted")
        client.shutdown(socket.SHUT_WR)
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            client.recv(1)


@DIALS
def test_what_the_pod_still_sends_arrives_after_a_half_close(tunnel: Tunnel, dial: Dial) -> None:
    with dial(tunnel.port, NAME, 9004) as client:
        client.sendall(b"\x00")
        client.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(received(client, 4 << 20)).digest() == hashlib.sha256(pattern(4 << 20)).digest()


@DIALS
def test_closing_one_connection_leaves_the_others(tunnel: Tunnel, dial: Dial) -> None:
    with dial(tunnel.port, NAME, 7) as staying:
        staying.sendall(b"\x00one")
        assert received(staying, 4) == b"\x00one"
        for _ in range(5):
            with dial(tunnel.port, NAME, 9004) as going:
                received(going, 1 << 16)
        staying.sendall(b"two")
        assert received(staying, 3) == b"two"


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 8, 20])
def test_a_handshake_cut_anywhere(tunnel: Tunnel, cut: int) -> None:
    handshake = b"\x05\x01\x00" + socks5_request(NAME, 7) + b"\x00data"
    with connect(tunnel.port) as client:
        client.sendall(handshake[:cut])
        time.sleep(0.05)  # so that both parts come on their own
        client.sendall(handshake[cut:])
        assert received(client, 12) == b"\x05\x00\x05\x00\x00\x01" + bytes(6)
        assert received(client, 5) == b"\x00data"
