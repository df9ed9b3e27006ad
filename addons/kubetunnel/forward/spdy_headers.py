"""SPDY header blocks: name/value pairs, compressed with one zlib context for each direction of a connection.

Sources: SPDY/3 draft 2.6.10 (name/value header block) and 2.6.10.1 (compression and its dictionary). Lengths are
bounded here, because a few compressed bytes can stand for gigabytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

Headers = tuple[tuple[str, str], ...]

MAX_BLOCK_BYTES = 64 * 1024  # four times what net/http's default server takes for a port-forward's own headers

# The words that precede the text of the dictionary, each with its length (u32) before it.
_WORDS = (
    *("options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding"),
    *("accept-language", "accept-ranges", "age", "allow", "authorization", "cache-control", "connection"),
    *("content-base", "content-encoding", "content-language", "content-length", "content-location", "content-md5"),
    *("content-range", "content-type", "date", "etag", "expect", "expires", "from", "host", "if-match"),
    *("if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "location"),
    *("max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after"),
    *("server", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning"),
    *("www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie"),
    *("keep-alive", "origin"),
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(struct.pack(">I", len(word)) + word.encode() for word in _WORDS) + _TEXT.encode()

# the dictionary and a few blocks fit in; zlib's defaults would take 96 KiB of every connection, these take 17
WINDOW_BITS = 12
MEMORY_LEVEL = 4

_U32 = struct.Struct(">I")


class HeaderBlockError(Exception):
    """The peer's header block cannot be read; the zlib context of its direction is lost with it."""


class HeaderCompressor:
    """Our direction: header blocks out."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=WINDOW_BITS, memLevel=MEMORY_LEVEL, zdict=DICTIONARY)

    def compress(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """One block. Names are put in lower case, values of one name are joined by NUL (draft 2.6.10).

        Raises ValueError (UnicodeEncodeError) where a character is none of Latin-1.
        """
        joined: dict[bytes, bytes] = {}
        for name, value in headers:
            key, text = name.lower().encode("latin-1"), value.encode("latin-1")
            joined[key] = joined[key] + b"\0" + text if key in joined else text
        parts = [_U32.pack(len(joined))]
        for key, text in joined.items():
            parts += (_U32.pack(len(key)), key, _U32.pack(len(text)), text)
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecompressor:
    """The peer's direction: header blocks in."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def decompress(self, block: bytes) -> Headers:
        """The pairs of one block, in order, a name with several values once for each. Raises HeaderBlockError."""
        try:
            plain = self._inflate.decompress(block, MAX_BLOCK_BYTES + 1)
        except zlib.error as error:
            raise HeaderBlockError(f"header block: {error}") from error
        if len(plain) > MAX_BLOCK_BYTES:
            raise HeaderBlockError(f"header block of more than {MAX_BLOCK_BYTES} bytes")
        return _parse(plain)


def _parse(plain: bytes) -> Headers:
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        taken = plain[position : position + count]
        if len(taken) < count:
            raise HeaderBlockError("header block is cut short")
        position += count
        return taken

    pairs: list[tuple[str, str]] = []
    seen: set[bytes] = set()
    for _ in range(_U32.unpack(take(4))[0]):
        name = take(_U32.unpack(take(4))[0])
        if not name or name in seen or name != name.lower():
            raise HeaderBlockError(f"header name {name[:64]!r} is empty, not in lower case, or there twice")
        seen.add(name)
        value = take(_U32.unpack(take(4))[0])
        pairs += ((name.decode("latin-1"), one.decode("latin-1")) for one in value.split(b"\0"))
    if position != len(plain):
        raise HeaderBlockError("header block has bytes after its last pair")
    return tuple(pairs)
