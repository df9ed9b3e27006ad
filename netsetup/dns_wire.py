"""The bytes of DNS messages, read: RFC 1035 4.1 (messages), RFC 6891 6.1 (OPT), RFC 9619 (one question).

Anybody may send these, so the reader is strict, bounded by the packet's length, and never recursive. dnslib's, by
contrast, recurses along compression pointers and refuses labels that are not UTF-8, though these can be forwarded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from netsetup.dns_records import CLASS_IN, Question, Rcode, Record, RecordType

HEADER_BYTES = 12
PLAIN_UDP_BYTES = 512  # RFC 1035 4.2.1: the largest answer for who sends no OPT
EDNS_UDP_BYTES = 4096  # RFC 6891 6.2.5; our clients are on this machine, so nothing is fragmented
MAX_MESSAGE_BYTES = 65535

QR, OPCODE, AA, TC, RD, RA, CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
RCODE = 0x000F
_OPT = 41
_MAX_NAME_OCTETS = 255
_HEADERS_ALONE = (Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED)


@dataclass(frozen=True, slots=True)
class Edns:
    payload_bytes: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed query. `question_bytes` is its question section as it came, in the client's own case (0x20)."""

    id: int
    flags: int
    question: Question
    question_bytes: bytes
    edns: Edns | None = None

    @property
    def recursion_desired(self) -> bool:
        return bool(self.flags & RD)

    @property
    def max_udp_bytes(self) -> int:
        """The largest answer by UDP."""
        if self.edns is None:
            return PLAIN_UDP_BYTES
        return min(max(self.edns.payload_bytes, PLAIN_UDP_BYTES), EDNS_UDP_BYTES)


@dataclass(frozen=True, slots=True)
class _RawRecord:
    """Where a record's parts are in its packet."""

    name_at: int
    type: int
    class_: int
    ttl_at: int
    data_at: int
    data_bytes: int


class _MalformedError(Exception):
    """Stays within this module: the packet breaks the grammar."""


def read_query(packet: bytes) -> Query | Rcode | None:
    """A query; the code to refuse it with; None: not to be answered at all (too short, or itself an answer)."""
    if len(packet) < HEADER_BYTES:
        return None
    id_, flags, questions, *counts = struct.unpack_from("!6H", packet)
    if flags & QR:
        return None  # to answer an answer would make two servers talk for ever
    if flags & OPCODE:
        return Rcode.NOTIMP
    if questions != 1:
        return Rcode.FORMERR
    try:
        question, end = _read_question(packet)
        edns = None
        for record in _records(packet, end, sum(counts), whole=True):
            if record.type == _OPT:
                if edns is not None or packet[record.name_at]:
                    return Rcode.FORMERR  # RFC 6891 6.1.1
                edns = Edns(record.class_, packet[record.ttl_at + 1], bool(packet[record.ttl_at + 2] & 0x80))
    except _MalformedError:
        return Rcode.FORMERR
    return Query(id_, flags, question, packet[HEADER_BYTES:end], edns)


def is_reply(reply: bytes, query: bytes) -> bool:
    """Whether this answers the query: same id, same question (RFC 5452 9.1). The query is well-formed."""
    if len(reply) < HEADER_BYTES or reply[:2] != query[:2]:
        return False
    flags, questions = struct.unpack_from("!2H", reply, 2)
    if not flags & QR or flags & OPCODE:
        return False
    if questions == 0:
        return flags & RCODE in _HEADERS_ALONE  # so do some servers that could not read the query
    end = skip_name(query, HEADER_BYTES)
    # letters alone may change case: servers copy the name, but not all of them as it was
    same_name = reply[HEADER_BYTES:end].lower() == query[HEADER_BYTES:end].lower()
    return questions == 1 and same_name and reply[end : end + 4] == query[end : end + 4]


def rcode_of(reply: bytes) -> Rcode | None:
    """The code in a reply's header; None for one that has no name here."""
    code = reply[3] & RCODE
    return Rcode(code) if code in Rcode else None


def is_truncated(reply: bytes) -> bool:
    return bool(reply[2] & TC >> 8)


def truncated(reply: bytes, query: Query) -> bytes:
    """A reply's header and question alone, with TC: what is sent in place of one that is too large for its client."""
    flags = int.from_bytes(reply[2:4]) | TC
    return reply[:2] + struct.pack("!5H", flags, 1, 0, 0, 0) + query.question_bytes


def ttl_offsets(packet: bytes) -> tuple[int, ...]:
    """Where the TTLs of a well-formed answer of ours are; OPT has flags in that place, and is left out."""
    end = skip_name(packet, HEADER_BYTES) + 4
    counts = struct.unpack_from("!3H", packet, 6)
    return tuple(each.ttl_at for each in _records(packet, end, sum(counts)) if each.type != _OPT)


def read_addresses(reply: bytes) -> tuple[Record, ...] | None:
    """The aliases and addresses of a reply's answer section, None where it is malformed."""
    found: list[Record] = []
    try:
        end = skip_name(reply, HEADER_BYTES) + 4
        (count,) = struct.unpack_from("!H", reply, 6)
        for each in _records(reply, end, count):
            data = reply[each.data_at : each.data_at + each.data_bytes]
            (ttl_s,) = struct.unpack_from("!I", reply, each.ttl_at)
            name = _read_name(reply, each.name_at)
            if each.class_ != CLASS_IN:
                continue
            if each.type == RecordType.A and len(data) == 4:
                found.append(Record(name, RecordType.A, ttl_s, IPv4Address(data)))
            elif each.type == RecordType.AAAA and len(data) == 16:
                found.append(Record(name, RecordType.AAAA, ttl_s, IPv6Address(data)))
            elif each.type == RecordType.CNAME:
                found.append(Record(name, RecordType.CNAME, ttl_s, _read_name(reply, each.data_at)))
    except _MalformedError:
        return None
    return tuple(found)


def skip_name(packet: bytes, offset: int) -> int:
    """The offset after a name."""
    try:
        while length := packet[offset]:
            if length >= 0xC0:
                return offset + 2  # RFC 1035 4.1.4: a pointer ends a name
            if length > 63:
                raise _MalformedError
            offset += 1 + length
    except IndexError:
        raise _MalformedError from None
    return offset + 1


def _read_question(packet: bytes) -> tuple[Question, int]:
    """The question, and the offset after it."""
    labels: list[str] = []
    at = HEADER_BYTES
    end = skip_name(packet, at)
    if end - at > _MAX_NAME_OCTETS or end + 4 > len(packet):
        raise _MalformedError
    while length := packet[at]:
        if length > 63:
            raise _MalformedError  # nothing comes before a question that a pointer could point to
        labels.append(packet[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    type_, class_ = struct.unpack_from("!2H", packet, end)
    return Question(tuple(labels), type_, class_), end + 4


def _records(packet: bytes, offset: int, count: int, *, whole: bool = False) -> Iterator[_RawRecord]:
    """`count` records from the offset on; `whole`: and nothing after them."""
    for _ in range(count):
        after_name = skip_name(packet, offset)
        if after_name + 10 > len(packet):
            raise _MalformedError
        type_, class_, _, length = struct.unpack_from("!HHIH", packet, after_name)
        record = _RawRecord(offset, type_, class_, after_name + 4, after_name + 10, length)
        offset = after_name + 10 + length
        if offset > len(packet):
            raise _MalformedError
        yield record
    if whole and offset != len(packet):
        raise _MalformedError


def _read_name(packet: bytes, offset: int) -> str:
    """A name with its pointers followed: as many as it may have octets, so that those in a circle come to an end."""
    labels: list[str] = []
    octets = 0
    while octets <= _MAX_NAME_OCTETS:
        length = int.from_bytes(packet[offset : offset + 1] or b"\x40")
        if length == 0:
            return ".".join(labels)
        if length >= 0xC0:
            offset = int.from_bytes(packet[offset : offset + 2]) & 0x3FFF
            octets += 1
            continue
        label = packet[offset + 1 : offset + 1 + length]
        if length > 63 or len(label) < length or b"." in label:
            raise _MalformedError  # a dot within a label: as text it would be another name
        labels.append(label.decode("latin-1"))
        offset, octets = offset + 1 + length, octets + 1 + length
    raise _MalformedError
