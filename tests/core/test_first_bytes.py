"""First bytes, cut anywhere: the answer is None until it is found, and then never another."""

from __future__ import annotations

import itertools
import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kubetunnel.core.first_bytes import HTTP2_PREFACE, MAX_BYTES, Protocol, recognise


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="api.shop")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


GET = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"

# bytes, what they are where the destination is not known, what where it is
SAMPLES = [
    (GET, Protocol.HTTP1, Protocol.HTTP1),
    (b"GET /%2F//a?b=c HTTP/1.0\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"POST http://api.shop/ HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"GET HTTP://api.shop/ HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"OPTIONS * HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"CONNECT db.shop:5432 HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"CONNECT [fd00::1]:5432 HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"VERSION-CONTROL /a HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (b"GET /" + b"a" * (2 * MAX_BYTES) + b" HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.HTTP1),
    (HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0", Protocol.HTTP2, Protocol.HTTP2),
    (client_hello(), Protocol.TLS, Protocol.TLS),
    (b"\x05\x01\x00\x05\x01\x00\x03\x08api.shop\x00\x50", Protocol.SOCKS5, Protocol.RAW),
    # begins as HTTP does
    (b"BREW /pot HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"get / HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"GET /a b HTTP/1.1\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"GET /\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"OPTIONS rtsp://camera RTSP/1.0\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"GET / RTSP/1.0\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b'CONNECT {"verbose":false}\r\n', Protocol.HTTP1, Protocol.RAW),
    (b"CONNECT\naccept-version:1.2\n\n\0", Protocol.RAW, Protocol.RAW),
    (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Protocol.HTTP1, Protocol.RAW),
    (b"PRINT\r\n", Protocol.RAW, Protocol.RAW),
    # raw
    (b"PING\r\n", Protocol.RAW, Protocol.RAW),
    (b"*1\r\n$4\r\nPING\r\n", Protocol.RAW, Protocol.RAW),
    (b"SSH-2.0-OpenSSH_9.6\r\n", Protocol.RAW, Protocol.RAW),
    (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Protocol.RAW, Protocol.RAW),  # Postgres: SSLRequest
    (b"\x16\x03\x01\x00\x02\x01\x00", Protocol.RAW, Protocol.RAW),
    (b"\x16\x03\x01\x40\x01\x01\x00", Protocol.RAW, Protocol.RAW),
    (b"\x16\x03\x01\x00\x40\x02\x00", Protocol.RAW, Protocol.RAW),  # a ServerHello
    (b"\x16\x03\x09", Protocol.RAW, Protocol.RAW),
    (b"\x16\x54", Protocol.RAW, Protocol.RAW),
    (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00", Protocol.RAW, Protocol.RAW),  # SOCKS4
    (b" GET / HTTP/1.1\r\n", Protocol.RAW, Protocol.RAW),
    (b"\r\n", Protocol.RAW, Protocol.RAW),
    (b"A" * 100, Protocol.RAW, Protocol.RAW),
    (b"GET" + b"X" * 100, Protocol.RAW, Protocol.RAW),
    (b"\xff\xfb\x01", Protocol.RAW, Protocol.RAW),
]


@pytest.mark.parametrize(("data", "unknown", "known"), SAMPLES, ids=[repr(sample[:9]) for sample, *_ in SAMPLES])
def test_is_recognised_wherever_it_is_cut(data: bytes, unknown: Protocol, known: Protocol) -> None:
    for destination_known, expected in ((False, unknown), (True, known)):
        answers = [recognise(data[:n], destination_known=destination_known) for n in range(len(data) + 1)]
        decided_at = answers.index(expected)
        assert answers[:decided_at] == [None] * decided_at
        assert set(answers[decided_at:]) == {expected}


@pytest.mark.parametrize(
    ("data", "bytes_needed"),
    [(b"\x05\x01\x00", 1), (client_hello(), 6), (HTTP2_PREFACE, 24), (GET, 4), (b"\x00\x01", 1), (b"hello world", 6)],
    ids=["SOCKS5", "TLS", "HTTP/2", "HTTP/1", "binary", "words"],
)
def test_takes_no_more_bytes_than_it_needs(data: bytes, bytes_needed: int) -> None:
    assert recognise(data[: bytes_needed - 1], destination_known=False) is None
    assert recognise(data[:bytes_needed], destination_known=False) is not None


@pytest.mark.parametrize("data", [b"hello", b"HELLO", b"PING", b"\n", b"{", b"*1", b"x"])
def test_raw_bytes_with_a_destination_are_not_waited_for(data: bytes) -> None:
    assert recognise(data, destination_known=True) is Protocol.RAW


BEGINNINGS = st.sampled_from([sample[:n] for sample, _, _ in SAMPLES for n in (0, 3, 6, len(sample))])


@given(st.builds(bytes.__add__, BEGINNINGS, st.binary(max_size=64)), st.booleans())
@example(b"", True)
def test_more_bytes_never_change_an_answer(data: bytes, destination_known: bool) -> None:
    answers = [recognise(data[:n], destination_known=destination_known) for n in range(len(data) + 1)]
    assert len({answer for answer in answers if answer}) <= 1
    assert not any(earlier and not later for earlier, later in itertools.pairwise(answers))


@given(BEGINNINGS, st.sampled_from([b"a", b"/", b" ", b"A", b"\r\n", b"\x00", b" HTTP"]), st.booleans())
def test_there_is_an_answer_within_the_bound(beginning: bytes, filling: bytes, destination_known: bool) -> None:
    data = (beginning + filling * MAX_BYTES)[:MAX_BYTES]
    assert recognise(data, destination_known=destination_known) is not None
