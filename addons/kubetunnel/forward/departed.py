"""Tells a client that has gone away from one that only sends no more.

Both look the same on the wire until something is sent to them (RFC 9293 section 3.6), and nothing is when the pod is
silent. The clients of a local listener are programs of this machine, and its kernel knows: of a socket that nobody has
open any more it shows the inode 0 (sock_diag(7): one connection asked for by its addresses, some 10 us).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from ipaddress import ip_address

_NETLINK_SOCK_DIAG = 4  # of linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # of linux/sock_diag.h
_NLMSG_ERROR, _NLM_F_REQUEST = 2, 1  # of linux/netlink.h
_ALL_STATES = _NO_COOKIE = 0xFFFFFFFF
_ANSWER_BYTES = 4096

# of linux/inet_diag.h: nlmsghdr, then inet_diag_req_v2; and the last field of inet_diag_msg, where inet_diag_sockid is
# between. The ports and addresses of it are in network order, the rest is not
_HEAD = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_PORTS = struct.Struct("!HH")
_INTERFACE_AND_COOKIE = struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
_ERROR = struct.Struct("=i")  # of nlmsgerr, negative
_INODE = struct.Struct("=I")
_INODE_OFFSET = _HEAD.size + 4 + 48 + 16

type SocketName = tuple[str, int]


class ClientSockets:
    """What this machine's kernel knows of the other ends of our connections. To be closed."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a kernel, or a sandbox, without it
                self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
                self._netlink.setblocking(False)

    def is_departed(self, client: SocketName, ours: SocketName) -> bool | None:
        """Whether the client's end is in no program's hands; None where that cannot be told, e.g. of other machines."""
        if self._netlink is None:
            return None
        question = _question(client, ours)
        try:
            self._netlink.send(question)
            answer = self._netlink.recv(_ANSWER_BYTES)  # the kernel answers before `send` returns
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self.close()
            return None
        if _HEAD.unpack_from(answer)[1] == _NLMSG_ERROR:
            # forgotten: reset in nobody's hands, or past its time in FIN_WAIT2. Or it was never here
            unknown = -_ERROR.unpack_from(answer, _HEAD.size)[0] == errno.ENOENT
            return True if unknown and _is_of_this_machine(client, ours) else None
        if len(answer) < _INODE_OFFSET + _INODE.size:
            return None
        inode: int = _INODE.unpack_from(answer, _INODE_OFFSET)[0]
        return inode == 0

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None


def _is_of_this_machine(client: SocketName, ours: SocketName) -> bool:
    return client[0] == ours[0] or ip_address(client[0]).is_loopback


def _question(client: SocketName, ours: SocketName) -> bytes:
    """For the client's own socket: what it sends from comes first."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    hosts = (host.partition("%")[0] for host in (client[0], ours[0]))  # without the scope of RFC 4007 11.2
    addresses = (socket.inet_pton(family, host).ljust(16, b"\0") for host in hosts)
    body = b"".join(
        (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES),
            _PORTS.pack(client[1], ours[1]),
            *addresses,
            _INTERFACE_AND_COOKIE,
        )
    )
    return _HEAD.pack(_HEAD.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body
