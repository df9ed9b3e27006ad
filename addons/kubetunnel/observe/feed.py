"""The event stream of the API (server-sent events, HTML Living Standard 9.2): a snapshot, then what changes.

What changed is found out once a second, once for all who listen; who reads too slowly is cut off and comes again.
A browser does not tell its page of comments, so the sign of life in between is a message: the page can tell a tunnel
in which nothing happens from one that hangs.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from kubetunnel.observe.documents import Documents, Json, event_json
from kubetunnel.observe.event_log import EventLog

MAX_CLIENTS = 32
HEARTBEAT_S = 5.0  # the dashboard waits for three of them
_MAX_WAITING = 5000  # messages for one client


class FeedClient:
    """Who listens. `changed` is set when there is something to send, or the end.

    Args:
        beat: what is sent where nothing else was.
    """

    def __init__(self, beat: Callable[[], bytes]) -> None:
        self._beat = beat
        self.waiting: deque[bytes] = deque()
        self.changed = asyncio.Event()
        self.ended = False

    def put(self, message: bytes) -> None:
        if len(self.waiting) >= _MAX_WAITING:
            self.end()
        else:
            self.waiting.append(message)
            self.changed.set()

    def end(self) -> None:
        self.ended = True
        self.changed.set()

    async def chunk(self, heartbeat_s: float = HEARTBEAT_S) -> bytes | None:
        """What there is to send, a sign of life where there was nothing for so long; None: no more."""
        try:
            async with asyncio.timeout(heartbeat_s):
                await self.changed.wait()
        except TimeoutError:
            return self._beat()
        self.changed.clear()
        if self.ended:
            return None
        chunk = b"".join(self.waiting)
        self.waiting.clear()
        return chunk


class Feed:
    """All who listen.

    Args:
        alive: what /health told last.
    """

    def __init__(self, documents: Documents, events: EventLog, alive: Callable[[], Json]) -> None:
        self._alive = alive
        self._told_alive: Json = alive()
        self._documents = documents
        self._events = events
        self._clients: set[FeedClient] = set()
        self._known: dict[str, dict[str, Json]] = {}
        self._dns: Json | None = None
        self._event_number = 0

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._clients)

    def join(self) -> FeedClient | None:
        """One more; None: there are too many."""
        if len(self._clients) >= MAX_CLIENTS:
            return None
        if not self._clients:
            self._known, self._dns, self._event_number = self._state(), self._documents.dns(), self._events.number
            self._told_alive = self._alive()
        else:
            self.look()
        client = FeedClient(lambda: _message("alive", self._alive()))
        client.put(
            _message(
                "snapshot",
                {
                    "tunnel": self._documents.tunnel(),
                    "alive": self._told_alive,
                    "services": list(self._known["service"].values()),
                    "forwards": list(self._known["forward"].values()),
                    "listeners": list(self._known["listener"].values()),
                    "dns": self._dns,
                    "events": self._documents.events(),
                },
            )
        )
        self._clients.add(client)
        return client

    def leave(self, client: FeedClient) -> None:
        self._clients.discard(client)
        client.end()

    def look(self) -> None:
        """Tells all what has changed."""
        if not self._clients:
            return
        messages: list[bytes] = []
        state = self._state()
        for kind, now in state.items():
            before = self._known[kind]
            messages += [_message(kind, document) for key, document in now.items() if before.get(key) != document]
            messages += [_message(f"{kind}_gone", before[key]) for key in before.keys() - now.keys()]
        dns = self._documents.dns()
        if dns != self._dns:
            messages.append(_message("dns", dns))
        if (alive := self._alive()) != self._told_alive:
            messages.append(_message("alive", alive))
            self._told_alive = alive
        messages += [_message("event", event_json(event)) for event in self._events.since(self._event_number)]
        self._known, self._dns, self._event_number = state, dns, self._events.number
        for message in messages:
            for client in self._clients:
                client.put(message)

    def close(self) -> None:
        for client in list(self._clients):
            self.leave(client)

    def _state(self) -> dict[str, dict[str, Json]]:
        documents = self._documents
        return {
            "service": {f"{d['zone']}/{d['namespace']}/{d['service']}": d for d in documents.services()},
            "forward": {f"{d['zone']}/{d['namespace']}/{d['pod']}": d for d in documents.forwards()},
            "listener": {d["id"]: d for d in documents.listeners()},
        }


def _message(kind: str, data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
