"""The WebSocket frames of a port-forward: the package's own server as the other end, cuts everywhere, and nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from kubetunnel.forward.websocket import WHOLE_FRAME_BYTES, WebSocketError, WebSocketFrames

SIZES = (0, 1, 125, 126, WHOLE_FRAME_BYTES, WHOLE_FRAME_BYTES + 1, 65535, 65536, 70000)
MESSAGES = st.lists(st.lists(st.binary(max_size=200), min_size=1, max_size=4), max_size=5)  # each of some frames


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


def message(parts: list[bytes]) -> bytes:
    last = len(parts) - 1
    return b"".join(
        frame(Opcode.CONT if number else Opcode.BINARY, part, fin=number == last) for number, part in enumerate(parts)
    )


def received(frames: WebSocketFrames, pieces: list[bytes]) -> list[bytes]:
    """The messages, told apart by where they begin; empty ones do not show."""
    messages: list[bytes] = []
    for piece in pieces:
        for payload, begins in frames.receive(bytearray(piece)):
            assert payload
            if begins:
                messages.append(b"")
            messages[-1] += payload
    return messages


def cut(data: bytes, piece: int) -> list[bytes]:
    return [data[start : start + piece] for start in range(0, len(data), piece)]


def test_every_frame_cut_at_every_byte() -> None:
    data = (
        message([b"one"])
        + frame(Opcode.PING, b"?")
        + message([b"", b"two", b"", b"more" * 40])
        + frame(Opcode.PONG, b"!")
        + message([b"three" * 60, b""])
    )
    expected = [b"one", b"two" + b"more" * 40, b"three" * 60]
    for position in range(len(data) + 1):
        frames = WebSocketFrames()
        assert received(frames, [data[:position], data[position:]]) == expected
        assert frames.pongs_received == 1
    assert received(WebSocketFrames(), cut(data, 1)) == expected


@given(MESSAGES, st.integers(1, 300))
def test_messages_come_as_they_were_sent(messages: list[list[bytes]], piece: int) -> None:
    data = b"".join(map(message, messages))
    expected = [whole for whole in map(b"".join, messages) if whole]
    assert received(WebSocketFrames(), cut(data, piece)) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1, 1000, 4096, 1 << 20])
def test_frames_of_every_length_code(size: int, piece: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    assert received(WebSocketFrames(), cut(message([data]), piece)) == ([data] if size else [])


def test_a_small_frame_is_never_cut() -> None:
    text = b"\1" + b"connection refused " * 50
    frames = WebSocketFrames()
    got = [bytes(payload) for piece in cut(message([text]), 10) for payload, _ in frames.receive(piece)]
    assert got == [text]


def test_a_large_frame_is_passed_on_as_it_comes_and_not_held() -> None:
    frames = WebSocketFrames()
    data = bytes(1 << 20)
    wire = message([data])
    got = 0
    for piece in cut(wire, 10_000):
        got += sum(len(payload) for payload, _ in frames.receive(piece))
        assert len(frames._held) <= 10
    assert got == len(data)


def test_a_ping_is_answered_between_messages() -> None:
    frames = WebSocketFrames()
    frames.send(b"before")
    frames.receive(frame(Opcode.PING, b"are you there"))
    frames.send(b"after")
    server = Protocol(Side.SERVER, state=State.OPEN)
    server.receive_data(frames.data_to_send())
    events = [(event.opcode, bytes(event.data)) for event in server.events_received() if isinstance(event, Frame)]
    assert events == [(Opcode.BINARY, b"before"), (Opcode.PONG, b"are you there"), (Opcode.BINARY, b"after")]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_can_be_read_by_a_server(size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    frames, server = WebSocketFrames(), Protocol(Side.SERVER, state=State.OPEN, max_size=None)
    frames.send(data)
    frames.ping()
    frames.close()
    frames.send(b"too late")
    server.receive_data(frames.data_to_send())
    events = server.events_received()
    assert [event.opcode for event in events if isinstance(event, Frame)] == [
        Opcode.BINARY,
        Opcode.PING,
        Opcode.CLOSE,
    ]
    assert isinstance(events[0], Frame)
    assert events[0].data == data


def test_each_frame_has_a_mask_of_its_own() -> None:
    frames = WebSocketFrames()
    wires = set()
    for _ in range(8):
        frames.send(b"the same")
        wires.add(frames.data_to_send())
    assert len(wires) == 8


def test_after_a_close_nothing_is_read() -> None:
    frames = WebSocketFrames()
    assert received(frames, [message([b"x"]) + frame(Opcode.CLOSE, b"\x03\xe8bye") + message([b"y"])]) == [b"x"]
    assert frames.close_received
    assert received(frames, [message([b"z"])]) == []
    server = Protocol(Side.SERVER, state=State.OPEN)
    server.receive_data(frames.data_to_send())
    assert server.close_rcvd is not None
    assert server.close_rcvd.code == 1000


BROKEN = {
    "a mask": Frame(Opcode.BINARY, b"x").serialize(mask=True),
    "a reserved bit": b"\xc2\x01x",
    "an opcode of the future": b"\x83\x01x",
    "a control frame in parts": b"\x09\x01x",
    "a long control frame": b"\x89\x7e\x00\x7e",
    "a continuation of nothing": b"\x80\x01x",
    "a message in another": frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.BINARY, b"y"),
    "a length with its highest bit set": b"\x82\x7f\xff" + bytes(7),
    "a close of one byte": b"\x88\x01x",
    "a close code that is none": b"\x88\x02\x00\x01",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("piece", [1, 1000])
def test_what_breaks_the_rfc_is_told_and_ends_it(data: bytes, piece: int) -> None:
    frames = WebSocketFrames()
    with pytest.raises(WebSocketError):
        received(frames, [*cut(data, piece), message([b"x"])])
    with pytest.raises(WebSocketError):
        frames.receive(b"")


@given(st.binary(max_size=400), st.integers(1, 60))
def test_any_bytes_raise_nothing_but_websocket_error(data: bytes, piece: int) -> None:
    frames = WebSocketFrames()
    try:
        for part in cut(data, piece):
            payloads = frames.receive(part)
            assert sum(len(payload) for payload, _ in payloads) <= len(data)
            assert len(frames._held) <= 10 + WHOLE_FRAME_BYTES
    except WebSocketError:
        with pytest.raises(WebSocketError):
            frames.receive(b"\x82\x01x")


@given(MESSAGES, st.integers(0, 10_000), st.integers(1, 255), st.integers(1, 80))
def test_a_flipped_byte_raises_nothing_but_websocket_error(
    messages: list[list[bytes]], at: int, change: int, piece: int
) -> None:
    data = bytearray(b"".join(map(message, [*messages, [b"last"]])))
    data[at % len(data)] ^= change
    frames = WebSocketFrames()
    try:
        for part in cut(bytes(data), piece):
            frames.receive(part)
    except WebSocketError as error:
        assert str(error)
