"""An answer as a packet, cut to what its client can take: the only import of dnslib.

RFC 1035 4.1, RFC 2181 9 (when TC is set), RFC 6891 6.1.1 (an OPT for an OPT, for nobody else).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from dnslib import AAAA, CNAME, EDNS0, NS, PTR, RD, RR, SOA, SRV, TXT, A
from dnslib.label import DNSBuffer, DNSLabel

from netsetup.dns_records import Answer, Rcode, Record, RecordType, Soa, Srv
from netsetup.dns_wire import AA, CD, EDNS_UDP_BYTES, HEADER_BYTES, MAX_MESSAGE_BYTES, QR, RA, RCODE, TC, Query
from netsetup.dns_wire import RD as RECURSION_DESIRED

_NOT_AUTHORITATIVE = (Rcode.SERVFAIL, Rcode.REFUSED, Rcode.BADVERS, Rcode.FORMERR, Rcode.NOTIMP)
_NAMES = {RecordType.CNAME: CNAME, RecordType.NS: NS, RecordType.PTR: PTR}


def pack_answer(query: Query, answer: Answer, *, tcp: bool, recursion_available: bool = False) -> bytes:
    """The reply, with the query's id and its question as it came.

    Where it is too large: first the additional records go, without a word; of the rest as much as fits is sent by TCP,
    nothing by UDP, with TC.
    """
    limit = MAX_MESSAGE_BYTES if tcp else query.max_udp_bytes
    flags = RA if recursion_available else 0
    for attempt in (answer, Answer(answer.rcode, answer.records, answer.authority)):
        packet = _pack(query, attempt, flags)
        if len(packet) <= limit:
            return packet
    fitting = _fitting(query, answer, limit) if tcp else ()
    return _pack(query, Answer(answer.rcode, fitting), flags | TC)


def pack_refusal(packet: bytes, rcode: Rcode) -> bytes:
    """The reply to a packet that could not be read beyond its header."""
    flags = int.from_bytes(packet[2:4])
    # its opcode and RD
    return packet[:2] + struct.pack("!5H", QR | flags & 0x7900 | rcode, 0, 0, 0, 0)


def pack_question(labels: Sequence[str], type_: int) -> bytes:
    """A query of our own, with id 0, RD, and an OPT."""
    buffer = DNSBuffer(struct.pack("!6H", 0, RECURSION_DESIRED, 1, 0, 0, 1))
    buffer.offset = HEADER_BYTES
    buffer.encode_name(_octets(labels))
    buffer.pack("!HH", type_, 1)
    EDNS0(udp_len=EDNS_UDP_BYTES).pack(buffer)
    return bytes(buffer.data)


def _fitting(query: Query, answer: Answer, limit: int) -> tuple[Record, ...]:
    count = len(answer.records)
    while count and len(_pack(query, Answer(answer.rcode, answer.records[:count]), TC)) > limit:
        count = count * 3 // 4
    return answer.records[:count]


def _pack(query: Query, answer: Answer, flags: int) -> bytes:
    flags |= QR | query.flags & (RECURSION_DESIRED | CD) | answer.rcode & RCODE
    flags |= 0 if answer.rcode in _NOT_AUTHORITATIVE else AA
    sections = (answer.records, answer.authority, answer.additional)
    counts = [len(section) for section in sections]
    counts[2] += query.edns is not None
    buffer = DNSBuffer(struct.pack("!6H", query.id, flags, 1, *counts) + query.question_bytes)
    buffer.offset = len(buffer.data)
    _remember_question(buffer, query)
    for section in sections:
        for record in section:
            RR(_label(record.name), record.type, 1, record.ttl_s, _data(record)).pack(buffer)
    if query.edns is not None:
        dnssec_ok = "do" if query.edns.dnssec_ok else ""
        EDNS0(udp_len=EDNS_UDP_BYTES, ext_rcode=answer.rcode >> 4, flags=dnssec_ok).pack(buffer)
    return bytes(buffer.data)


def _remember_question(buffer: DNSBuffer, query: Query) -> None:
    """Lets later names point to the question's."""
    labels = _octets(query.question.labels).label
    at = HEADER_BYTES
    for position, label in enumerate(labels):
        buffer.names[labels[position:]] = at
        at += 1 + len(label)


def _label(name: str) -> DNSLabel:
    return _octets(name.split(".") if name else ())


def _octets(labels: Sequence[str]) -> DNSLabel:
    # bytes: from text dnslib would make IDNA
    return DNSLabel([label.encode("latin-1") for label in labels])


def _data(record: Record) -> RD:
    match record.data:
        case IPv4Address() as address:
            return A(tuple(address.packed))
        case IPv6Address() as address:
            return AAAA(tuple(address.packed))
        case Srv() as srv:
            return SRV(srv.priority, srv.weight, srv.port, _label(srv.target))
        case Soa() as soa:
            times = (soa.serial, soa.refresh_s, soa.retry_s, soa.expire_s, soa.minimum_s)
            return SOA(_label(soa.name_server), _label(soa.mailbox), times)
        case text if record.type == RecordType.TXT:
            return TXT(text)
        case name:
            return _NAMES[record.type](_label(name))
