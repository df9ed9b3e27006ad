"""Which program has a port of this machine: from /proc/net and /proc/PID/fd (proc(5)), without root as far as it goes.

Of another user's program only root sees the name; there the user is told.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

PROC = Path("/proc")
_TCP_LISTEN = "0A"  # include/net/tcp_states.h
_UDP_UNCONNECTED = "07"  # udp sockets are TCP_CLOSE


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A line of /proc/net/{tcp,udp}{,6}."""

    address: IPv4Address | IPv6Address
    port: int
    uid: int
    inode: str


def read_sockets(table: str, *, kind: str) -> list[BoundSocket]:
    """The listening (tcp) or unconnected (udp) sockets of a table's text. Lines that are none are passed over."""
    wanted = _TCP_LISTEN if kind == "tcp" else _UDP_UNCONNECTED
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == wanted:
            address, _, port = fields[1].partition(":")
            found.append(BoundSocket(_address(address), int(port, 16), int(fields[7]), fields[9]))
    return found


def owner_of(kind: str, address: str, port: int, *, proc: Path = PROC) -> str | None:
    """Who keeps others from binding (address, port), for people; None where /proc does not tell.

    Args:
        kind: "tcp" or "udp".
    """
    try:
        wanted = ip_address(address)
    except ValueError:
        return None  # a host's name
    for table in (kind, f"{kind}6"):
        try:
            text = (proc / "net" / table).read_text(encoding="ascii")
        except OSError:
            continue  # not Linux, or no IPv6
        for found in read_sockets(text, kind=kind):
            if found.port == port and (found.address.is_unspecified or found.address == wanted):
                return _program(found, proc)
    return None


def _program(found: BoundSocket, proc: Path) -> str:
    link = f"socket:[{found.inode}]"
    for process in proc.iterdir():
        # a process may end while it is looked at, and those of others are closed to us
        with contextlib.suppress(OSError):
            if process.name.isdigit() and any(str(fd.readlink()) == link for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"{name} (pid {process.name})"
    return f"a program of {_user(found.uid)}"


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _address(text: str) -> IPv4Address | IPv6Address:
    # words of four bytes, each in the machine's byte order
    raw = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8))
    if len(raw) == 4:
        return IPv4Address(raw)
    address = IPv6Address(raw)
    return address.ipv4_mapped or address


def bind_error(kind: str, address: str, port: int) -> OSError | None:
    """Why a listener cannot be had at (address, port); None where it can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as tried:
            # as our listeners: connections that ended lately do not count, nor do responders of mDNS
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, port))
            if kind == "tcp":
                tried.listen(1)
    except OSError as error:
        return error
    return None
