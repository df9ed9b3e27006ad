"""The event stream: a snapshot, then what changed; slow and many listeners."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.feed import MAX_CLIENTS, Feed, FeedClient


class Documents:
    """Facts that the test sets."""

    def __init__(self) -> None:
        self.all: dict[str, list[dict[str, Any]]] = {"services": [], "forwards": [], "listeners": []}
        self.dns_document: dict[str, Any] | None = None
        self.alive: dict[str, Any] = {"status": "ok"}

    def tunnel(self) -> dict[str, Any]:
        return {"version": "1"}

    def services(self) -> list[dict[str, Any]]:
        return list(self.all["services"])

    def forwards(self) -> list[dict[str, Any]]:
        return list(self.all["forwards"])

    def listeners(self) -> list[dict[str, Any]]:
        return list(self.all["listeners"])

    def dns(self) -> dict[str, Any] | None:
        return self.dns_document

    def events(self) -> list[dict[str, Any]]:
        return []


def service(name: str, streams: int = 0) -> dict[str, Any]:
    return {"zone": "cluster.local", "namespace": "shop", "service": name, "streams": streams}


def make() -> tuple[Documents, EventLog, Feed]:
    documents, events = Documents(), EventLog()
    feed = Feed(documents, events, lambda: documents.alive)  # type: ignore[arg-type]  # facts, however they are made
    return documents, events, feed


async def read(client: FeedClient) -> list[tuple[str, Any]]:
    """The messages that wait."""
    chunk = await client.chunk(0.2)
    assert chunk is not None
    found = []
    for message in chunk.decode().split("\n\n"):
        if message.startswith("event: "):
            kind, data = message.removeprefix("event: ").split("\ndata: ")
            found.append((kind, json.loads(data)))
    return found


async def test_a_snapshot_and_then_what_changes() -> None:
    documents, events, feed = make()
    documents.all["services"] = [service("api"), service("db")]
    client = feed.join()
    assert client is not None
    ((kind, snapshot),) = await read(client)
    assert kind == "snapshot"
    assert set(snapshot) == {"tunnel", "alive", "services", "forwards", "listeners", "dns", "events"}
    feed.look()
    assert await client.chunk(0.01) == b'event: alive\ndata: {"status":"ok"}\n\n'  # nothing changed
    documents.all["services"] = [service("api", streams=1), service("cart")]
    events.add("error", "<b>db</b>\n\nevent: snapshot\ndata: {}")
    documents.dns_document = {"cached": 1}
    documents.alive = {"status": "unreachable", "detail": "nobody there"}
    feed.look()
    messages = await read(client)
    assert [kind for kind, _ in messages] == ["service", "service", "service_gone", "dns", "alive", "event"]
    assert [data["service"] for kind, data in messages if kind.startswith("service")] == ["api", "cart", "db"]
    assert messages[-1][1]["text"] == "<b>db</b>\n\nevent: snapshot\ndata: {}"  # cannot make messages of its own


async def test_who_comes_later_gets_the_whole_and_the_others_what_changed_meanwhile() -> None:
    documents, _, feed = make()
    first = feed.join()
    assert first is not None
    await read(first)
    documents.all["services"] = [service("api")]
    second = feed.join()
    assert second is not None
    assert [kind for kind, _ in await read(first)] == ["service"]
    ((_, snapshot),) = await read(second)
    assert len(snapshot["services"]) == 1
    feed.look()
    assert await second.chunk(0.01) == b'event: alive\ndata: {"status":"ok"}\n\n'


async def test_there_is_a_limit() -> None:
    _, _, feed = make()
    clients = [feed.join() for _ in range(MAX_CLIENTS)]
    assert feed.join() is None
    assert clients[0] is not None
    feed.leave(clients[0])
    assert feed.join() is not None


async def test_who_does_not_read_is_cut_off() -> None:
    documents, _, feed = make()
    client = feed.join()
    assert client is not None
    for number in range(6000):
        documents.all["services"] = [service("api", streams=number)]
        feed.look()
    assert client.ended
    assert await client.chunk(0.01) is None


async def test_the_end_wakes_who_waits() -> None:
    _, _, feed = make()
    client = feed.join()
    assert client is not None
    await read(client)
    waiting = asyncio.create_task(client.chunk(10.0))
    await asyncio.sleep(0)
    feed.close()
    assert await waiting is None
