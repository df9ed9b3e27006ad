"""The SOCKS5 handshake, cut anywhere, and each way in which it can fail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.modes import Socks5AuthHook

from kubetunnel.core.errors import KubeTunnelError, ServiceNotFound, UpstreamReset
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from kubetunnel.proxy.raw.relay import Relay
from kubetunnel.proxy.raw.traffic import Traffic
from kubetunnel.proxy.refusals import CODES
from kubetunnel.proxy.socks5 import Socks5Layer
from tests.proxy.playbook import Playbook, Recorder, make_context

GREETING = b"\x05\x01\x00"
NAME = b"\x05\x01\x00\x03\x08api.shop\x00\x50"
IPV4 = b"\x05\x01\x00\x01\x0a\x08\x00\x02\x15\x38"
IPV6 = b"\x05\x01\x00\x04" + bytes.fromhex("fd00000000000000000000000000000a") + b"\x01\xbb"
CHOSEN = b"\x05\x00"
SUCCEEDED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def refused(code: int) -> bytes:
    return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])


class Surroundings:
    """Why upstreams fail, and what becomes of the client's transport."""

    def __init__(self, error: KubeTunnelError | None = None) -> None:
        self.error = error
        self.reset_clients: list[Client] = []

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        return self.error if connection.address == ("api.shop", 80) else None

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        return None

    def reset(self, client: Client) -> None:
        self.reset_clients.append(client)

    def take(self, context: Context, traffic: Traffic) -> Relay | None:
        raise AssertionError("no bytes are relayed here")

    def watch(self, context: Context, traffic: Traffic) -> None: ...
    def forget(self, traffic: Traffic) -> None: ...
    def is_closed(self, context: Context, connection: Connection) -> bool:
        return False


def playbook(error: KubeTunnelError | None = None) -> tuple[Playbook, Surroundings]:
    surroundings = Surroundings(error)
    context = make_context()
    book = Playbook(Socks5Layer(context, surroundings, surroundings), lambda data: Recorder(data.context))
    book.start()
    return book, surroundings


def inner(book: Playbook) -> Recorder:
    assert isinstance(book.layer, Socks5Layer)
    assert isinstance(book.layer.child, FirstBytesLayer)
    assert isinstance(book.layer.child.layer, Recorder)
    return book.layer.child.layer


@pytest.mark.parametrize(
    ("request_", "address"),
    [
        (NAME, ("api.shop", 80)),
        (IPV4, ("10.8.0.2", 5432)),
        (IPV6, ("fd00::a", 443)),
        (b"\x05\x01\x00\x03\xff" + b"a" * 255 + b"\x00\x01", ("a" * 255, 1)),
    ],
)
def test_connects(request_: bytes, address: tuple[str, int]) -> None:
    book, _ = playbook()
    book.from_client(GREETING)
    assert book.sent(book.context.client) == CHOSEN
    book.from_client(request_)
    assert book.context.server.address == address
    assert book.sent(book.context.client) == CHOSEN, "not before it is open"
    book.opened()
    assert book.sent(book.context.client) == CHOSEN + SUCCEEDED
    book.from_client(b"\x00words")
    assert inner(book).data(book.context.client) == b"\x00words"


@given(st.lists(st.integers(0, len(GREETING + NAME) + 6)))
def test_wherever_it_is_cut(cuts: list[int]) -> None:
    """The first words come right behind, as from a client that does not wait."""
    whole = GREETING + NAME + b"\x00early"
    book, _ = playbook()
    opened = False
    places = [0, *sorted(cuts), len(whole)]
    for start, end in itertools.pairwise(places):
        book.from_client(whole[start:end])
        if not opened and any(isinstance(command, commands.OpenConnection) for command in book.commands):
            opened = True
            book.opened()
    assert book.sent(book.context.client) == CHOSEN + SUCCEEDED
    assert inner(book).data(book.context.client) == b"\x00early"


def test_words_that_come_while_it_opens_wait() -> None:
    book, _ = playbook()
    book.from_client(GREETING + NAME + b"\x00one")
    book.from_client(b"two")
    assert book.opened()[0].__class__ is commands.SendData
    assert inner(book).data(book.context.client) == b"\x00onetwo"


@pytest.mark.parametrize("reason", sorted(CODES))
def test_each_refusal_has_its_reply(reason: str) -> None:
    kind = next(c for c in KubeTunnelError.__subclasses__() if c.__name__ == reason)
    book, surroundings = playbook(kind("refused"))
    book.from_client(GREETING + NAME)
    book.opened("refused")
    code = CODES[reason].socks5
    expected = b"" if code is None else refused(code)
    assert book.sent(book.context.client) == CHOSEN + expected
    assert surroundings.reset_clients == ([book.context.client] if code is None else [])
    assert book.closes(book.context.client) == ["whole"]
    assert book.hooks() == ["tcp_start", "tcp_error"]


def test_refusal_is_shown_as_a_flow() -> None:
    book, _ = playbook(ServiceNotFound("There is no Service api in shop."))
    book.from_client(GREETING + NAME)
    book.opened("refused")
    hook = next(c for c in book.commands if isinstance(c, commands.StartHook) and c.name == "tcp_error")
    (flow,) = hook.args()
    assert flow.error.msg == "There is no Service api in shop."
    assert flow.comment == "ServiceNotFound"
    assert flow.server_conn.address == ("api.shop", 80)
    assert not flow.live


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x05\x01\x02", b"\x05\xff"),  # only passwords
        (b"\x05\x00", b"\x05\xff"),  # no method at all
        (GREETING + b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", CHOSEN + refused(7)),  # BIND
        (GREETING + b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", CHOSEN + refused(7)),  # UDP ASSOCIATE
        (GREETING + b"\x05\x09\x00\x01\x7f\x00\x00\x01\x00\x50", CHOSEN + refused(7)),
        (GREETING + b"\x05\x01\x00\x02\x00", CHOSEN + refused(8)),  # address type
        (GREETING + b"\x05\x01\x00\x03\x00\x00\x50", CHOSEN + refused(4)),  # empty name
        (GREETING + b"\x05\x01\x00\x03\x02\xc3\xa9\x00\x50", CHOSEN + refused(4)),  # not ASCII
        (b"\x04\x01\x00", b""),
        (GREETING + b"\x04\x01\x00\x01\x7f", CHOSEN),
    ],
)
def test_bad_requests(sent: bytes, answer: bytes) -> None:
    book, _ = playbook()
    book.from_client(sent)
    assert book.sent(book.context.client) == answer
    assert book.closes(book.context.client) == ["whole"]
    assert not any(isinstance(command, commands.OpenConnection) for command in book.commands)
    book.from_client(b"more")
    assert book.sent(book.context.client) == answer


def test_client_that_leaves_in_the_handshake() -> None:
    for cut in range(len(GREETING + NAME)):
        book, _ = playbook()
        book.from_client((GREETING + NAME)[:cut])
        book.closed(book.context.client)
        assert book.closes(book.context.client) == ["whole"]


def test_client_that_leaves_while_it_opens() -> None:
    book, _ = playbook()
    book.from_client(GREETING + NAME)
    book.closed(book.context.client)
    book.opened()
    assert inner(book).events, "the next layer ends it"


def test_failure_that_nobody_explains_is_a_reset() -> None:
    book, surroundings = playbook(UpstreamReset("gone"))
    book.from_client(GREETING + IPV4)
    book.opened("connection cancelled")
    assert book.sent(book.context.client) == CHOSEN
    assert surroundings.reset_clients == [book.context.client]


@pytest.mark.parametrize(("password", "valid"), [(b"right", True), (b"wrong", False)])
def test_proxyauth_holds_here_too(password: bytes, valid: bool) -> None:
    surroundings = Surroundings()
    context = make_context()
    context.options.add_option("proxyauth", str, "user:right", "")
    book = Playbook(Socks5Layer(context, surroundings, surroundings), held=frozenset({"socks5_auth"}))
    book.start()
    whole = b"\x05\x02\x00\x02" + b"\x01\x04user" + bytes([len(password)]) + password
    for byte in whole:
        book.from_client(bytes([byte]))
    assert book.sent(context.client) == b"\x05\x02"
    data = book.last(Socks5AuthHook).data
    assert (data.username, data.password) == ("user", password.decode())
    data.valid = valid
    book.completed("socks5_auth")
    assert book.sent(context.client) == b"\x05\x02\x01" + (b"\x00" if valid else b"\x01")
    assert book.closes(context.client) == ([] if valid else ["whole"])
