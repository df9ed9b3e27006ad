"""The sockets of a local listener: one port on several addresses, the wanted one or a free one."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1")  # what `localhost` means; kubectl listens on both
BACKLOG = 1024  # asyncio's 100 drops connections of a burst, which their clients then repeat a second later
_TRIES = 20  # for a free port that is free on every address

TAKEN = {errno.EADDRINUSE, errno.EACCES, errno.EPERM}  # by another, or by the kernel for root (below 1024)
_MISSING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}  # a machine without IPv6


def bind(addresses: Sequence[str], port: int, *, or_free: bool) -> list[socket.socket]:
    """Listening sockets, all on the same port.

    Args:
        addresses: IP addresses. One that the machine has not got is left out where another works.
        port: 0 for a free one.
        or_free: take a free one where `port` cannot be had.

    Raises:
        OSError: nothing could be bound; its `filename` is the address, with the port that was asked for.
    """
    ports = [port, *([0] * _TRIES if or_free or not port else [])]
    failure: OSError | None = None
    for wanted in ports:
        try:
            return _bind_all(addresses, wanted)
        except OSError as error:
            failure = failure or error
            if error.errno not in TAKEN:
                raise
    assert failure is not None  # noqa: S101  (there is at least one port to try)
    raise failure


def _bind_all(addresses: Sequence[str], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for address in addresses:
            try:
                bound.append(_listen(address, port))
                port = bound[0].getsockname()[1]
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                missing = error
                logger.debug("This machine has no %s: %s", address, error)
    except OSError:
        for sock in bound:
            sock.close()
        raise
    if not bound:
        raise missing or OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    return bound


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        host = f"[{address}]" if family == socket.AF_INET6 else address
        error.filename = f"{host}:{port}" if port else host  # which str() tells, too
        raise
    return sock
