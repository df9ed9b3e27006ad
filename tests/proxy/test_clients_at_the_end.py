"""A client that keeps its connection learns that the tunnel ends, and loses nothing by it."""

from __future__ import annotations

from hyperframe.frame import DataFrame, Frame, GoAwayFrame

from tests.proxy.http_playbook import Playbook

REQUEST = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_http1_is_told_with_the_next_answer() -> None:
    book = Playbook()
    book.from_client(REQUEST)
    book.from_upstream(OK)
    assert book.to_client() == OK
    book.is_ending = True
    assert book.client not in book.closed
    book.from_client(REQUEST)
    book.from_upstream(OK)
    assert book.to_client() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    assert book.client in book.closed


def test_an_upgrade_is_left_as_it_is() -> None:
    book = Playbook()
    book.is_ending = True
    book.from_client(b"GET / HTTP/1.1\r\nHost: api.shop\r\nConnection: Upgrade\r\nUpgrade: mine\r\n\r\n")
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mine\r\n\r\n"
    book.from_upstream(switching)
    assert book.to_client() == switching


def frames(data: bytes) -> list[Frame]:
    found = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + size]))
        found.append(frame)
        data = data[9 + size :]
    return found


def test_http2_is_told_once_and_every_stream_is_answered() -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    first, second = peer.request(), peer.request()
    book.is_ending = True
    book.from_upstream(OK, 0)
    sent = frames(book.to_client())
    third = peer.h2.get_next_available_stream_id()  # under way before the client has read that
    peer.h2.send_headers(
        third, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "api.shop")], True
    )
    book.from_client(peer.h2.data_to_send())
    book.from_upstream(OK, 1)
    book.from_upstream(OK, 0)
    sent += frames(book.to_client())
    (farewell,) = (frame for frame in sent if isinstance(frame, GoAwayFrame))
    assert (farewell.last_stream_id, farewell.error_code) == (2**31 - 1, 0)
    assert {frame.stream_id for frame in sent if isinstance(frame, DataFrame) and frame.data == b"ok"} == {
        first, second, third,
    }  # fmt: skip
    assert book.client not in book.closed
