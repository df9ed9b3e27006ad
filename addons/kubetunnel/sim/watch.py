"""One watch: the store's changes as a stream of JSON events (Kubernetes API Concepts: Efficient detection of changes).

A watch can be disturbed by the tests: cut, fed garbage, made to send a bookmark at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from kubetunnel.sim.connection import Connection
from kubetunnel.sim.listoptions import ListOptions
from kubetunnel.sim.resources import Resource
from kubetunnel.sim.status import StatusError, too_old
from kubetunnel.sim.store import RevisionExpired, Store

type Json = dict[str, Any]

DEFAULT_TIMEOUT_S = 1800.0  # kube-apiserver --min-request-timeout
BOOKMARK_INTERVAL_S = 60.0  # apiserver's cacher sends one about every minute


class Watch:
    """The answer to one watch request. `encode` turns an object into what the client asked for (a Table, maybe)."""

    def __init__(
        self, store: Store, resource: Resource, namespace: str, options: ListOptions, encode: Callable[[Json], Json]
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._options = options
        self._encode = encode
        self._revision = options.revision or 0
        self._injected: list[bytes] = []
        self._woken = asyncio.Event()
        self._bookmark_due = False
        self._ended = False

    async def run(self, connection: Connection, bookmark_interval_s: float) -> None:
        """Stream events until the timeout of the request, its history is compacted, or the client is gone."""
        loop = asyncio.get_running_loop()
        timeout_s = DEFAULT_TIMEOUT_S if self._options.timeout_s is None else self._options.timeout_s
        deadline, next_bookmark = loop.time() + timeout_s, loop.time() + bookmark_interval_s
        unsubscribe = self._store.subscribe(self._woken.set)
        connection.lost.add_done_callback(self._client_gone)
        try:
            await connection.start_chunked()
            if self._revision == 0:
                await self._send(connection, self._present())
            while True:
                self._woken.clear()
                await self._send(connection, self._due())
                if self._ended:
                    break
                if loop.time() >= deadline:
                    await self._send(connection, self._bookmark())
                    break
                await self._wait(min(deadline, next_bookmark))
                if loop.time() >= next_bookmark:
                    self._bookmark_due, next_bookmark = True, loop.time() + bookmark_interval_s
            if not connection.lost.done():
                await connection.finish()
        finally:
            unsubscribe()
            connection.lost.remove_done_callback(self._client_gone)

    def inject(self, data: bytes) -> None:
        """Send `data` as it is, between two events."""
        self._injected.append(data)
        self._woken.set()

    def send_bookmark(self) -> None:
        """Send a bookmark at once, to a client that allows them."""
        self._bookmark_due = True
        self._woken.set()

    def expire(self) -> None:
        """Tell the client that its resourceVersion is too old (410), and end."""
        self.inject(self._expired())
        self._ended = True

    def end(self) -> None:
        """End the answer in good order, as a server does that shuts down."""
        self._ended = True
        self._woken.set()

    def _client_gone(self, _: asyncio.Future[None]) -> None:
        self.end()

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._woken.wait()
        except TimeoutError:
            return  # a deadline, which the caller looks at

    async def _send(self, connection: Connection, data: bytes) -> None:
        if data and not connection.lost.done():
            await connection.send(data)

    def _present(self) -> bytes:
        items = self._store.items(self._resource.name, self._namespace)
        self._revision = self._store.revision
        return b"".join(_line("ADDED", self._encode(item)) for item in items if self._selects(item))

    def _due(self) -> bytes:
        data = b"".join(self._injected)
        self._injected.clear()
        try:
            data += self._changes()
        except RevisionExpired:
            self._ended = True
            return data + self._expired()
        if self._bookmark_due:
            self._bookmark_due = False
            data += self._bookmark()
        return data

    def _changes(self) -> bytes:
        lines = []
        for change in self._store.changes_after(self._revision):
            self._revision = change.revision
            if change.resource != self._resource.name or self._namespace not in ("", change.key[0]):
                continue
            now = change.type != "DELETED" and self._selects(change.item)
            before = change.before is not None and self._selects(change.before)
            if now or before:
                kind = "MODIFIED" if now and before else "ADDED" if now else "DELETED"
                item = change.item if now else change.last_seen
                lines.append(_line(kind, self._encode(item)))
        return b"".join(lines)

    def _selects(self, item: Json) -> bool:
        labels = item["metadata"].get("labels", {})
        return self._options.labels.matches(labels) and self._options.fields.matches(item)

    def _bookmark(self) -> bytes:
        if not self._options.bookmarks:
            return b""
        metadata = {"resourceVersion": str(self._revision), "creationTimestamp": None}
        item = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return _line("BOOKMARK", item)

    def _expired(self) -> bytes:
        error: StatusError = too_old(self._revision, self._store.oldest)
        return _line("ERROR", error.status())


def _line(kind: str, item: Json) -> bytes:
    return msgspec.json.encode({"type": kind, "object": item}) + b"\n"
