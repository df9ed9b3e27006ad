"""Sockets out of another network namespace: made there by a process that stays in it, handed over by SCM_RIGHTS.

A socket belongs for good to the network namespace in which it was made (network_namespaces(7)), whoever has it. So a
tunnel outside can listen inside. Source: unix(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from typing import Literal, NoReturn

ANSWER_TIMEOUT_S = 10.0  # the first one waits for the namespace
_BACKLOG = 100
_MESSAGE_BYTES = 4096

type Kind = Literal["tcp", "udp"]


def courier_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends: for who asks, and for who makes the sockets."""
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    return socket.socketpair(socket.AF_UNIX, kind)


class Courier:
    """Asks for sockets."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(ANSWER_TIMEOUT_S)
        self._one_at_a_time = asyncio.Lock()
        self._asking: set[asyncio.Task[socket.socket]] = set()

    async def bound(self, kind: Kind, address: str, port: int) -> socket.socket:
        """A socket that is bound there, a TCP one listening.

        Raises:
            OSError: it could not be had there, or the other side is gone.
        """
        # a task of its own, which takes its answer also where nobody wants it any more: the next answer is another's
        task = asyncio.create_task(self._bound(kind, address, port), name=f"socket {kind} {address}:{port}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close)
            raise

    async def aclose(self) -> None:
        """Waits for the questions that are under way, and closes the connection."""
        if self._asking:
            await asyncio.wait(self._asking)
        self._connection.close()

    async def _bound(self, kind: Kind, address: str, port: int) -> socket.socket:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._ask, kind, address, port)

    def _ask(self, kind: Kind, address: str, port: int) -> socket.socket:
        self._connection.send(json.dumps([kind, address, port]).encode())
        try:
            message, descriptors, _, _ = socket.recv_fds(self._connection, _MESSAGE_BYTES, 1)
        except TimeoutError:
            self._connection.close()  # an answer that comes late would be taken for the next one's
            raise
        if not message:
            raise ConnectionResetError("the namespace is gone")
        if not descriptors:
            number = int(message)
            raise OSError(number, os.strerror(number))
        found = socket.socket(fileno=descriptors[0])
        found.setblocking(False)
        return found


def _close(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def start_maker(connection: socket.socket) -> None:
    """Leaves a process in this namespace that makes the sockets, until the other end is closed.

    It is init's child, not this process's, and has no terminal.
    """
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            _be_maker(connection)
        os._exit(0)
    os.waitpid(first, 0)


def _be_maker(connection: socket.socket) -> NoReturn:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    # what else this process has inherited: the other end, whose closing would go unseen, and CMD's pipes
    own = connection.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError):  # the tunnel is gone
        while request := connection.recv(_MESSAGE_BYTES):
            kind, address, port = json.loads(request)
            try:
                made = _make(kind, address, port)
            except OSError as e:
                connection.send(str(e.errno).encode())
                continue
            with made:
                socket.send_fds(connection, [b"0"], [made.fileno()])
    os._exit(0)


def _make(kind: Kind, address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    try:
        if kind == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind == "tcp":
            made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made
