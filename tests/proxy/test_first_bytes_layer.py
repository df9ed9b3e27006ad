"""The layer that waits for first bytes: asks once, with the answer; nothing undecided is left hanging."""

from __future__ import annotations

import pytest
from mitmproxy.proxy import commands, events

from kubetunnel.core.first_bytes import Protocol
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from tests.proxy.playbook import Playbook, Recorder, make_context, open_server


def playbook(*, known: bool) -> Playbook:
    context = make_context()
    if known:
        open_server(context)
    book = Playbook(FirstBytesLayer(context), lambda data: Recorder(data.context))
    assert book.start() == []
    return book


def protocol(book: Playbook) -> Protocol | None:
    assert isinstance(book.layer, FirstBytesLayer)
    return book.layer.protocol


def recorder(book: Playbook) -> Recorder:
    assert isinstance(book.layer, FirstBytesLayer)
    assert isinstance(book.layer.layer, Recorder)
    return book.layer.layer


@pytest.mark.parametrize("known", [True, False])
def test_asks_once_however_the_request_is_cut(known: bool) -> None:
    request = b"GET /a HTTP/1.1\r\nHost: api.shop\r\n\r\n"
    for cut in range(len(request)):
        book = playbook(known=known)
        book.from_client(request[:cut])
        book.from_client(request[cut:])
        assert protocol(book) is Protocol.HTTP1
        assert book.hooks() == ["next_layer"]
        assert recorder(book).kinds()[0] is events.Start
        assert recorder(book).data(book.context.client) == request


def test_server_that_speaks_first_is_raw() -> None:
    book = playbook(known=True)
    book.from_server(b"220 hello\r\n")
    assert protocol(book) is Protocol.RAW
    assert recorder(book).data(book.context.server) == b"220 hello\r\n"


def test_server_that_speaks_into_an_undecided_beginning_is_raw() -> None:
    book = playbook(known=True)
    book.from_client(b"G")
    book.from_server(b"220 hello\r\n")
    assert protocol(book) is Protocol.RAW


@pytest.mark.parametrize("data", [b"", b"G", b"GET /"])
def test_client_that_finishes_undecided_is_raw(data: bytes) -> None:
    book = playbook(known=True)
    if data:
        book.from_client(data)
    book.closed(book.context.client)
    assert protocol(book) is Protocol.RAW
    assert recorder(book).kinds()[-1] is events.ConnectionClosed
    assert recorder(book).data(book.context.client) == data


def test_client_that_finishes_without_a_destination_is_closed() -> None:
    book = playbook(known=False)
    book.from_client(b"G")
    book.closed(book.context.client)
    assert book.closes(book.context.client) == ["whole"]
    assert book.hooks() == []


def test_silence_after_an_undecided_beginning_is_raw() -> None:
    book = playbook(known=True)
    book.from_client(b"G")
    assert protocol(book) is None
    book.woken()
    assert protocol(book) is Protocol.RAW
    assert recorder(book).data(book.context.client) == b"G"


def test_silence_counts_from_the_last_bytes() -> None:
    book = playbook(known=True)
    book.from_client(b"G")
    book.from_client(b"E")
    assert len([c for c in book.commands if isinstance(c, commands.RequestWakeup)]) == 1
    assert len(book.woken()) == 1, "asks for another wakeup"
    assert protocol(book) is None
    book.woken()
    assert protocol(book) is Protocol.RAW


def test_a_client_without_a_destination_may_take_its_time() -> None:
    book = playbook(known=False)
    assert book.from_client(b"GE") == []


def test_late_wakeup_is_not_told_to_the_next_layer() -> None:
    book = playbook(known=True)
    book.from_client(b"G")
    book.from_client(b"ET / HTTP/1.1\r\n\r\n")
    told = len(recorder(book).events)
    assert book.woken() == []
    assert len(recorder(book).events) == told


def test_server_that_closes_unheard_leaves_the_client_a_moment_to_ask() -> None:
    book = playbook(known=True)
    book.closed(book.context.server)
    assert protocol(book) is None
    book.from_client(b"GET / HTTP/1.1\r\n\r\n")
    assert protocol(book) is Protocol.HTTP1
    book = playbook(known=True)
    book.closed(book.context.server)
    book.woken()
    assert protocol(book) is Protocol.RAW
    assert recorder(book).kinds() == [events.Start, events.ConnectionClosed]


SETTINGS = bytes.fromhex("000012 04 00 00000000 0003 00000080 0004 00010000 0005 00ffffff")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, len(SETTINGS)])
def test_http2_settings_are_no_speech_of_a_server(size: int) -> None:
    book = playbook(known=True)
    book.from_server(SETTINGS[:size])
    assert protocol(book) is None
    book.from_client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert protocol(book) is Protocol.HTTP2
    assert recorder(book).data(book.context.server) == SETTINGS[:size]
    silent = playbook(known=True)
    silent.from_server(SETTINGS[:size])
    silent.woken()
    assert protocol(silent) is Protocol.RAW


@pytest.mark.parametrize(
    "greeting",
    [
        b"> ",
        b"\x0a",
        b"\x4a\x00\x00\x00\x0a8.0.36\x00",  # MySQL's: length, sequence number, version
        b"\x00\x00\x12\x05",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x01",
    ],
)
def test_other_servers_that_speak_first_are_raw_at_once(greeting: bytes) -> None:
    book = playbook(known=True)
    book.from_server(greeting)
    assert protocol(book) is Protocol.RAW


def test_a_client_that_waits_for_a_server_that_did_not_open_is_told_so() -> None:
    context = make_context()
    context.server.address = ("db.shop", 5432)
    context.server.error = "refused"
    book = Playbook(FirstBytesLayer(context), lambda data: Recorder(data.context))
    book.start()
    assert protocol(book) is None
    book.woken()
    assert protocol(book) is Protocol.RAW
