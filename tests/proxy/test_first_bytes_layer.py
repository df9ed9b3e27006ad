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
