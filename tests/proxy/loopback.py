"""Listeners on loopback that behave as raw TCP servers may, in threads of their own, and SOCKS5 from a plain socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

TIMEOUT_S = 20.0

type Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def listener(serve: Serve) -> Iterator[int]:
    """The port of a server that calls `serve` for each connection, and closes it after that."""
    threads: list[threading.Thread] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for thread in threads:
            thread.join()


def reset(connection: socket.socket) -> None:
    """Closes with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def received(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, fewer where the connection ends before."""
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def rest(connection: socket.socket) -> bytes:
    """All bytes to the end."""
    data = bytearray()
    while more := connection.recv(1 << 18):
        data += more
    return bytes(data)


def socks5_request(host: str, port: int, *, command: int = 1) -> bytes:
    name = host.encode()
    return bytes([5, command, 0, 3, len(name)]) + name + port.to_bytes(2)


def connect(proxy_port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy_port), timeout=TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def socks5(proxy_port: int, host: str, port: int = 5432) -> socket.socket:
    """A connection through the proxy, after its reply 0."""
    connection = connect(proxy_port)
    connection.sendall(b"\x05\x01\x00")
    assert received(connection, 2) == b"\x05\x00"
    connection.sendall(socks5_request(host, port))
    assert received(connection, 10) == b"\x05\x00\x00\x01" + bytes(6)
    return connection
