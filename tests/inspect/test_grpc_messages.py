"""Messages in gRPC bodies: framing, compression, bodies that are cut."""

from __future__ import annotations

import gzip
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.inspect import grpc_messages
from kubetunnel.inspect.grpc_messages import GrpcMessage, has_protobuf_messages, parse_messages


def framed(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


@given(st.lists(st.binary(max_size=300)))
def test_each_message_of_a_stream(messages: list[bytes]) -> None:
    body = b"".join(map(framed, messages))
    assert [message.data for message in parse_messages(body)] == messages


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_a_body_that_is_cut_anywhere(messages: list[bytes], data: st.DataObject) -> None:
    body = b"".join(map(framed, messages))
    cut = data.draw(st.integers(0, len(body) - 1))
    found = list(parse_messages(body[:cut]))
    whole = [message.data for message in found if not message.missing_bytes]
    assert whole == messages[: len(whole)]
    ends = [sum(len(framed(message)) for message in messages[:count]) for count in range(len(messages) + 1)]
    assert sum(1 for message in found if message.missing_bytes) == (cut not in ends)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages(encoding: str, compress: object) -> None:
    body = framed(compress(b"x" * 5000), 1) + framed(b"as it is")  # type: ignore[operator]
    assert list(parse_messages(body, encoding)) == [GrpcMessage(b"x" * 5000, compressed=True), GrpcMessage(b"as it is")]


def test_trailers_of_grpc_web() -> None:
    *_, last = parse_messages(framed(b"one") + framed(b"grpc-status: 0\r\n", 0x80))
    assert last.trailers


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (b'{"json": true}', "identity", "No gRPC message at byte 0"),
        (framed(b"one") + b"\x02\x00\x00\x00\x00", "identity", "at byte 8"),
        (framed(b"\x00" * 20, 1), "gzip", "not what grpc-encoding says, gzip"),
        (framed(b"abc", 1), "snappy", "'snappy'"),
        (framed(b"abc", 1), "identity", "'identity'"),
    ],
)
def test_what_is_no_grpc(body: bytes, encoding: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(parse_messages(body, encoding))


@pytest.mark.parametrize("lengths", [(100_000,), (400, 400, 201), (1000, 1)])
def test_messages_that_are_a_bomb(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_messages, "MAX_BODY_BYTES", 1000)
    messages = parse_messages(b"".join(framed(gzip.compress(b"0" * length), 1) for length in lengths), "gzip")
    with pytest.raises(ValueError, match="longer than"):
        list(messages)


def test_messages_as_long_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_messages, "MAX_BODY_BYTES", 1000)
    body = b"".join(framed(gzip.compress(b"0" * length), 1) for length in (400, 600, 0))
    assert [len(message.data) for message in parse_messages(body, "gzip")] == [400, 600, 0]


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("Application/GRPC; charset=utf-8", True),
        ("application/grpc-web+proto", True),
        ("application/grpc+json", False),
        ("application/grpc-web-text", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_content_types(content_type: str, expected: bool) -> None:
    assert has_protobuf_messages(content_type) is expected
