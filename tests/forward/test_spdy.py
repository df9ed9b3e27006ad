"""The SPDY codec: what goes in comes out, wherever the bytes are cut, and nonsense raises SpdyError alone."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kubetunnel.forward.spdy import (
    CANCEL,
    DataReceived,
    DataSeen,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PingAcknowledged,
    SpdyConnection,
    SpdyError,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from kubetunnel.forward.spdy_frames import MAX_CONTROL_BYTES
from kubetunnel.forward.spdy_headers import (
    DICTIONARY,
    MAX_BLOCK_BYTES,
    HeaderBlockError,
    HeaderCompressor,
    HeaderDecompressor,
)

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
HEADERS = st.dictionaries(NAMES, VALUES, max_size=8)


def pair() -> tuple[SpdyConnection, SpdyConnection]:
    return SpdyConnection(client=True), SpdyConnection(client=False)


def merged(events: list[Event]) -> list[Event]:
    """Data that came in pieces as one event, since a cut may make pieces."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        match last, event:
            case DataReceived(first, before, False), DataReceived(second, after, fin) if first == second:
                out[-1] = DataReceived(second, before + after, fin)
            case _:
                out.append(event)
    return out


def conversation() -> bytes:
    """Every kind of frame that a server can send to a client which opened streams 1, 3, 5."""
    client, server = pair()
    for _ in range(3):
        client.open_stream([("streamtype", "data")])
    client.ping()
    server.receive_data(client.data_to_send())
    server.reply(1, [("a", "b")])
    server.send_data(1, b"first")
    server.send_data(1, b"", fin=True)
    server._control(8, 0, struct.pack(">I", 3) + server._deflate.compress([("more", "headers")]))
    server._control(4, 0, struct.pack(">III", 1, 4, 100))  # SETTINGS
    server._control(9, 0, struct.pack(">II", 3, 65536))  # WINDOW_UPDATE
    server._control(77, 0, b"")  # unknown
    server.reset(3, CANCEL)
    server.ping()
    server.reply(5, fin=True)
    server.open_stream([("pushed", "stream")])
    server.goaway()
    return server.data_to_send()


def client_of_conversation(*, views: bool = False) -> SpdyConnection:
    client = SpdyConnection(client=True, views=views)
    for _ in range(3):
        client.open_stream([("streamtype", "data")])
    client.ping()
    client.data_to_send()
    return client


EXPECTED: list[Event] = [
    PingAcknowledged(1),
    StreamReplied(1, (("a", "b"),), False),
    DataReceived(1, b"first", True),
    HeadersReceived(3, (("more", "headers"),), False),
    StreamReset(3, CANCEL),
    StreamReplied(5, (), True),
    StreamOpened(2, (("pushed", "stream"),), False),
    GoAwayReceived(5, 0),
]


def test_the_dictionary_is_the_drafts() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_every_frame_cut_at_every_byte() -> None:
    data = conversation()
    assert merged(client_of_conversation().receive_data(data)) == EXPECTED
    for cut in range(1, len(data)):
        client = client_of_conversation()
        events = client.receive_data(data[:cut])
        assert merged(events + client.receive_data(data[cut:])) == EXPECTED
    client = client_of_conversation()
    events = [event for index in range(len(data)) for event in client.receive_data(data[index : index + 1])]
    assert merged(events) == EXPECTED


def copied(events: list[Event]) -> list[Event]:
    """Views as what they show now."""
    return [DataReceived(e.stream_id, bytes(e.data), e.fin) if isinstance(e, DataSeen) else e for e in events]


def test_views_show_the_same_cut_at_every_byte() -> None:
    data = conversation()
    for cut in range(len(data)):
        client = client_of_conversation(views=True)
        events = copied(client.receive_data(bytearray(data[:cut])))
        assert merged(events + copied(client.receive_data(bytearray(data[cut:])))) == EXPECTED


def test_views_are_of_the_bytes_that_came() -> None:
    client, server = client_of_conversation(views=True), SpdyConnection(client=False)
    server.receive_data(client_streams())
    server.send_data(1, b"payload")
    buffer = bytearray(server.data_to_send())
    (seen,) = client.receive_data(buffer)
    assert isinstance(seen, DataSeen)
    buffer[-7:] = b"changed"
    assert bytes(seen.data) == b"changed"


def client_streams() -> bytes:
    client = SpdyConnection(client=True)
    for _ in range(3):
        client.open_stream([("streamtype", "data")])
    return client.data_to_send()


def test_data_is_copied_when_queued_unless_it_is_lent() -> None:
    client, server = pair()
    stream_id = client.open_stream([("n", "0")])
    mine, lent = bytearray(b"mine"), bytearray(b"lent")
    client.send_data(stream_id, memoryview(mine))
    client.send_data(stream_id, memoryview(lent), copy=False)
    mine[:] = lent[:] = b"####"
    events = server.receive_data(client.data_to_send())
    assert b"".join(event.data for event in events if isinstance(event, DataReceived)) == b"mine####"


@given(st.lists(HEADERS, max_size=4))
def test_headers_round_trip_over_one_context(blocks: list[dict[str, str]]) -> None:
    deflate, inflate = HeaderCompressor(), HeaderDecompressor()
    for headers in blocks:
        assert inflate.decompress(deflate.compress(headers.items())) == tuple(headers.items())


def test_several_values_of_one_name_are_one_pair_on_the_wire() -> None:
    pairs = (("Accept", "a"), ("other", "x"), ("accept", "b"))
    found = HeaderDecompressor().decompress(HeaderCompressor().compress(pairs))
    assert found == (("accept", "a"), ("accept", "b"), ("other", "x"))


@pytest.mark.parametrize(
    "plain",
    [
        struct.pack(">I", 1),
        struct.pack(">I", 0) + b"x",
        struct.pack(">III", 1, 0, 0),
        struct.pack(">II", 1, 0xFFFFFFFF) + b"abc",
        struct.pack(">I", 1) + struct.pack(">I", 1) + b"A" + struct.pack(">I", 0),
        struct.pack(">I", 2) + 2 * (struct.pack(">I", 1) + b"a" + struct.pack(">I", 0)),
        bytes(MAX_BLOCK_BYTES + 1),
    ],
)
def test_broken_header_blocks(plain: bytes) -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    with pytest.raises(HeaderBlockError):
        HeaderDecompressor().decompress(deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH))


def test_a_compression_bomb_stops_at_the_bound() -> None:
    deflate = zlib.compressobj(9, zdict=DICTIONARY)
    bomb = deflate.compress(bytes(50_000_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 64 * 1024  # it would pass as a frame
    with pytest.raises(HeaderBlockError, match="more than"):
        HeaderDecompressor().decompress(bomb)


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 40)), max_size=20), st.integers(1, 64))
def test_data_round_trips_in_pieces(writes: list[tuple[bytes, int]], piece: int) -> None:
    client, server = pair()
    ids = [client.open_stream([("n", str(n))]) for n in range(3)]
    sent = dict.fromkeys(ids, b"")
    for data, which in writes:
        stream_id = ids[which % 3]
        client.send_data(stream_id, data)
        sent[stream_id] += data
    for stream_id in ids:
        client.send_data(stream_id, b"", fin=True)
    wire = client.data_to_send()
    got = dict.fromkeys(ids, b"")
    ended = []
    for start in range(0, len(wire), piece):
        for event in server.receive_data(wire[start : start + piece]):
            if isinstance(event, DataReceived):
                got[event.stream_id] += event.data
                ended += [event.stream_id] if event.fin else []
    assert got == sent
    assert ended == ids


@given(st.binary(max_size=300), st.booleans(), st.integers(1, 50), st.booleans())
@example(b"\x80\x03\x00\x01\x00\x00\x00\x0a" + bytes(10), False, 7, False)
def test_any_bytes_raise_nothing_but_spdy_error(data: bytes, client: bool, piece: int, views: bool) -> None:
    connection = client_of_conversation(views=views) if client else SpdyConnection(client=False, views=views)
    try:
        for start in range(0, len(data), piece):
            events = connection.receive_data(data[start : start + piece])
            assert sum(len(event.data) for event in events if isinstance(event, DataReceived | DataSeen)) <= piece
            assert len(connection._frame) <= 8 + MAX_CONTROL_BYTES
    except SpdyError:
        with pytest.raises(SpdyError):
            connection.receive_data(b"")


@given(st.integers(0, len(conversation()) - 1), st.integers(1, 255), st.integers(1, 80))
def test_a_flipped_byte_raises_nothing_but_spdy_error(at: int, change: int, piece: int) -> None:
    data = bytearray(conversation())
    data[at] ^= change
    client = client_of_conversation()
    try:
        for start in range(0, len(data), piece):
            client.receive_data(data[start : start + piece])
    except SpdyError as error:
        assert error.events is not None


@given(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 9, 10, 200]), st.integers(0, 255), st.binary(max_size=60))
def test_any_body_of_a_control_frame_raises_nothing_but_spdy_error(kind: int, flags: int, body: bytes) -> None:
    client = client_of_conversation()
    try:
        client.receive_data(struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body)
    except SpdyError:
        return


def frame(kind: int, body: bytes, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack(">II", (0x8000 | version) << 16 | kind, flags << 24 | len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        frame(6, b"\0\0\0\2", version=2),
        frame(6, b"\0\0\0\2\0"),
        frame(3, b"\0\0\0\1"),
        frame(3, struct.pack(">II", 7, 5)),  # nobody opened 7
        struct.pack(">II", 7, 1) + b"x",
        struct.pack(">II", 0, 1) + b"x",
        frame(1, bytes(64 * 1024 + 1)),
        frame(2, struct.pack(">I", 1) + b"no zlib"),
        frame(1, struct.pack(">IIH", 3, 0, 0) + HeaderCompressor().compress([])),  # 3 is ours to open
    ],
)
def test_violations(data: bytes) -> None:
    client = client_of_conversation()
    with pytest.raises(SpdyError):
        client.receive_data(data)


def test_what_came_before_a_violation_is_not_lost() -> None:
    client = client_of_conversation()
    with pytest.raises(SpdyError) as caught:
        client.receive_data(struct.pack(">II", 1, 3) + b"abc" + frame(6, b"", version=9))
    assert caught.value.events == (DataReceived(1, b"abc", False),)


def test_data_after_the_end_is_a_violation_and_after_a_reset_is_dropped() -> None:
    client, server = pair()
    first, second = client.open_stream([]), client.open_stream([])
    server.receive_data(client.data_to_send())
    server.send_data(first, b"", fin=True)
    ending = server.data_to_send()
    client.receive_data(ending)
    client.reset(second)
    server.send_data(second, b"still under way", fin=True)
    assert client.receive_data(server.data_to_send()) == []
    with pytest.raises(SpdyError, match="after its end"):
        client.receive_data(struct.pack(">II", first, 1) + b"x")


def test_pings_are_answered_and_foreign_ones_ignored() -> None:
    client, server = pair()
    first, second = client.ping(), client.ping()
    assert (first, second) == (1, 3)
    assert server.receive_data(client.data_to_send()) == []
    assert client.receive_data(server.data_to_send()) == [PingAcknowledged(1), PingAcknowledged(3)]
    assert client.receive_data(frame(6, b"\0\0\0\7")) == []
    assert client.data_to_send() == b""


def test_misuse_raises_value_error() -> None:
    client, server = pair()
    stream_id = client.open_stream([], fin=True)
    with pytest.raises(ValueError, match="not open"):
        client.send_data(stream_id, b"x")
    server.goaway()
    client.receive_data(server.data_to_send())
    assert not client.can_open
    with pytest.raises(ValueError, match="no stream"):
        client.open_stream([])


def test_streams_are_forgotten_when_both_sides_ended() -> None:
    client, server = pair()
    stream_id = client.open_stream([])
    client.send_data(stream_id, b"x" * 200_000, fin=True)
    server.receive_data(client.data_to_send())
    server.reply(stream_id)
    server.send_data(stream_id, b"y", fin=True)
    client.receive_data(server.data_to_send())
    assert not client._streams
    assert not server._streams


def test_a_large_write_is_many_frames_with_one_end() -> None:
    client, server = pair()
    stream_id = client.open_stream([])
    server.receive_data(client.data_to_send())
    client.send_data(stream_id, bytearray(b"z" * 150_000), fin=True)
    events = server.receive_data(client.data_to_send())
    assert merged(events) == [DataReceived(stream_id, b"z" * 150_000, True)]
    assert len(events) == 3
