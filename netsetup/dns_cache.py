"""Packed answers, by the bytes of the question: a name in use costs a look into a dict and no more.

The bytes after the id say all that an answer depends on: flags, name (in the client's case), type, class and EDNS. An
answer is kept for the least of its TTLs and tells the time that is left, as a resolver's cache would (RFC 1035 3.2.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netsetup.dns_wire import ttl_offsets

MAX_ENTRIES = 8192
MAX_QUERY_BYTES = 512  # beyond it is padding (RFC 7830), not a longer question
MAX_ANSWERS_BYTES = 8 << 20  # a large headless Service fills TCP's 64 KiB, and each cookie (RFC 7873) asks anew


@dataclass(slots=True)
class CachedAnswer:
    """`tail` is the packet after its id; `label` is what it counts as."""

    tail: bytes
    label: tuple[str, str]
    made_at: float
    expires_at: float
    elapsed_s: int = 0


class AnswerCache:
    """Bounded: where it is full, the oldest answers go."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_answers_bytes: int = MAX_ANSWERS_BYTES) -> None:
        self._max_entries, self._max_answers_bytes = max_entries, max_answers_bytes
        self._answers: dict[bytes, CachedAnswer] = {}
        self._answers_bytes = 0

    def get(self, query: bytes, now_s: float) -> CachedAnswer | None:
        """The answer to a packet, with its TTLs as they are now."""
        found = self._answers.get(query[2:])
        if found is None or now_s >= found.expires_at:
            return None
        elapsed_s = int(now_s - found.made_at)
        if elapsed_s != found.elapsed_s:
            found.tail = _aged(found.tail, elapsed_s - found.elapsed_s)
            found.elapsed_s = elapsed_s
        return found

    def put(self, query: bytes, answer: bytes, label: tuple[str, str], now_s: float, lifetime_s: float) -> None:
        """Keep the answer to a packet for that long."""
        if lifetime_s <= 0 or len(query) > MAX_QUERY_BYTES:
            return
        self._drop(query[2:])
        self._answers[query[2:]] = CachedAnswer(answer[2:], label, now_s, now_s + lifetime_s)
        self._answers_bytes += len(answer) - 2
        while len(self._answers) > self._max_entries or self._answers_bytes > self._max_answers_bytes:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        if (dropped := self._answers.pop(key, None)) is not None:
            self._answers_bytes -= len(dropped.tail)


def _aged(tail: bytes, by_s: int) -> bytes:
    packet = bytearray(b"\0\0" + tail)
    for offset in ttl_offsets(bytes(packet)):
        (ttl_s,) = struct.unpack_from("!I", packet, offset)
        struct.pack_into("!I", packet, offset, max(0, ttl_s - by_s))
    return bytes(packet[2:])
