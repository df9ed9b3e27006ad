"""A TCP relay before the API server, to do to its connections what networks do: cut them, or let them fall silent.

A silent connection is one that a suspended laptop or a rebooted NAT box leaves behind: open on this side, known to
nobody on the other, and no FIN ever says so.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import yaml

PIECE_BYTES = 1 << 16


class _Side(asyncio.Protocol):
    """One side of a relayed connection. What it hears goes to `other`; `silent`, nothing goes anywhere."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.silent = False
        self.other: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._relay.sides.add(self)

    def data_received(self, data: bytes) -> None:
        if self.silent:
            return
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def pair(self, other: _Side) -> None:
        self.other = other
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        return self.silent  # its own end stays open then

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.sides.discard(self)
        self.ended.set_result(None)
        if not self.silent and self.other is not None and self.other.transport is not None:
            self.other.transport.close() if exc is None else self.other.transport.abort()


class Relay:
    """Relays loopback connections to `host`:`port`.

    Attributes:
        silent: new connections are taken, and nothing is ever answered: an API server that hangs, or a firewall that
            drops.
        accepted: how many connections there were.
    """

    def __init__(self, host: str, port: int) -> None:
        self.silent = False
        self.accepted = 0
        self.sides: set[_Side] = set()
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything and refuse new connections, until `listen`."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()
        await asyncio.gather(*(side.ended for side in self.sides))
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def cut(self) -> None:
        """Reset every connection."""
        for side in list(self.sides):
            if side.transport is not None:
                side.transport.abort()

    def fall_silent(self) -> None:
        """Nothing that is open now ever hears of the other end again, and `resume` changes nothing about that."""
        self.silent = True
        for side in self.sides:
            side.silent = True

    def resume(self) -> None:
        """New connections work again."""
        self.silent = False

    def kubeconfig(self, original: Path, *, to: Path | None = None, server: str | None = None) -> Path:
        """Lead a kubeconfig through the relay, in place or in a copy. `server`: another URL than the relay's."""
        document = yaml.safe_load(original.read_text())
        for cluster in document["clusters"]:
            parts = urlsplit(cluster["cluster"]["server"])
            cluster["cluster"]["server"] = server or f"{parts.scheme}://127.0.0.1:{self.port}"
        changed = to or original
        changed.touch(mode=0o600)
        changed.write_text(json.dumps(document))  # JSON is YAML
        return changed

    def _accept(self) -> _Side:
        near = _Side(self)
        self.accepted += 1
        if self.silent:
            near.silent = True
            return near
        task = asyncio.get_running_loop().create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return near

    async def _connect(self, near: _Side) -> None:
        far = _Side(self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self._target)
        except OSError:
            if near.transport is not None:
                near.transport.abort()
            return
        far.silent = near.silent
        far.pair(near)
        near.pair(far)
