"""Tells a client that has gone away from one that only sends no more.

Both look the same on the wire until something is sent to them (RFC 9293 section 3.6), and nothing is when the pod is
silent. The clients here are mostly programs of this machine, and its kernel knows: of a socket that nobody has open any
more it shows the inode 0 (proc(5), /proc/net/tcp).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from mitmproxy.connection import Client

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_CLOSED = 7  # TCP_CLOSE of include/net/tcp_states.h
_FINISHED = {"04", "05", "06"}  # FIN_WAIT1, FIN_WAIT2, TIME_WAIT


def departed(clients: list[Client]) -> list[Client]:
    """Those of the clients whose end of the connection is in no program's hands. None where that cannot be told."""
    wanted = {key: client for client in clients for key in _keys(client)}
    return [wanted[key] for key in _orphans() if key in wanted] if wanted else []


def is_reset(transport: asyncio.BaseTransport) -> bool:
    """Whether the client has reset this connection, also where nothing is read of it, and so nothing tells."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0 or not hasattr(socket, "TCP_INFO"):
        return False
    # the first byte of struct tcp_info is the state
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED


def _orphans() -> Iterator[tuple[str, str]]:
    for table in _TABLES:
        with contextlib.suppress(OSError):  # another system than Linux, or no IPv6
            for row in table.read_text().splitlines()[1:]:
                _, local, remote, state, _, _, _, _, _, inode, *_ = row.split()
                if inode == "0" and state in _FINISHED:
                    yield local, remote


def _keys(client: Client) -> Iterator[tuple[str, str]]:
    """The client's own view of the connection, as the kernel writes it."""
    if client.peername is None or client.sockname is None:
        return
    (near, near_port), (far, far_port) = client.peername[:2], client.sockname[:2]
    # to us of IPv4, it may have a socket for both families, as gRPC's, Go's and Java's are (RFC 4291 section 2.5.5.2)
    for family in ("",) if ":" in near else ("", "::ffff:"):
        yield _hexadecimal(family + near, near_port), _hexadecimal(family + far, far_port)


def _hexadecimal(host: str, port: int) -> str:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
