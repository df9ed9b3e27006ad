"""What follows a 101: other protocols pass as bytes, WebSocket as messages, and neither is kept without bound."""

from __future__ import annotations

import hashlib

import pytest
import wsproto
from mitmproxy.proxy.layers.websocket import WebSocketMessageInjected
from mitmproxy.tcp import TCPFlow
from mitmproxy.websocket import WebSocketMessage
from wsproto.events import BytesMessage, TextMessage
from wsproto.frame_protocol import Opcode

from kubetunnel.core.errors import UpstreamReset
from kubetunnel.proxy.http.upgraded import UpgradedLayer
from kubetunnel.proxy.http.websocket import MAX_HELD_BYTES, MAX_KEPT_BYTES, MAX_KEPT_MESSAGES
from kubetunnel.proxy.raw.traffic import MAX_KEPT_BYTES as MAX_KEPT_BYTES_RAW
from tests.proxy.http_playbook import Playbook

UPGRADE = b"GET / HTTP/1.1\r\nHost: api.shop\r\nConnection: Upgrade\r\nUpgrade: spdy/9\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: spdy/9\r\n\r\n"
PIECE = bytes(64 << 10)


def upgraded() -> Playbook:
    book = Playbook()
    book.from_client(UPGRADE)
    book.from_upstream(SWITCHED + b"first")
    assert book.to_client() == SWITCHED + b"first"
    assert book.to_upstream() == UPGRADE
    return book


def tcp_flow(book: Playbook) -> TCPFlow:
    (stream,) = book.layer.streams.values()
    assert isinstance(stream.child_layer, UpgradedLayer)
    return stream.child_layer.flow


def test_bytes_pass_both_ways_and_are_counted() -> None:
    book = upgraded()
    flow = tcp_flow(book)
    book.from_client(b"ping")
    assert book.to_upstream() == b"ping"
    book.from_upstream(b"pong")
    assert book.to_client() == b"pong"
    book.upstream_closes()
    assert book.client in book.closed
    assert not book.aborted
    assert flow.metadata["kube"] == {"up_bytes": 4, "down_bytes": 9}
    assert [message.content for message in flow.messages] == [b"first", b"ping", b"pong"]
    assert [name for name in book.hook_names if name.startswith("tcp")] == ["tcp_start", "tcp_end"]
    assert not flow.live


@pytest.mark.parametrize("first", [b"\r\n$ ", b"\n", b"\r\n"])
def test_line_ends_behind_the_heads_are_data(first: bytes) -> None:
    book = Playbook()
    book.from_client(UPGRADE + first)
    assert book.to_upstream() == UPGRADE
    book.from_upstream(SWITCHED + first)
    assert book.to_client() == SWITCHED + first
    assert book.to_upstream() == first


def test_a_client_that_sends_no_more_gets_the_rest() -> None:
    book = upgraded()
    book.client_finishes()
    assert book.half_closed == book.upstreams
    assert not book.closed
    book.from_upstream(b"the rest")
    assert book.to_client() == b"the rest"
    book.upstream_closes()
    assert book.client in book.closed
    assert book.hook_names[-1] == "tcp_end"


def test_a_client_that_sends_no_more_and_leaves_ends_it() -> None:
    book = upgraded()
    book.client_finishes()
    book.client_closes()
    assert book.upstreams[0] in book.closed
    assert book.hook_names[-1] == "tcp_end"


def test_what_is_kept_is_bounded() -> None:
    book = upgraded()
    flow = tcp_flow(book)
    for _ in range(100):
        book.from_client(PIECE)
        book.from_upstream(PIECE)
        assert book.to_upstream() == book.to_client() == PIECE
    assert sum(len(message.content) for message in flow.messages) <= 2 * MAX_KEPT_BYTES_RAW
    assert "tcp_message" not in book.hook_names


def test_a_client_that_leaves_ends_the_pods_side() -> None:
    book = upgraded()
    book.client_closes()
    assert book.upstreams[0] in book.closed
    assert book.hook_names[-1] == "tcp_end"


def test_a_pod_that_is_lost_is_no_end_in_order() -> None:
    book = upgraded()
    flow = tcp_flow(book)
    book.stream_errors[book.upstreams[0]] = UpstreamReset("The pod was deleted.")
    book.upstream_closes()
    assert book.aborted == [book.client]
    assert str(flow.error) == "The pod was deleted."
    assert book.hook_names[-1] == "tcp_error"


# WebSocket

WEBSOCKET = UPGRADE.replace(b"spdy/9", b"websocket").replace(
    b"\r\n\r\n", b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n\r\n"
)


class Websocket:
    """An open one; `seen` are the messages that hooks saw."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.book = Playbook(websocket_message=lambda flow: self.seen.append(flow.websocket.messages[-1].content))
        self.book.from_client(WEBSOCKET)
        self.book.from_upstream(SWITCHED.replace(b"spdy/9", b"websocket"))
        self.book.to_client()
        self.book.to_upstream()
        self.client = wsproto.Connection(wsproto.ConnectionType.CLIENT)
        self.pod = wsproto.Connection(wsproto.ConnectionType.SERVER)

    def send(self, message: str | bytes) -> None:
        event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        self.book.from_client(self.client.send(event))
        self.pod.receive_data(self.book.to_upstream())
        assert b"".join(_bytes(event.data) for event in self.pod.events()) == _bytes(message)

    @property
    def kept(self) -> list[bytes]:
        websocket = self.book.flows[0].websocket
        assert websocket is not None
        return [message.content for message in websocket.messages]


def _bytes(message: str | bytes | bytearray) -> bytes:
    return message.encode() if isinstance(message, str) else bytes(message)


@pytest.mark.parametrize("size", [10, 4000, 100_000])
def test_the_newest_messages_are_kept(size: int) -> None:
    socket = Websocket()
    sent = [f"{number:05} ".encode() + bytes(size) for number in range(3 * MAX_KEPT_MESSAGES)]
    for message in sent:
        socket.send(message)
    kept = socket.kept
    assert kept == sent[-len(kept) :]
    assert len(kept) == min(MAX_KEPT_MESSAGES, MAX_KEPT_BYTES // len(sent[0]))
    assert socket.seen == sent, "each was shown to the addons"
    assert socket.book.flows[0].comment == f"{len(sent) - len(kept)} older messages not kept"


@pytest.mark.parametrize("message", ["ä" * (5 << 20), bytes(range(256)) * (40 << 10)], ids=["text", "binary"])
@pytest.mark.parametrize("frame_bytes", [1 << 20, 1 << 30])
def test_a_huge_message_passes_as_it_comes(message: str | bytes, frame_bytes: int) -> None:
    socket, whole = Websocket(), _bytes(message)
    assert len(whole) > 2 * MAX_HELD_BYTES
    event = TextMessage if isinstance(message, str) else BytesMessage
    frames = [message[start : start + frame_bytes] for start in range(0, len(message), frame_bytes)]
    sent = b"".join(
        socket.client.send(event(data=frame, message_finished=number == len(frames) - 1))
        for number, frame in enumerate(frames)
    )
    passed, seen, ends, waiting = 0, hashlib.sha256(), 0, 0
    for start in range(0, len(sent), 65535):
        socket.book.from_client(sent[start : start + 65535])
        socket.pod.receive_data(socket.book.to_upstream())
        for got in socket.pod.events():
            assert isinstance(got, event)
            passed += len(_bytes(got.data))
            seen.update(_bytes(got.data))
            ends += got.message_finished
        waiting = max(waiting, start - passed)
    assert (passed, seen.digest(), ends) == (len(whole), hashlib.sha256(whole).digest(), 1)
    assert waiting <= MAX_HELD_BYTES + 2 * 65535
    assert 0 < len(socket.seen[-1]) <= MAX_HELD_BYTES + 65535
    assert whole.endswith(socket.seen[-1])
    assert "1 long messages shown by their ends" in socket.book.flows[0].comment
    socket.send("and the next")


def test_a_client_that_ends_without_a_close_frame_is_lost() -> None:
    socket = Websocket()
    socket.book.client_finishes()
    assert socket.book.upstreams[0] in socket.book.closed


def test_what_is_injected_into_a_huge_message_comes_behind_it() -> None:
    socket = Websocket()
    sent = socket.client.send(BytesMessage(bytes(2 * MAX_HELD_BYTES)))
    middle = MAX_HELD_BYTES + (1 << 20)
    for start in range(0, middle, 65536):
        socket.book.from_client(sent[start : start + 65536])
    injected = WebSocketMessage(Opcode.TEXT, True, b"injected", injected=True)
    socket.book.feed(WebSocketMessageInjected(socket.book.flows[0], injected))
    socket.book.from_client(sent[middle:])
    socket.pod.receive_data(socket.book.to_upstream())
    got = list(socket.pod.events())
    assert isinstance(got[-1], TextMessage)
    assert got[-1].data == "injected"
    assert sum(len(event.data) for event in got[:-1] if isinstance(event, BytesMessage)) == 2 * MAX_HELD_BYTES


def test_few_messages_are_kept_all() -> None:
    socket = Websocket()
    for message in ("one", b"two", "three"):
        socket.send(message)
    assert socket.kept == [b"one", b"two", b"three"]
    assert socket.book.flows[0].comment == ""


def test_a_message_beyond_the_bound_is_not_kept() -> None:
    socket = Websocket()
    socket.send("before")
    socket.send(bytes(MAX_KEPT_BYTES + 1))
    assert socket.kept == []
    socket.send("after")
    assert socket.kept == [b"after"]
