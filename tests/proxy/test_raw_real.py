"""A real mitmdump between plain sockets: what arrives, how it ends, what is shown of it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tunnel
from tests.proxy import loopback
from tests.proxy.loopback import connect, received, rest, socks5, socks5_request
from tests.tunnel import Tunnel, curl

MIB = 1 << 20


def echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def greet(connection: socket.socket) -> None:
    connection.sendall(b"220 hello\r\n")
    echo(connection)


def answer_at_the_end(connection: socket.socket) -> None:
    """Knows the whole request by its end alone."""
    connection.sendall(hashlib.sha256(rest(connection)).hexdigest().encode())


def finish_first(connection: socket.socket) -> None:
    """Sends, ends its own side, and reads on."""
    connection.sendall(b"that is all")
    connection.shutdown(socket.SHUT_WR)
    ENDED.append(rest(connection))
    ENDED_NOW.set()


def deaf(connection: socket.socket) -> None:
    """Takes no notice of its client's end, as behind a runtime that does not pass it on."""
    rest(connection)
    ENDED_NOW.set()
    READ_NOW.wait(loopback.TIMEOUT_S)


def stay(connection: socket.socket) -> None:
    """Never speaks; says how its client went away."""
    try:
        ENDED.append(rest(connection))
    except ConnectionResetError:
        ENDED.append(b"reset")
    ENDED_NOW.set()


def cut(connection: socket.socket) -> None:
    received(connection, 4)
    connection.sendall(b"so far")
    received(connection, 2)
    loopback.reset(connection)


def bulk(connection: socket.socket) -> None:
    """As many MiB as the client asks for."""
    block = bytes(range(256)) * (MIB // 256)
    for _ in range(int(received(connection, 4))):
        connection.sendall(block)


def swallow_slowly(connection: socket.socket) -> None:
    """Reads nothing before it is told to."""
    READ_NOW.wait(loopback.TIMEOUT_S)
    ENDED.append(str(len(rest(connection))).encode())
    ENDED_NOW.set()


def http_server(connection: socket.socket) -> None:
    while not connection.recv(1 << 16).endswith(b"\r\n\r\n"):
        pass
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


ENDED: list[bytes] = []
ENDED_NOW = threading.Event()
READ_NOW = threading.Event()

SERVERS: dict[str, loopback.Serve] = {
    "echo.shop": echo,
    "greet.shop": greet,
    "answer.shop": answer_at_the_end,
    "finish.shop": finish_first,
    "stay.shop": stay,
    "deaf.shop": deaf,
    "cut.shop": cut,
    "bulk.shop": bulk,
    "slow.shop": swallow_slowly,
    "web.shop": http_server,
}
REFUSED = {"absent.shop": "ServiceNotFound", "reset.shop": "UpstreamReset", "late.shop": "Timeout"}


@contextlib.contextmanager
def proxy_of(confdir: Path, *options: str, **env: str) -> Iterator[Tunnel]:
    with contextlib.ExitStack() as stack:
        names = {name: stack.enter_context(loopback.listener(serve)) for name, serve in SERVERS.items()}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tunnel, "ADDON", Path(__file__).parent / "raw_addon.py")
        proxy = stack.enter_context(
            Tunnel(
                confdir,
                options=["--mode", "regular", "--listen-host", "127.0.0.1", *options],
                env={"RAW_NAMES": json.dumps({**names, **REFUSED}), **env},
            )
        )
        yield proxy
        assert "Traceback" not in proxy.log, proxy.log
        assert "has crashed" not in proxy.log, proxy.log


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    # an idle timeout shorter than any silence here
    with proxy_of(tmp_path_factory.mktemp("conf"), "--set", "tcp_timeout=2", RAW_SILENCE_S="1.5") as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_ended(proxy: Tunnel) -> None:
    ENDED.clear()
    ENDED_NOW.clear()
    READ_NOW.clear()
    proxy.lines.clear()


def flow_of(proxy: Tunnel, client: int, event: str = "end") -> dict[str, Any]:
    """What was shown of the connection from this port."""
    facts: dict[str, Any] = json.loads(proxy.wait_for(rf'flow (\{{"event": "{event}", "client": {client}\b.*?\}})')[1])
    return facts


def port_of(client: socket.socket) -> int:
    port: int = client.getsockname()[1]
    return port


@pytest.mark.parametrize("data", [b"hello", b"PING\r\n", b"A", b"G", b"GET", b"\x05\x01\x00", b"\x00"])
def test_client_speaks_first(proxy: Tunnel, data: bytes) -> None:
    with socks5(proxy.port, "echo.shop") as client:
        client_port = port_of(client)
        client.sendall(data)
        assert received(client, len(data)) == data
        client.sendall(data * 1000)
        assert received(client, len(data) * 1000) == data * 1000
    facts = flow_of(proxy, client_port)
    assert facts["up_bytes"] == facts["down_bytes"] == len(data) * 1001
    assert facts["kept"] == len(data) * 2002


def test_server_speaks_first(proxy: Tunnel) -> None:
    with socks5(proxy.port, "greet.shop") as client:
        assert received(client, 11) == b"220 hello\r\n"
        client.sendall(b"HELO\r\n")
        assert received(client, 6) == b"HELO\r\n"


def test_all_in_one_packet_before_the_reply(proxy: Tunnel) -> None:
    with connect(proxy.port) as client:
        client.sendall(b"\x05\x01\x00" + socks5_request("echo.shop", 7) + b"early words")
        assert received(client, 12 + 11) == b"\x05\x00\x05\x00\x00\x01" + bytes(6) + b"early words"


def test_every_byte_by_itself(proxy: Tunnel) -> None:
    with connect(proxy.port) as client:
        for byte in b"\x05\x01\x00" + socks5_request("echo.shop", 7) + b"words":
            client.sendall(bytes([byte]))
        assert received(client, 12 + 5).endswith(b"words")


def test_large_both_ways_at_once(proxy: Tunnel) -> None:
    sent = os.urandom(MIB) * 32
    with socks5(proxy.port, "echo.shop") as client:
        client_port = port_of(client)
        sending = threading.Thread(target=client.sendall, args=(sent,))
        sending.start()
        assert hashlib.sha256(received(client, len(sent))).digest() == hashlib.sha256(sent).digest()
        sending.join()
    facts = flow_of(proxy, client_port)
    assert facts["up_bytes"] == facts["down_bytes"] == len(sent)
    assert facts["comment"] == "32.0m up, 32.0m down"
    assert facts["kept"] <= 2 << 16


@pytest.mark.parametrize("size", [0, 5, 3 * MIB])
def test_client_ends_its_side_first(proxy: Tunnel, size: int) -> None:
    """Half-close: the answer comes after the request's end."""
    sent = b"x" * size
    with socks5(proxy.port, "answer.shop") as client:
        client_port = port_of(client)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert rest(client) == hashlib.sha256(sent).hexdigest().encode()
    assert flow_of(proxy, client_port)["up_bytes"] == size


def test_server_ends_its_side_first(proxy: Tunnel) -> None:
    with socks5(proxy.port, "finish.shop") as client:
        assert rest(client) == b"that is all"
        client.sendall(b"but I have more")
        client.shutdown(socket.SHUT_WR)
        assert ENDED_NOW.wait(loopback.TIMEOUT_S)
    assert ENDED == [b"but I have more"]


def test_idle_connection_outlives_the_idle_timeout(proxy: Tunnel) -> None:
    with socks5(proxy.port, "echo.shop") as client:
        client.sendall(b"one")
        assert received(client, 3) == b"one"
        client.settimeout(3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(loopback.TIMEOUT_S)
        client.sendall(b"two")
        assert received(client, 3) == b"two"


def test_client_that_has_gone_away_is_not_waited_for(proxy: Tunnel) -> None:
    """Not every upstream passes its end on, and the pod has nothing to say."""
    with socks5(proxy.port, "deaf.shop") as client:
        client_port = port_of(client)
        client.sendall(b"a last word")
    assert flow_of(proxy, client_port)["error"] is None
    READ_NOW.set()


def test_client_that_finished_and_then_resets_is_not_waited_for(tmp_path: Path) -> None:
    """As one does that closes before it has read all."""
    with proxy_of(tmp_path, RAW_SILENCE_S="3600") as patient:
        client = socks5(patient.port, "deaf.shop")
        client_port = port_of(client)
        client.sendall(b"a last word")
        client.shutdown(socket.SHUT_WR)
        assert ENDED_NOW.wait(loopback.TIMEOUT_S)
        loopback.reset(client)
        assert flow_of(patient, client_port)["error"] is None
        READ_NOW.set()


def test_client_that_waits_for_a_silent_pod_is_waited_for_a_while(proxy: Tunnel) -> None:
    with socks5(proxy.port, "deaf.shop") as client:
        client_port = port_of(client)
        client.sendall(b"a last word")
        client.shutdown(socket.SHUT_WR)
        client.settimeout(0.7)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(loopback.TIMEOUT_S)
        assert client.recv(1) == b""
    assert flow_of(proxy, client_port)["error"] is None
    READ_NOW.set()


def test_reset_of_the_client_reaches_the_server(proxy: Tunnel) -> None:
    client = socks5(proxy.port, "stay.shop")
    client_port = port_of(client)
    client.sendall(b"\x00")
    proxy.wait_for(rf'"update", "client": {client_port}, "comment": "1b up')
    loopback.reset(client)
    assert flow_of(proxy, client_port, "error")["error"] == "The client reset the connection."
    assert ENDED_NOW.wait(loopback.TIMEOUT_S)


def test_reset_of_the_client_at_once_reaches_the_server(proxy: Tunnel) -> None:
    client = socks5(proxy.port, "stay.shop")
    client_port = port_of(client)
    client.sendall(b"\x00")
    loopback.reset(client)
    assert flow_of(proxy, client_port, "error")["error"] == "The client reset the connection."
    assert ENDED_NOW.wait(loopback.TIMEOUT_S)


def test_reset_of_the_server_reaches_the_client(proxy: Tunnel) -> None:
    with socks5(proxy.port, "cut.shop") as client:
        client_port = port_of(client)
        client.sendall(b"\x00cut")
        assert received(client, 6) == b"so far"
        client.sendall(b"go")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert "reset" in flow_of(proxy, client_port, "error")["error"]


@pytest.mark.parametrize(
    ("host", "code"), [("absent.shop", 4), ("late.shop", 6), ("unknown.example", 4)], ids=lambda v: str(v)
)
def test_refusals_have_their_reply_code(proxy: Tunnel, host: str, code: int) -> None:
    with connect(proxy.port) as client:
        client_port = port_of(client)
        client.sendall(b"\x05\x01\x00" + socks5_request(host, 80))
        assert rest(client) == bytes([5, 0, 5, code, 0, 1]) + bytes(6)
    assert flow_of(proxy, client_port, "error")["error"] == f"{host} is refused."


def test_refusal_without_a_reply_code_is_a_reset(proxy: Tunnel) -> None:
    with connect(proxy.port) as client:
        client.sendall(b"\x05\x01\x00")
        assert received(client, 2) == b"\x05\x00"
        client.sendall(socks5_request("reset.shop", 80))
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_raw_bytes_without_a_destination_are_a_reset(proxy: Tunnel) -> None:
    with connect(proxy.port) as client:
        client_port = port_of(client)
        client.sendall(b"\x00\x01\x02")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert "names no Service" in flow_of(proxy, client_port, "error")["error"]


def test_a_reader_that_stops_holds_back_the_sender(proxy: Tunnel) -> None:
    with socks5(proxy.port, "bulk.shop") as client:
        client.sendall(b"0256")
        proxy.wait_for(r"[0-9.]+m down")
        memory_kib = resident_kib(proxy)
        assert memory_kib < 200 << 10
        assert len(rest(client)) == 256 * MIB
    assert resident_kib(proxy) < memory_kib + (16 << 10)


def test_a_server_that_does_not_read_holds_back_the_client(proxy: Tunnel) -> None:
    with socks5(proxy.port, "slow.shop") as client:
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 * MIB:
                sent += client.send(bytes(MIB))
        READ_NOW.set()
        client.shutdown(socket.SHUT_WR)
        assert ENDED_NOW.wait(loopback.TIMEOUT_S)
    assert int(ENDED[0]) == sent


def stalled(proxy: Tunnel) -> socket.socket:
    """A client whose server reads nothing, and whose bytes fill all that lies between."""
    client = socks5(proxy.port, "slow.shop")
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        for _ in range(256):
            client.send(bytes(MIB))
    return client


@pytest.mark.parametrize(
    ("leave", "error"),
    [(socket.socket.close, "The client went away"), (loopback.reset, "The client reset the connection.")],
)
def test_a_client_that_leaves_while_the_server_does_not_read(
    proxy: Tunnel, leave: Callable[[socket.socket], None], error: str
) -> None:
    client = stalled(proxy)
    client_port = port_of(client)
    leave(client)
    assert flow_of(proxy, client_port, "error")["error"].startswith(error)
    READ_NOW.set()
    assert ENDED_NOW.wait(loopback.TIMEOUT_S)


def test_what_a_client_has_sent_before_it_left_arrives_at_a_slow_server(proxy: Tunnel) -> None:
    client = socks5(proxy.port, "slow.shop")
    client.sendall(bytes(2 * MIB))
    client.close()
    READ_NOW.set()
    assert ENDED_NOW.wait(loopback.TIMEOUT_S)
    assert int(ENDED[0]) == 2 * MIB


def resident_kib(proxy: Tunnel) -> int:
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match
    return int(match[1])


def test_opaque_tls_is_relayed_as_it_is(proxy: Tunnel) -> None:
    """The echo gives the ClientHello back: TLS fails in the client, and nobody in between has answered."""
    context = ssl.create_default_context()
    with socks5(proxy.port, "echo.shop") as client, pytest.raises(ssl.SSLError, match=r"UNEXPECTED|unexpected|WRONG"):
        context.wrap_socket(client, server_hostname="echo.shop")


def test_curl_by_socks5(proxy: Tunnel) -> None:
    answer = curl("--socks5-hostname", f"127.0.0.1:{proxy.port}", "http://web.shop/")
    assert (answer.status, answer.text) == (200, "hello")
    refused = curl("--socks5-hostname", f"127.0.0.1:{proxy.port}", "http://absent.shop/")
    assert refused.exit_code == 97, refused.stderr  # CURLE_PROXY
    assert "(4)" in refused.stderr


def test_raw_through_connect(proxy: Tunnel) -> None:
    """mitmproxy's own CONNECT; the layer under it is another one, the relay the same."""
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=loopback.TIMEOUT_S)
    client.set_tunnel("answer.shop", 5432)
    client.connect()
    with contextlib.closing(client):
        client.sock.sendall(b"words")
        client.sock.shutdown(socket.SHUT_WR)
        assert rest(client.sock) == hashlib.sha256(b"words").hexdigest().encode()


def test_raw_inside_tls_that_ends_here(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REFUSED, "inner-tls", "yes")
        with proxy_of(tmp_path) as proxy:
            context = ssl.create_default_context(cafile=str(tmp_path / "mitmproxy-ca-cert.pem"))
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            with (
                socks5(proxy.port, "echo.shop") as plain,
                context.wrap_socket(plain, server_hostname="echo.shop") as client,
            ):
                client_port = port_of(client)
                sent = os.urandom(MIB)
                client.sendall(b"words")
                assert received(client, 5) == b"words"
                for begin in range(0, MIB, 1 << 14):  # in turns: an SSLSocket is not for two threads
                    client.sendall(sent[begin : begin + (1 << 14)])
                    assert received(client, 1 << 14) == sent[begin : begin + (1 << 14)]
            facts = flow_of(proxy, client_port)
            assert facts["up_bytes"] == facts["down_bytes"] == MIB + 5
