"""Who has a port: the kernel's tables as text, and real sockets."""

from __future__ import annotations

import errno
import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from kubetunnel.doctor.port_owners import BoundSocket, bind_error, owner_of, read_sockets
from kubetunnel.doctor.ports import check_dns_port, check_tunnel_port
from kubetunnel.doctor.verdict import Level

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000 20 4 30 10 -1
broken
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr ...
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 99 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 98 1 0 100 0 0 10 0
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables above are a little-endian machine's")
def test_tables() -> None:
    assert read_sockets(TCP, kind="tcp") == [BoundSocket(ip_address("127.0.0.1"), 8080, 1000, "4711")]
    assert [(str(found.address), found.port) for found in read_sockets(TCP6, kind="tcp")] == [
        ("::", 80),
        ("127.0.0.1", 81),
    ]


@linux
@pytest.mark.parametrize(("kind", "type_"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_real_socket(kind: str, type_: socket.SocketKind, address: str) -> None:
    with socket.socket(socket.AF_INET, type_) as taken:
        taken.bind((address, 0))
        if kind == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        error = bind_error(kind, "127.0.0.1", port)
        assert error is not None
        assert error.errno == errno.EADDRINUSE
        assert owner_of(kind, "127.0.0.1", port) == f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    assert bind_error(kind, "127.0.0.1", port) is None
    assert owner_of(kind, "127.0.0.1", port) is None


def test_nobody_can_say(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "12").mkdir()  # a process of somebody else: no fd to be seen
    assert owner_of("tcp", "127.0.0.1", 8080, proc=tmp_path) in ("a program of user 1000", owner_of_uid_1000())
    assert owner_of("tcp", "127.0.0.1", 8081, proc=tmp_path) is None
    assert owner_of("udp", "127.0.0.1", 8080, proc=tmp_path) is None


def owner_of_uid_1000() -> str:
    import pwd

    return next((f"a program of user {user.pw_name}" for user in pwd.getpwall() if user.pw_uid == 1000), "")


def test_a_port_that_somebody_else_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # it accepts in its backlog and says nothing: the question has an end
        found = check_tunnel_port(port)
        assert (found.level, f"(pid {os.getpid()})" in found.found or sys.platform != "linux") == (Level.FAIL, True)
        assert check_dns_port("127.0.0.1", port, "cluster.local").level is Level.WARN
    assert check_tunnel_port(port).level is Level.OK
