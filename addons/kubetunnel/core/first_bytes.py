"""What a client speaks, told by its first bytes, so that one port takes every protocol.

SOCKS5 is told by 1 byte (RFC 1928 section 3), TLS by 6 (RFC 8446 section 5.1: record header and handshake type), HTTP/2
by the 24 of its preface (RFC 9113 section 3.4). HTTP/1 (RFC 9112 section 3) takes up to its request line, because other
protocols begin with a word and a space too; never more than `MAX_BYTES`. Everything else is raw.
"""

from __future__ import annotations

import enum
import re

# RFC 9112 section 3 asks for request lines of 8000 octets at least; what is longer and fits so far is taken for HTTP/1
MAX_BYTES = 8000

MAX_METHOD_BYTES = 32  # the longest registered method, UPDATEREDIRECTREF, has 17

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_SOCKS5 = 0x05

# the HTTP method registry of IANA, without PRI and *, which no request uses
_METHODS = (
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY "
    b"MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT "
    b"QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL"
).split()

# the four forms of a request target: origin, absolute, asterisk; authority after CONNECT alone
_TARGETS = (b"/", b"http://", b"https://", b"ws://", b"wss://", b"*")

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*\Z")  # RFC 9110 section 5.6.2
_AUTHORITY = re.compile(rb"[0-9A-Za-z\[]")
_TARGET_END = re.compile(rb"[\x00-\x20\x7f]")
_VERSION = b" HTTP/"


class Protocol(enum.Enum):
    """What is spoken on a connection, as far as its first bytes tell."""

    HTTP1 = "HTTP/1"
    HTTP2 = "HTTP/2"
    TLS = "TLS"
    SOCKS5 = "SOCKS5"
    RAW = "raw"


def recognise(data: bytes, *, destination_known: bool) -> Protocol | None:
    """What the client speaks that has sent `data` so far; None: more bytes are needed.

    More bytes never change an answer, and with `MAX_BYTES` of them there is one.

    Args:
        destination_known: the connection has one already (a virtual IP, CONNECT, SOCKS5). Then raw bytes can be
            relayed, so HTTP/1 is only what is surely that: a registered method and a whole request line. Where it is
            not known, only protocols that name one are of use: a word and a space are HTTP/1, whose layer answers what
            is wrong with it.
    """
    if not data:
        return None
    if data[0] == _SOCKS5:
        return Protocol.RAW if destination_known else Protocol.SOCKS5
    is_http1 = _is_request_line if destination_known else _is_word
    for protocol, is_spoken in (
        (Protocol.TLS, _is_client_hello),
        (Protocol.HTTP2, _is_preface),
        (Protocol.HTTP1, is_http1),
    ):
        spoken = is_spoken(data)
        if spoken is None:
            return None
        if spoken:
            return protocol
    return Protocol.RAW


def _is_client_hello(data: bytes) -> bool | None:
    """A TLS record of a handshake, in it a ClientHello; None: so far."""
    head = data[:6]
    if head[0] != 0x16 or (len(head) > 1 and head[1] != 3) or (len(head) > 2 and head[2] > 3):
        return False
    # at least a handshake header, at most the largest plaintext record
    if len(head) > 4 and not 4 <= int.from_bytes(head[3:5]) <= 1 << 14:
        return False
    return None if len(head) < 6 else head[5] == 1


def _is_preface(data: bytes) -> bool | None:
    head = data[: len(HTTP2_PREFACE)]
    if not HTTP2_PREFACE.startswith(head):
        return False
    return True if head == HTTP2_PREFACE else None


def _is_word(data: bytes) -> bool | None:
    """A token and a space, as a request line begins with."""
    word, space, _ = data[: MAX_METHOD_BYTES + 1].partition(b" ")
    if not _TOKEN.match(word) or (not word and space) or len(word) > MAX_METHOD_BYTES:
        return False
    return True if space else None


def _is_request_line(data: bytes) -> bool | None:
    """A registered method, a target of one of the four forms, and a version."""
    method, space, rest = data[:MAX_BYTES].partition(b" ")
    if not space:
        return None if any(known.startswith(method) for known in _METHODS) else False
    if method not in _METHODS:
        return False
    if not rest:
        return None
    if method == b"CONNECT":
        if not _AUTHORITY.match(rest):
            return False
    else:
        beginning = rest[: max(map(len, _TARGETS))].lower()
        if not beginning.startswith(_TARGETS):
            return None if any(form.startswith(beginning) for form in _TARGETS) else False
    end = _TARGET_END.search(rest)
    if end is None:
        return True if len(data) >= MAX_BYTES else None
    version = rest[end.start() : end.start() + len(_VERSION)]
    if not _VERSION.startswith(version):
        return False
    return True if version == _VERSION or len(data) >= MAX_BYTES else None
