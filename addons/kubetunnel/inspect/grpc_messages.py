"""The messages in a gRPC body: length-prefixed, perhaps compressed (gRPC over HTTP/2, "Length-Prefixed-Message").

gRPC-Web frames its trailers as a last message with the highest bit of the flag set (PROTOCOL-WEB.md).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from kubetunnel.core.media_types import media_type

MAX_BODY_BYTES = 64 << 20  # of what is decompressed: a small bomb must not take the memory

_PREFIX = struct.Struct(">BI")
_COMPRESSED = 0x01
_TRAILERS = 0x80
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # deflate is zlib's format, as in HTTP
_MEDIA_TYPES = ("application/grpc", "application/grpc-web")


@dataclass(frozen=True, slots=True)
class GrpcMessage:
    """One message of a stream.

    Attributes:
        data: decompressed.
        trailers: it is gRPC-Web's trailers, header lines and no message.
        missing_bytes: the body ends this much before the message does; `data` is what is there of it, as it came.
    """

    data: bytes
    compressed: bool = False
    trailers: bool = False
    missing_bytes: int = 0


def has_protobuf_messages(content_type: str) -> bool:
    """gRPC and gRPC-Web with protobuf messages in binary."""
    kind, _, subtype = media_type(content_type).partition("+")
    return kind in _MEDIA_TYPES and subtype in ("", "proto")


def parse_messages(body: bytes, encoding: str = "identity") -> Iterator[GrpcMessage]:
    """The messages of a request's or a response's body.

    Args:
        encoding: the `grpc-encoding` header.

    Raises:
        ValueError: no gRPC framing, or a compression that is unknown or broken.
    """
    position, room = 0, MAX_BODY_BYTES
    while position < len(body):
        if position + _PREFIX.size > len(body):
            yield GrpcMessage(b"", missing_bytes=position + _PREFIX.size - len(body))
            return
        flags, length = _PREFIX.unpack_from(body, position)
        if flags & ~(_COMPRESSED | _TRAILERS):
            raise ValueError(f"No gRPC message at byte {position}: its flags are {flags:#04x}.")
        position += _PREFIX.size
        data = body[position : position + length]
        position += length
        missing = length - len(data)
        compressed = bool(flags & _COMPRESSED)
        if compressed and not missing:
            data = _decompress(data, encoding, room)
            room -= len(data)
        yield GrpcMessage(data, compressed, bool(flags & _TRAILERS), missing)


def _decompress(data: bytes, encoding: str, room: int) -> bytes:
    window = _WINDOWS.get(encoding.strip().lower())
    if window is None:
        raise ValueError(f"A message is compressed, and grpc-encoding is {encoding!r}; gzip and deflate are known.")
    decompressor = zlib.decompressobj(window)
    try:
        plain = decompressor.decompress(data, room + 1)  # of 0 it would take all
    except zlib.error as e:
        raise ValueError(f"A message is not what grpc-encoding says, {encoding}: {e}.") from e
    if len(plain) > room:
        raise ValueError(f"The messages are longer than {MAX_BODY_BYTES >> 20} MiB when decompressed.")
    return plain
