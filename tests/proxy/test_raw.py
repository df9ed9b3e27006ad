"""The raw layer without I/O: what is passed on, how sides end, what a flow shows; and the relay on sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.tcp import TCPFlow

from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, UpstreamReset
from kubetunnel.proxy.raw.layer import KubeRelayHook, RawLayer
from kubetunnel.proxy.raw.relay import Relay
from kubetunnel.proxy.raw.traffic import MAX_KEPT_BYTES, MAX_KEPT_MESSAGES, Traffic
from tests.proxy.playbook import Playbook, make_context, open_server


class Surroundings:
    """Why upstreams fail, and the transports, which a relay takes where there is one."""

    def __init__(self, make_relay: Callable[[Traffic], Relay] | None = None) -> None:
        self.make_relay = make_relay
        self.refused: KubeTunnelError | None = None
        self.cut: KubeTunnelError | None = None
        self.reset_clients: list[Client] = []
        self.watched: list[Traffic] = []
        self.closed: list[Connection] = []

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        return self.refused

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        return self.cut

    def take(self, context: Context, traffic: Traffic) -> Relay | None:
        return self.make_relay(traffic) if self.make_relay else None

    def watch(self, context: Context, traffic: Traffic) -> None:
        self.watched.append(traffic)

    def forget(self, traffic: Traffic) -> None:
        with contextlib.suppress(ValueError):
            self.watched.remove(traffic)

    def reset(self, client: Client) -> None:
        self.reset_clients.append(client)

    def is_closed(self, context: Context, connection: Connection) -> bool:
        return connection in self.closed


def playbook(surroundings: Surroundings | None = None, *, opened: bool = True) -> tuple[Playbook, Surroundings]:
    surroundings = surroundings or Surroundings()
    context = make_context()
    context.server.address = ("db.shop", 5432)
    if opened:
        open_server(context)
    book = Playbook(RawLayer(context, surroundings, surroundings), held=frozenset({"kube_relay"}))
    book.start()
    return book, surroundings


def flow(book: Playbook) -> TCPFlow:
    assert isinstance(book.layer, RawLayer)
    return book.layer.flow


def test_passes_on_and_counts() -> None:
    book, surroundings = playbook()
    assert len(surroundings.watched) == 1
    book.from_client(b"question")
    book.from_server(b"the answer")
    assert book.sent(book.context.server) == b"question"
    assert book.sent(book.context.client) == b"the answer"
    book.closed(book.context.client)
    assert book.closes(book.context.server) == ["half"]
    assert surroundings.watched[0].client_done
    book.closed(book.context.server)
    assert book.closes(book.context.client) == ["whole"]
    assert book.hooks() == ["tcp_start", "tcp_end"]
    assert flow(book).comment == "8b up, 10b down"
    assert flow(book).metadata["kube"] == {"up_bytes": 8, "down_bytes": 10}
    assert [message.content for message in flow(book).messages] == [b"question", b"the answer"]
    assert not flow(book).live
    assert not surroundings.watched


def test_server_finishes_first() -> None:
    book, _ = playbook()
    book.closed(book.context.server)
    assert book.closes(book.context.client) == ["half"]
    book.from_client(b"late")
    assert book.sent(book.context.server) == b"late"
    book.closed(book.context.client)
    assert book.hooks() == ["tcp_start", "tcp_end"]


def test_server_that_takes_no_more_ends_it() -> None:
    book, surroundings = playbook()
    surroundings.closed.append(book.context.server)
    book.closed(book.context.server)
    assert book.closes(book.context.client) == ["whole"]
    assert book.hooks() == ["tcp_start", "tcp_end"]


def test_server_that_was_cut_resets_the_client() -> None:
    book, surroundings = playbook()
    surroundings.cut = UpstreamReset("The pod died.")
    book.closed(book.context.server)
    assert surroundings.reset_clients == [book.context.client]
    assert book.hooks() == ["tcp_start", "tcp_error"]
    assert str(flow(book).error) == "The pod died."
    assert flow(book).marked == ":no_entry:"


def test_client_that_reset_closes_the_server() -> None:
    book, surroundings = playbook()
    surroundings.closed.append(book.context.client)
    book.closed(book.context.client)
    assert book.closes(book.context.server) == ["whole"]
    assert str(flow(book).error) == "The client reset the connection."


def test_opens_what_is_not_open() -> None:
    book, _ = playbook(opened=False)
    book.from_client(b"early")
    assert book.sent(book.context.server) == b""
    assert book.hooks() == [], "where it goes is not known yet, and the flow's comment is to say so"
    book.opened()
    assert book.hooks() == ["tcp_start"]
    assert book.sent(book.context.server) == b"early"


def test_refusal_resets_the_client() -> None:
    book, surroundings = playbook(opened=False)
    surroundings.refused = ConnectionRefused("Nothing listens.")
    book.opened("Nothing listens.")
    assert surroundings.reset_clients == [book.context.client]
    assert book.hooks() == ["tcp_start", "tcp_error"]
    assert str(flow(book).error) == "Nothing listens."
    assert not surroundings.watched


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_what_a_flow_keeps_is_bounded(size: int) -> None:
    traffic = Traffic(TCPFlow(make_context().client, make_context().server))
    for _ in range(1000):
        traffic.add(True, bytes(size))
    kept = [len(message.content) for message in traffic.flow.messages]
    assert sum(kept) == min(MAX_KEPT_BYTES, size * MAX_KEPT_MESSAGES)
    assert len(kept) <= MAX_KEPT_MESSAGES
    assert traffic.up_bytes == size * 1000


def test_counts_stand_behind_the_comment_of_others() -> None:
    traffic = Traffic(TCPFlow(make_context().client, make_context().server))
    assert traffic.show()
    traffic.flow.comment = "db-0:5432"
    traffic.add(True, b"x")
    assert traffic.show()
    assert traffic.flow.comment == "db-0:5432 · 1b up, 0b down"
    traffic.add(False, bytes(2048))
    assert traffic.show()
    assert traffic.flow.comment == "db-0:5432 · 1b up, 2.0k down"
    assert not traffic.show(), "nothing has changed"


class Pair:
    """A connection of mitmproxy's, and the socket at its other end."""

    def __init__(self, io: ConnectionIO, peer: socket.socket) -> None:
        assert isinstance(io.reader, asyncio.StreamReader)
        assert isinstance(io.writer, asyncio.StreamWriter)
        self.io, self.peer, self.reader, self.writer = io, peer, io.reader, io.writer

    @classmethod
    async def make(cls) -> Pair:
        near, far = socket.socketpair()
        far.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=near)
        return cls(ConnectionIO(reader=reader, writer=writer), far)

    async def received(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := await asyncio.get_running_loop().sock_recv(self.peer, size - len(data))):
            data += more
        return data

    async def aclose(self) -> None:
        self.peer.close()
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def pairs() -> list[Pair]:
    return [await Pair.make(), await Pair.make()]


async def relayed(book: Playbook) -> None:
    """What `ProxyConnectionHandler` does for the hook."""
    await book.last(KubeRelayHook).relay.run()
    book.completed("kube_relay")


async def test_nothing_is_lost_or_reordered_when_a_relay_takes_over(pairs: list[Pair]) -> None:
    """Bytes are in the layer's queue, in mitmproxy's reader and in the socket when it does, both ways."""
    client, server = pairs
    for pair in pairs:
        pair.peer.send(b"1")
        assert await pair.reader.readexactly(1) == b"1"
        pair.peer.send(b"2")
        async with asyncio.timeout(5):
            while not pair.reader._buffer:  # type: ignore[attr-defined]  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)
    book, _ = playbook(Surroundings(lambda traffic: Relay(client.io, server.io, traffic)))
    for pair in pairs:
        pair.peer.send(b"3")  # stays in the socket
    book.from_client(b"1")
    book.from_server(b"1")
    for pair, connection in ((client, book.context.client), (server, book.context.server)):
        (book.from_client if pair is client else book.from_server)(await pair.reader.read(100))
        assert await pair.reader.read(100) == b"", "the end of what mitmproxy gets"
        book.closed(connection)
    client.writer.write(book.sent(book.context.client))
    server.writer.write(book.sent(book.context.server))
    async with asyncio.timeout(5):
        relaying = asyncio.create_task(relayed(book))
        assert await server.received(3) == b"123"
        assert await client.received(3) == b"123"
        client.peer.send(b"4")
        assert await server.received(1) == b"4"
        client.peer.shutdown(socket.SHUT_WR)
        assert await server.received(1) == b""
        server.peer.send(b"4")
        assert await client.received(1) == b"4"
        server.peer.close()
        await relaying
    assert flow(book).comment == "4b up, 4b down"
    assert book.hooks() == ["tcp_start", "kube_relay", "tcp_end"]
    assert book.closes(book.context.client) == book.closes(book.context.server) == ["whole"]
    for pair in pairs:
        await pair.aclose()


async def test_each_direction_waits_for_its_own_writer(pairs: list[Pair]) -> None:
    """The client reads nothing; what it sends arrives all the same, and little of what waits for it is held."""
    client, server = pairs
    relay = Relay(client.io, server.io, Traffic(TCPFlow(make_context().client, make_context().server)))
    relaying = asyncio.create_task(relay.run())
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        filling = asyncio.create_task(loop.sock_sendall(server.peer, bytes(64 << 20)))
        for _ in range(100):
            await loop.sock_sendall(client.peer, b"words" * 1000)
            assert await server.received(5000) == b"words" * 1000
    assert not filling.done()
    assert relay.traffic.down_bytes < 4 << 20
    filling.cancel()
    client.peer.close()
    await relaying
    assert relay.failure == "The client reset the connection."
    for pair in pairs:
        await pair.aclose()


async def test_cancelled_relay_closes_both(pairs: list[Pair]) -> None:
    client, server = pairs
    relay = Relay(client.io, server.io, Traffic(TCPFlow(make_context().client, make_context().server)))
    relaying = asyncio.create_task(relay.run())
    await asyncio.sleep(0)
    relaying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relaying
    async with asyncio.timeout(5):
        assert await client.received(1) == b""
        assert await server.received(1) == b""
    for pair in pairs:
        await pair.aclose()


async def test_end_before_the_relay_runs_is_an_end(pairs: list[Pair]) -> None:
    client, server = pairs
    client.peer.send(b"all")
    client.peer.shutdown(socket.SHUT_WR)
    assert await client.reader.readexactly(3) == b"all"
    assert await client.reader.read(1) == b""
    relay = Relay(client.io, server.io, Traffic(TCPFlow(make_context().client, make_context().server)))
    async with asyncio.timeout(5):
        relaying = asyncio.create_task(relay.run())
        assert await server.received(1) == b"", "the server learns of the end"
        server.peer.send(b"answer")
        assert await client.received(6) == b"answer"
        server.peer.close()
        await relaying
    assert relay.failure is None
    for pair in pairs:
        await pair.aclose()


def test_layer_ignores_what_comes_after_the_end() -> None:
    book, _ = playbook()
    book.closed(book.context.client)
    book.closed(book.context.server)
    assert book.from_server(b"late") == []
    assert not any(isinstance(c, commands.SendData) for c in book.commands)
