"""HTTP/2 on both sides, and gRPC on it: what happens to one stream leaves the others alone."""

from __future__ import annotations

import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

from kubetunnel.proxy.http.h2_connection import HIGH_WATER_BYTES
from kubetunnel.proxy.http.h2_library import STREAM_WINDOW_BYTES
from tests.proxy.http_playbook import H2Peer, Playbook, stream_bodies

GRPC = ("content-type", "application/grpc")


def h2_book() -> tuple[Playbook, H2Peer]:
    book = Playbook(h2_client=True, h2_upstream=True, requestheaders=stream_bodies, responseheaders=stream_bodies)
    return book, book.h2_client()


def pod_of(book: Playbook, number: int = -1) -> H2Peer:
    pod = book.h2_server(number)
    pod.flush()
    return pod


def go_away(pod: H2Peer, last_stream_id: int) -> None:
    frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=ErrorCodes.NO_ERROR)
    pod.h2._data_to_send += frame.serialize()
    pod.flush()


def leftovers(book: Playbook) -> list[object]:
    client = book.layer.connections[book.client]
    found: list[object] = [*book.layer.streams, *client.streams]  # type: ignore[attr-defined]
    for upstream in book.upstreams:
        if handler := book.layer.connections.get(upstream):
            h2_client = handler.context.layers[-1]
            found += [*h2_client.streams, *h2_client.our_stream_id, *h2_client.their_stream_id]  # type: ignore[attr-defined]
    return found


def test_a_call_with_metadata_and_trailers() -> None:
    book, peer = h2_book()
    call = peer.request("/s/m", GRPC, ("te", "trailers"), ("grpc-timeout", "5S"), method="POST", body=b"in")
    pod = pod_of(book)
    headers = dict(pod.of(h2.events.RequestReceived)[0].headers)
    assert (headers["te"], headers["grpc-timeout"]) == ("trailers", "5S")
    pod.respond(1, GRPC, ("x-initial", "1"), end=False)
    pod.h2.send_data(1, b"out")
    pod.h2.send_headers(1, [("grpc-status", "0"), ("x-final-bin", "AA==")], end_stream=True)
    pod.flush()
    peer.flush()
    assert peer.fields(call)["x-initial"] == "1"
    assert peer.body(call) == b"out"
    assert peer.of(h2.events.TrailersReceived)[0].headers == [("grpc-status", "0"), ("x-final-bin", "AA==")]
    assert leftovers(book) == []


def test_a_trailers_only_response_stays_one_frame() -> None:
    book, peer = h2_book()
    call = peer.request("/s/m", GRPC, method="POST", body=b"in")
    pod_of(book).respond(1, GRPC, ("grpc-status", "12"))
    peer.flush()
    (response,) = peer.of(h2.events.ResponseReceived, call)
    assert response.stream_ended is not None
    assert not peer.of(h2.events.TrailersReceived)


def test_messages_of_a_bidirectional_call_interleave() -> None:
    book, peer = h2_book()
    call = peer.request("/s/m", GRPC, method="POST", end=False)
    pod = pod_of(book)
    pod.respond(1, GRPC, end=False)
    for number in range(5):
        peer.h2.send_data(call, b"%d" % number)
        peer.flush()
        pod.flush()
        assert pod.body(1) == b"01234"[: number + 1]
        pod.h2.send_data(1, b"%d" % number)
        pod.flush()
        peer.flush()
        assert peer.body(call) == b"01234"[: number + 1]
    pod.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)  # the pod ends first
    pod.flush()
    peer.flush()
    assert peer.of(h2.events.StreamEnded, call)
    peer.h2.end_stream(call)
    peer.flush()
    pod.flush()
    assert leftovers(book) == []


def test_a_cancelled_call_is_cancelled_at_the_pod_alone() -> None:
    book, peer = h2_book()
    first = peer.request("/1", GRPC, method="POST", end=False)
    second = peer.request("/2", GRPC, method="POST", end=False)
    pod = pod_of(book)
    peer.h2.reset_stream(first, ErrorCodes.CANCEL)
    peer.flush()
    pod.flush()
    (reset,) = pod.of(h2.events.StreamReset)
    assert (reset.stream_id, reset.error_code) == (1, ErrorCodes.CANCEL)
    pod.respond(3, GRPC, ("grpc-status", "0"))
    peer.h2.end_stream(second)
    peer.flush()
    assert peer.status(second) == "200"
    pod.flush()
    assert leftovers(book) == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_that_the_pod_cancels_is_cancelled_at_the_client_alone(begun: bool) -> None:
    book, peer = h2_book()
    first, second = (peer.request(path, GRPC, method="POST", body=b"in") for path in ("/1", "/2"))
    pod = pod_of(book)
    if begun:
        pod.respond(1, GRPC, end=False)
    pod.h2.reset_stream(1, ErrorCodes.CANCEL)
    pod.flush()
    pod.respond(3, GRPC, ("grpc-status", "0"))
    peer.flush()
    (reset,) = peer.of(h2.events.StreamReset)
    assert (reset.stream_id, reset.error_code) == (first, ErrorCodes.CANCEL)
    assert peer.status(second) == "200"
    assert leftovers(book) == []


def test_another_reset_before_the_response_is_told() -> None:
    book, peer = h2_book()
    call = peer.request("/1", GRPC, method="POST", body=b"in")
    pod = pod_of(book)
    pod.h2.reset_stream(1, ErrorCodes.INTERNAL_ERROR)
    pod.flush()
    peer.flush()
    assert peer.fields(call)["grpc-status"] == "14"
    assert "INTERNAL_ERROR" in peer.fields(call)["grpc-message"]


def test_a_reset_within_the_response_passes() -> None:
    book, peer = h2_book()
    get = peer.request()
    pod = pod_of(book)
    pod.respond(1, end=False)
    pod.h2.send_data(1, b"half")
    pod.h2.reset_stream(1, ErrorCodes.ENHANCE_YOUR_CALM)
    pod.flush()
    peer.flush()
    assert peer.of(h2.events.StreamReset)[0].error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert not peer.of(h2.events.StreamEnded, get)


def test_a_pod_that_stops_the_upload_after_its_answer_is_no_error() -> None:
    book, peer = h2_book()
    call = peer.request("/1", method="POST", body=b"in", end=False)
    pod = pod_of(book)
    pod.h2.send_headers(1, [(":status", "413")], end_stream=True)
    pod.h2.reset_stream(1, ErrorCodes.NO_ERROR)
    pod.flush()
    peer.flush()
    assert peer.status(call) == "413"
    assert peer.of(h2.events.StreamEnded, call)
    assert not peer.of(h2.events.StreamReset)
    peer.h2.send_data(call, b"more", end_stream=True)
    peer.flush()
    assert leftovers(book) == []


def test_a_goaway_fails_nothing_that_the_pod_has_taken() -> None:
    book, peer = h2_book()
    first, second = (peer.request(p, GRPC, method="POST", body=b"in") for p in ("/1", "/2"))
    old = pod_of(book)
    go_away(old, 1)
    assert len(book.upstreams) == 2
    new = pod_of(book)
    assert dict(new.of(h2.events.RequestReceived)[0].headers)[":path"] == "/2"
    assert new.body(1) == b"in"
    new.respond(1, ("x", "new"))
    third = peer.request("/3")
    assert len(book.upstreams) == 2
    new.flush()
    new.respond(3, ("x", "new"))
    old.respond(1, ("x", "old"))
    peer.flush()
    assert [peer.fields(s)["x"] for s in (first, second, third)] == ["old", "new", "new"]
    assert book.closed == [book.upstreams[0]]  # once nobody needs it
    assert leftovers(book) == []


def test_a_goaway_on_an_idle_upstream_closes_it() -> None:
    book, peer = h2_book()
    peer.request()
    pod = pod_of(book)
    pod.respond(1)
    go_away(pod, 2**31 - 1)
    assert book.closed == book.upstreams
    peer.request()
    assert len(book.upstreams) == 2


def test_a_refused_stream_is_sent_again_on_the_same_upstream() -> None:
    book, peer = h2_book()
    call = peer.request("/1", method="POST", body=b"in")
    pod = pod_of(book)
    pod.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
    pod.flush()
    assert len(book.upstreams) == 1
    assert pod.body(3) == b"in"
    pod.respond(3)
    peer.flush()
    assert peer.status(call) == "200"
    assert leftovers(book) == []


def test_a_refused_stream_that_cannot_be_sent_again_is_refused_to_the_client() -> None:
    book, peer = h2_book()
    peer.request("/1", method="POST", end=False)
    pod = pod_of(book)
    for _ in range(5):
        peer.h2.send_data(1, b"a" * 16384)
        peer.flush()
    pod.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
    pod.flush()
    peer.flush()
    assert peer.of(h2.events.StreamReset)[0].error_code == ErrorCodes.REFUSED_STREAM


def test_an_upstream_that_ends_is_told_to_each_of_its_streams() -> None:
    book, peer = h2_book()
    begun, waiting = (peer.request(p, method="POST", body=b"in") for p in ("/1", "/2"))
    pod = pod_of(book)
    pod.respond(1, end=False)
    book.upstream_closes()
    peer.flush()
    assert [e.stream_id for e in peer.of(h2.events.StreamReset)] == [begun]
    assert peer.status(waiting) == "502"
    assert leftovers(book) == []


def test_streams_beyond_the_pods_limit_wait_and_all_are_served() -> None:
    book, peer = h2_book()
    for _ in range(30):
        peer.request("/", method="POST", body=b"in")
    pod = book.h2_server()
    pod.h2.update_settings({3: 2})  # MAX_CONCURRENT_STREAMS
    pod.flush()
    for number in range(30):
        assert pod.body(2 * number + 1) == b"in"
        pod.respond(2 * number + 1)
    peer.flush()
    assert all(peer.status(2 * n + 1) == "200" for n in range(30))
    assert leftovers(book) == []


def test_a_client_that_goes_away_still_gets_its_answers() -> None:
    book, peer = h2_book()
    get = peer.request()
    pod = pod_of(book)
    go_away(peer, 0)
    assert not book.closed
    pod.respond(1, end=False)
    pod.h2.send_data(1, b"ok", end_stream=True)
    pod.flush()
    peer.flush()
    assert peer.body(get) == b"ok"
    assert book.closed == [book.client]


# flow control


def windowless(book: Playbook) -> H2Peer:
    """A client that takes nothing of a body by itself."""
    peer = book.h2_client()
    peer.flush()
    return peer


def test_a_slow_reader_stops_an_http2_sender() -> None:
    book, _ = h2_book()
    peer = windowless(book)
    slow, other = peer.request("/slow"), peer.request("/other")
    pod = pod_of(book)
    pod.respond(1, end=False)
    sent = 0
    while window := min(pod.h2.local_flow_control_window(1), 16384):
        pod.h2.send_data(1, b"x" * window)
        sent += window
        pod.flush()
        assert sent <= HIGH_WATER_BYTES + 2 * STREAM_WINDOW_BYTES
    assert sent >= STREAM_WINDOW_BYTES
    pod.respond(3, ("x", "y"))  # others go on
    peer.flush()
    assert peer.status(other) == "200"
    taken = 0
    while taken < sent:
        got = len(peer.body(slow)) - taken
        assert got > 0
        peer.h2.acknowledge_received_data(got, slow)
        taken += got
        peer.flush()
    pod.flush()
    assert pod.h2.local_flow_control_window(1) > 0
    pod.h2.end_stream(1)
    pod.flush()
    peer.flush()
    assert peer.of(h2.events.StreamEnded, slow)
    assert leftovers(book) == []


def test_a_slow_reader_stops_an_http1_sender() -> None:
    book = Playbook(h2_client=True, requestheaders=stream_bodies, responseheaders=stream_bodies)
    peer = windowless(book)
    slow = peer.request()
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
    sent = 0
    while book.upstreams[0] not in book.paused:
        book.from_upstream(b"x" * 65536)
        sent += 65536
        assert sent < HIGH_WATER_BYTES + (1 << 20)
    peer.flush()
    while book.upstreams[0] in book.paused:
        got = len(peer.body(slow))
        peer.events.clear()
        peer.h2.acknowledge_received_data(got, slow)
        peer.flush()


def test_a_reader_that_gives_up_leaves_nothing_stopped() -> None:
    book = Playbook(h2_upstream=True, requestheaders=stream_bodies, responseheaders=stream_bodies)
    book.from_client(b"POST / HTTP/1.1\r\nHost: api.shop\r\nContent-Length: 10000000\r\n\r\n")
    pod = pod_of(book)
    for _ in range(30):
        book.from_client(b"x" * 65536)
    assert book.paused == {book.client}
    pod.h2.reset_stream(1, ErrorCodes.INTERNAL_ERROR)
    pod.flush()
    assert not book.paused
    assert book.to_client().startswith(b"HTTP/1.1 502 ")
