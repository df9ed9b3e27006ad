"""The lowest layer: what is known to be wanted is opened at once, but not for a request that comes at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mitmproxy.proxy import commands, events

from kubetunnel.core.errors import NoReadyEndpoints
from kubetunnel.proxy.connection import REQUEST_DELAY_S, KubeConnection
from kubetunnel.proxy.refused import RefusedLayer
from tests.proxy.playbook import Playbook, Recorder, make_context
from tests.proxy.test_socks5 import Surroundings

REQUEST = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def playbook(*, known: bool = True, replays: bool = False) -> tuple[Playbook, list[Recorder]]:
    """And the layers that came next."""
    context = make_context()
    if replays:
        context.options.add_option("server_replay", Sequence[str], ["flows.mitm"], "")
    if known:
        context.server.address = ("db.shop", 5432)
    above: list[Recorder] = []

    def make_layer(data: object) -> Recorder:
        above.append(Recorder(context))
        return above[-1]

    book = Playbook(KubeConnection(context), make_layer)
    book.start()
    return book, above


def opened(book: Playbook) -> int:
    return sum(isinstance(command, commands.OpenConnection) for command in book.commands)


def test_without_a_destination_nothing_is_opened_nor_waited_for() -> None:
    book, above = playbook(known=False)
    assert book.commands == []
    book.from_client(REQUEST)
    assert opened(book) == 0
    assert above[0].data(book.context.client) == REQUEST


@pytest.mark.parametrize("request_", [REQUEST, PREFACE])
def test_a_request_that_comes_at_once_opens_what_it_needs_itself(request_: bytes) -> None:
    book, above = playbook()
    book.from_client(request_)
    assert opened(book) == 0
    assert above[0].data(book.context.client) == request_
    book.woken()
    assert opened(book) == 0
    assert events.Wakeup not in above[0].kinds(), "it is nothing to the layers above"


def test_a_silent_client_may_wait_for_the_server() -> None:
    book, above = playbook()
    assert [type(command) for command in book.commands] == [commands.RequestWakeup]
    assert book.last(commands.RequestWakeup).delay == REQUEST_DELAY_S
    book.woken()
    assert opened(book) == 1
    book.opened()
    book.from_server(b"220 hello\r\n")
    assert above[0].data(book.context.server) == b"220 hello\r\n"


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02\x00\x01", b"\x00raw", b"G"])
def test_other_first_bytes_open_it_and_wait(first: bytes) -> None:
    book, above = playbook()
    book.from_client(first)
    book.from_client(b"more")
    assert (opened(book), above) == (1, [])
    book.opened()
    if not above:
        book.woken()  # "Gmore" may be anything
    assert above[0].data(book.context.client) == first + b"more"
    assert opened(book) == 1


def test_a_client_that_only_listens_gets_to_hear_the_server() -> None:
    book, above = playbook()
    book.closed(book.context.client)
    book.opened()
    assert above[0].kinds() == [events.Start, events.ConnectionClosed]


def test_recorded_answers_need_no_pod() -> None:
    book, above = playbook(replays=True)
    assert book.commands == []
    book.from_client(REQUEST)
    assert opened(book) == 0
    assert above[0].data(book.context.client) == REQUEST


def test_a_refused_client_is_reset_and_shown() -> None:
    context = make_context()
    context.server.address = ("db.shop", 5432)
    surroundings = Surroundings()
    book = Playbook(RefusedLayer(context, NoReadyEndpoints("None is ready."), surroundings))
    book.start()
    assert surroundings.reset_clients == [context.client]
    assert book.hooks() == ["tcp_start", "tcp_error"]
    assert book.closes(context.client) == ["whole"]
    book.from_client(b"still sending")
    assert book.sent(context.server) == b""
