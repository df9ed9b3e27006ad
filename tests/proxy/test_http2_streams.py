"""HTTP/2 on both sides, and gRPC on it: what happens to one stream leaves the others alone."""

from __future__ import annotations

import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame
from mitmproxy.connection import Connection
from mitmproxy.proxy import events

from kubetunnel.core.errors import UpstreamReset
from kubetunnel.proxy.http.h2_connection import HIGH_WATER_BYTES
from kubetunnel.proxy.http.h2_library import STREAM_WINDOW_BYTES
from kubetunnel.proxy.http.policy import IDLE_TIMEOUT_S, ExchangePolicy, HttpPolicy
from tests.proxy.http_playbook import H2Peer, Playbook, stream_bodies

GRPC = ("content-type", "application/grpc")
READ_TIMEOUT_S = 3.0


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


def test_a_call_that_loses_its_pod_after_the_headers_ends_with_a_status() -> None:
    """RST_STREAM would be INTERNAL to gRPC clients, which nobody retries."""
    book, peer = h2_book()
    unary = peer.request("/s/unary", GRPC, method="POST", body=b"in")
    stream = peer.request("/s/bidi", GRPC, method="POST", body=b"in", end=False)
    pod = pod_of(book)
    for number in (1, 3):
        pod.respond(number, GRPC, end=False)
        pod.h2.send_data(number, b"begun")
    pod.flush()
    book.stream_errors[book.upstreams[0]] = UpstreamReset("The pod was deleted.", command="kubectl get pod")
    book.upstream_closes()
    peer.flush()
    for call in (unary, stream):
        assert peer.body(call) == b"begun"
        (trailers,) = peer.of(h2.events.TrailersReceived, call)
        assert dict(trailers.headers) == {
            "grpc-status": "14",
            "grpc-message": "The pod was deleted. See: kubectl get pod",
            "x-kube-tunnel-error": "UpstreamReset",
        }
    assert not peer.of(h2.events.StreamReset)
    assert book.hook_names.count("error") == 2
    peer.h2.send_data(stream, b"more", end_stream=True)
    peer.flush()
    assert leftovers(book) == []


def test_a_plain_response_that_loses_its_pod_is_reset() -> None:
    book, peer = h2_book()
    get = peer.request()
    pod = pod_of(book)
    pod.respond(1, end=False)
    pod.h2.send_data(1, b"begun")
    pod.flush()
    book.upstream_closes()
    peer.flush()
    assert [e.stream_id for e in peer.of(h2.events.StreamReset)] == [get]
    assert not peer.of(h2.events.StreamEnded)


def connect(peer: H2Peer, *fields: tuple[str, str]) -> int:
    stream_id = peer.h2.get_next_available_stream_id()
    peer.h2.config.validate_outbound_headers = False  # the library knows of no CONNECT (RFC 9113 section 8.5)
    peer.h2.send_headers(stream_id, [(":method", "CONNECT"), (":authority", "db.shop:5432"), *fields])
    peer.flush()
    return stream_id


@pytest.mark.parametrize("fields", [(), ((":scheme", "http"), (":path", "/"), (":protocol", "websocket"))])
def test_connect_is_refused_and_the_connection_goes_on(fields: tuple[tuple[str, str], ...]) -> None:
    book, peer = h2_book()
    before = peer.request("/before")
    tunnel = connect(peer, *fields)
    assert peer.status(tunnel) == "501"
    assert peer.fields(tunnel)["x-kube-tunnel-error"] == "NotForwardable"
    assert peer.of(h2.events.StreamEnded, tunnel)
    after = peer.request("/after")
    pod = pod_of(book)
    pod.respond(1)
    pod.respond(3)
    peer.flush()
    assert [peer.status(s) for s in (before, after)] == ["200", "200"]
    peer.h2.reset_stream(tunnel, ErrorCodes.CANCEL)
    peer.flush()
    assert leftovers(book) == []
    assert not book.closed


def test_forty_requests_of_a_lost_upstream_share_the_next_one() -> None:
    book, peer = h2_book()
    calls = [peer.request(f"/{n}") for n in range(40)]
    pod = book.h2_server()
    pod.flush()
    go_away(pod, 0)
    assert len(book.upstreams) == 2
    new = pod_of(book)
    assert len(new.of(h2.events.RequestReceived)) == 40
    for number in range(40):
        new.respond(2 * number + 1)
    peer.flush()
    assert [peer.status(call) for call in calls] == ["200"] * 40
    assert len(book.upstreams) == 2


def test_forty_requests_whose_used_upstream_ends_share_the_next_one() -> None:
    book, peer = h2_book()
    first = peer.request("/first")
    pod = pod_of(book)
    pod.respond(1)
    calls = [peer.request(f"/{n}") for n in range(40)]
    pod.flush()
    book.upstream_closes()
    assert len(book.upstreams) == 2
    new = pod_of(book)
    for number in range(40):
        new.respond(2 * number + 1)
    peer.flush()
    assert [peer.status(call) for call in (first, *calls)] == ["200"] * 41


def test_an_upstream_that_serves_nobody_is_closed_after_a_while() -> None:
    book, peer = h2_book()
    short, long = peer.request("/short"), peer.request("/long")
    pod = pod_of(book)
    pod.respond(1)
    book.pass_time(10 * IDLE_TIMEOUT_S)
    assert not book.closed, "it still has a stream"
    pod.respond(3)
    book.pass_time(IDLE_TIMEOUT_S - 1)
    between = peer.request("/between")
    pod.flush()
    book.pass_time(2)
    pod.respond(5)
    book.pass_time(IDLE_TIMEOUT_S - 1)
    assert not book.closed
    book.pass_time(1)
    assert book.closed == book.upstreams
    peer.flush()
    assert [peer.status(s) for s in (short, long, between)] == ["200"] * 3
    peer.request("/again")
    assert len(book.upstreams) == 2


def test_a_request_that_goes_while_it_waits_leaves_the_upstream_to_those_on_it() -> None:
    book = Playbook(h2_client=True, h2_upstream=True, open_at_once=False)
    peer = book.h2_client()
    long, gone = peer.request("/long"), peer.request("/gone")
    peer.h2.reset_stream(gone, ErrorCodes.CANCEL)
    peer.flush()
    book.opened()
    pod = pod_of(book)
    book.pass_time(IDLE_TIMEOUT_S)
    assert not book.closed
    pod.respond(1)
    peer.flush()
    assert peer.status(long) == "200"
    book.pass_time(IDLE_TIMEOUT_S)
    assert book.closed == book.upstreams


def test_a_silent_stream_outlives_every_limit() -> None:
    """An hour without a byte, with the limits that a tunnel has: a call, an event stream, an open request."""
    limits = HttpPolicy(ExchangePolicy(response_header_timeout_s=30.0, grpc_timeout_s=30.0))
    hooks = {"requestheaders": stream_bodies, "responseheaders": stream_bodies}
    book = Playbook(h2_client=True, h2_upstream=True, policy=limits, **hooks)
    peer = book.h2_client()
    unanswered = peer.request("/s/bidi", GRPC, method="POST", body=b"in", end=False)
    watch = peer.request("/s/watch", GRPC, method="POST", body=b"in")
    events = peer.request("/events")
    pod = pod_of(book)
    pod.respond(3, GRPC, end=False)
    pod.respond(5, ("content-type", "text/event-stream"), end=False)
    for _ in range(120):
        book.pass_time(30)
    pod.flush()
    assert not book.closed
    assert not pod.of(h2.events.PingReceived), "gRPC servers end connections of those who ping too often"
    assert not pod.of(h2.events.StreamReset)
    pod.respond(1, GRPC, end=False)
    for number in (1, 3, 5):
        pod.h2.send_data(number, b"late", end_stream=True)
    pod.flush()
    peer.flush()
    assert [peer.body(s) for s in (unanswered, watch, events)] == [b"late"] * 3


@pytest.mark.parametrize("streamed", [True, False])
def test_a_stream_that_stops_beside_a_busy_one(streamed: bool) -> None:
    """The pod owes more of two responses: what comes of the one says nothing of the other."""
    hooks = {"responseheaders": stream_bodies} if streamed else {}
    policy = HttpPolicy(ExchangePolicy(read_timeout_s=READ_TIMEOUT_S))
    book = Playbook(h2_client=True, h2_upstream=True, policy=policy, **hooks)
    peer = book.h2_client()
    stopped, busy, call, events_ = (
        peer.request("/stops"), peer.request("/busy"), peer.request("/s/m", GRPC, method="POST", body=b"in"),
        peer.request("/events"),
    )  # fmt: skip
    pod = pod_of(book)
    for number in (1, 3):
        pod.respond(number, ("content-length", "100"), end=False)
    pod.respond(5, GRPC, ("content-length", "100"), end=False)
    pod.respond(7, ("content-type", "text/event-stream"), end=False)
    for second in range(10):
        for number in (1, 3) if second == 0 else (3,):
            pod.h2.send_data(number, b"x")
        pod.flush()
        resets = pod.of(h2.events.StreamReset)
        assert len(resets) == (second >= READ_TIMEOUT_S)
        book.pass_time(1)
    assert [reset.stream_id for reset in pod.of(h2.events.StreamReset)] == [1]
    peer.flush()
    if streamed:
        assert peer.of(h2.events.StreamReset, stopped)
        assert "nothing more of its response came in 3 s" in str(book.flows[0].error)
    else:
        assert (peer.status(stopped), peer.fields(stopped)["x-kube-tunnel-error"]) == ("504", "Timeout")
        assert b"nothing more of its response came in 3 s" in peer.body(stopped)
    pod.h2.send_data(3, b"x" * 90, end_stream=True)
    for number in (5, 7):
        pod.h2.send_data(number, b"x" * 100, end_stream=True)
    pod.flush()
    peer.flush()
    assert [peer.body(stream) for stream in (busy, call, events_)] == [b"x" * 100] * 3
    assert not book.closed
    assert leftovers(book) == []


def fill(peer: H2Peer, stream_id: int) -> None:
    """Sends of a body whatever may be sent."""
    while (window := min(peer.h2.local_flow_control_window(stream_id), 16384)) > 0:
        peer.h2.send_data(stream_id, b"x" * window)
        peer.flush()


def unread_bytes(book: Playbook, connection: Connection) -> int:
    """How much of the window of a connection to us is not given back."""
    h2_conn = book.layer.connections[connection].context.layers[-1].h2_conn  # type: ignore[attr-defined]
    window = h2_conn._inbound_flow_control_window_manager
    unread: int = window.max_window_size - window.current_window_size - window._bytes_processed
    return unread


def take(peer: H2Peer) -> None:
    """Reads whatever comes."""
    peer.flush()
    while received := peer.of(h2.events.DataReceived):
        peer.events.clear()
        for data in received:
            peer.h2.acknowledge_received_data(data.flow_controlled_length, data.stream_id)
        peer.flush()


def test_a_call_that_waits_both_ways_goes_on_both_ways() -> None:
    """A client that sends and sends before it reads what the pod answers to that."""
    book, peer = h2_book()
    call = peer.request("/s/m", GRPC, method="POST", end=False)
    pod = pod_of(book)
    pod.respond(1, GRPC, end=False)
    fill(peer, call)
    fill(pod, 1)
    assert peer.h2.local_flow_control_window(call) == pod.h2.local_flow_control_window(1) == 0
    take(peer)
    take(pod)
    peer.flush()
    assert peer.h2.local_flow_control_window(call) > 0
    assert pod.h2.local_flow_control_window(1) > 0


WRITE_TIMEOUT_S = 3.0


def uploading(*fields: tuple[str, str]) -> tuple[Playbook, H2Peer, H2Peer, int]:
    """A client that sends more than its pod takes, beside another stream."""
    policy = HttpPolicy(ExchangePolicy(response_header_timeout_s=WRITE_TIMEOUT_S, write_timeout_s=WRITE_TIMEOUT_S))
    hooks = {"requestheaders": stream_bodies, "responseheaders": stream_bodies}
    book = Playbook(h2_client=True, h2_upstream=True, policy=policy, **hooks)
    peer = book.h2_client()
    upload = peer.request("/upload", *fields, method="PUT", end=False)
    pod = pod_of(book)
    fill(peer, upload)
    return book, peer, pod, upload


def test_a_pod_that_takes_nothing_of_one_request() -> None:
    book, peer, pod, upload = uploading()
    other = peer.request("/other")
    pod.flush()
    pod.respond(3, ("content-type", "text/event-stream"), end=False)
    book.pass_time(WRITE_TIMEOUT_S - 0.1)
    assert peer.status(upload) is None
    book.pass_time(0.1)
    peer.flush()
    assert (peer.status(upload), peer.fields(upload)["x-kube-tunnel-error"]) == ("504", "Timeout")
    assert b"took nothing of what was sent to it for 3 s" in peer.body(upload)
    pod.flush()
    assert [(reset.stream_id, reset.error_code) for reset in pod.of(h2.events.StreamReset)] == [(1, ErrorCodes.CANCEL)]
    pod.h2.send_data(3, b"late", end_stream=True)
    pod.flush()
    peer.flush()
    assert peer.body(other) == b"late"
    assert not book.closed
    if not peer.of(h2.events.StreamReset, upload):  # what still comes of it is read, and dropped
        assert peer.h2.local_flow_control_window(upload) > 0
        peer.h2.end_stream(upload)
        peer.flush()
    assert leftovers(book) == []


def test_an_upload_that_waits_can_be_cancelled() -> None:
    book, peer, pod, upload = uploading()
    other = peer.h2.get_next_available_stream_id()
    peer.h2.reset_stream(upload, ErrorCodes.CANCEL)
    assert peer.request("/other") == other  # in the same read
    pod.flush()
    (reset,) = pod.of(h2.events.StreamReset)
    assert (reset.stream_id, reset.error_code) == (1, ErrorCodes.CANCEL)
    pod.respond(3)
    peer.flush()
    assert peer.status(other) == "200"
    assert unread_bytes(book, book.client) == 0
    assert leftovers(book) == []


def test_the_rest_of_a_request_that_a_going_pod_does_not_take_is_taken() -> None:
    book, peer = h2_book()
    watch = peer.request("/watch")
    pod = pod_of(book)
    pod.respond(1, end=False)
    upload = peer.request("/upload", method="PUT", end=False)
    fill(peer, upload)
    go_away(pod, 1)
    peer.flush()
    assert peer.status(upload) == "502"
    assert peer.h2.local_flow_control_window(upload) > 0
    peer.h2.end_stream(upload)
    pod.h2.end_stream(1)
    pod.flush()
    peer.flush()
    assert peer.of(h2.events.StreamEnded, watch)
    assert leftovers(book) == []


def test_the_rest_of_a_request_that_lost_its_pod_is_taken() -> None:
    book, peer, _, upload = uploading()
    assert not peer.h2.local_flow_control_window(upload)
    book.upstream_closes()
    peer.flush()
    assert peer.status(upload) == "502"
    assert peer.h2.local_flow_control_window(upload) > 0
    peer.h2.end_stream(upload)
    peer.flush()
    assert leftovers(book) == []


def test_a_pod_that_takes_a_request_slowly_is_waited_for() -> None:
    book, peer, pod, upload = uploading()
    for _ in range(20):
        book.pass_time(WRITE_TIMEOUT_S - 0.5)
        pod.h2.increment_flow_control_window(1024, 1)
        pod.h2.increment_flow_control_window(1024)
        pod.flush()
        fill(peer, upload)
    assert peer.status(upload) is None
    assert not pod.of(h2.events.StreamReset)
    for _ in range(2):
        book.pass_time(WRITE_TIMEOUT_S)
    peer.flush()
    assert peer.status(upload) == "504"


def test_a_call_whose_server_does_not_read_may_wait() -> None:
    book, peer, pod, upload = uploading(GRPC)
    for _ in range(20):
        book.pass_time(WRITE_TIMEOUT_S)
    peer.flush()
    pod.flush()
    assert peer.status(upload) is None
    assert not pod.of(h2.events.StreamReset)


def test_a_stream_whose_client_reads_late_is_not_called_silent() -> None:
    """The pod may send no more of it, which is no silence of the pod's; its time begins when it may."""
    policy = HttpPolicy(ExchangePolicy(read_timeout_s=READ_TIMEOUT_S))
    book = Playbook(h2_client=True, h2_upstream=True, policy=policy, responseheaders=stream_bodies)
    peer = book.h2_client()
    slow = peer.request()
    pod = pod_of(book)
    size = HIGH_WATER_BYTES + STREAM_WINDOW_BYTES
    pod.respond(1, ("content-length", str(10 * size)), end=False)
    while not book.layer._throttled:
        pod.h2.send_data(1, b"x" * (16 << 10))
        pod.flush()
        peer.flush()
    book.pass_time(READ_TIMEOUT_S)
    book.pass_time(READ_TIMEOUT_S - 0.1)
    while book.layer._throttled:
        peer.h2.acknowledge_received_data(1 << 15, slow)
        peer.flush()
    book.pass_time(0.1)
    pod.flush()
    assert not pod.of(h2.events.StreamReset)
    book.pass_time(READ_TIMEOUT_S)
    pod.flush()
    assert pod.of(h2.events.StreamReset)


@pytest.mark.parametrize("ended_by", ["client", "pod", "reset"])
def test_a_stream_that_ends_before_it_is_read_leaves_the_window_to_the_others(ended_by: str) -> None:
    book, peer = h2_book()
    slow = peer.request()
    pod = pod_of(book)
    pod.respond(1, end=False)
    fill(pod, 1)
    assert unread_bytes(book, book.upstreams[0]) > 1 << 20
    if ended_by == "client":
        peer.h2.reset_stream(slow, ErrorCodes.CANCEL)
        peer.flush()
    elif ended_by == "pod":
        pod.h2.end_stream(1)
    else:
        pod.h2.reset_stream(1, ErrorCodes.CANCEL)
    pod.flush()
    assert unread_bytes(book, book.upstreams[0]) == 0
    take(peer)
    assert not book.layer._throttled
    assert leftovers(book) == []


def test_an_upload_that_ends_before_it_is_read_leaves_the_window_to_the_others() -> None:
    book, peer = h2_book()
    upload = peer.request("/upload", method="PUT", end=False)
    pod = pod_of(book)
    fill(peer, upload)
    assert unread_bytes(book, book.client) > 1 << 20
    peer.h2.end_stream(upload)
    peer.flush()
    take(pod)
    pod.respond(1)
    assert unread_bytes(book, book.client) == 0
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


# malformed messages (RFC 9113 section 8.1.1): the end of their stream, and of no other


LENGTH = ("content-length", "9")


@pytest.mark.parametrize(
    ("method", "path", "fields", "body"),
    [
        ("GET", "/a HTTP/1.1", [], b""),
        ("GET", "/a\tb", [], b""),
        ("GET /x", "/", [], b""),
        ("GET", "/", [LENGTH], b""),
        ("POST", "/", [LENGTH], b"short"),
        ("POST", "/", [LENGTH], b"much too long"),
    ],
)
def test_a_malformed_request_reaches_no_pod(method: str, path: str, fields: list[tuple[str, str]], body: bytes) -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    good = peer.request("/good")
    bad = peer.request(path, *fields, method=method, body=body)
    assert [e.error_code for e in peer.of(h2.events.StreamReset, bad)] == [ErrorCodes.PROTOCOL_ERROR]
    assert book.to_upstream() == b"GET /good HTTP/1.1\r\nHost: api.shop\r\n\r\n"
    book.from_upstream(b"HTTP/1.1 204 No Content\r\n\r\n")
    peer.flush()
    assert peer.status(good) == "204"
    assert len(book.upstreams) == 1


def test_a_request_that_ends_short_by_trailers_takes_its_upstream_along() -> None:
    book = Playbook(h2_client=True, requestheaders=stream_bodies)
    peer = book.h2_client()
    bad = peer.request("/", ("content-length", "9"), method="POST", body=b"short", end=False)
    peer.h2.send_headers(bad, [("x-sum", "1")], end_stream=True)
    peer.flush()
    assert book.closed == book.upstreams, "the next request would be the rest of the body"
    assert not leftovers(book)


@pytest.mark.parametrize("trailers", [False, True])
def test_a_response_that_ends_short_is_an_error(trailers: bool) -> None:
    book = Playbook(h2_upstream=True, responseheaders=stream_bodies)
    book.from_client(b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n")
    pod = pod_of(book)
    pod.respond(1, ("content-length", "9"), end=not trailers)
    if trailers:
        pod.h2.send_data(1, b"short")
        pod.h2.send_headers(1, [("x-sum", "1")], end_stream=True)
        pod.flush()
    assert book.client in book.closed or book.to_client().startswith(b"HTTP/1.1 502 ")
    assert book.upstreams[0] not in book.closed


def test_a_response_that_is_too_long_leaves_others_alone() -> None:
    book, peer = h2_book()
    bad, good = peer.request("/bad"), peer.request("/good")
    pod = pod_of(book)
    pod.respond(1, ("content-length", "2"), end=False)
    pod.h2.send_data(1, b"long", end_stream=True)
    pod.respond(3, status=204)
    peer.flush()
    assert peer.of(h2.events.StreamReset, bad)
    assert peer.status(good) == "204"
    assert not leftovers(book)


@pytest.mark.parametrize(
    ("method", "status", "data"),
    [("HEAD", 200, False), ("HEAD", 200, True), ("GET", 304, False)],
)
def test_a_length_without_a_body_where_there_is_none(method: str, status: int, data: bool) -> None:
    book, peer = h2_book()
    stream = peer.request(method=method)
    pod = pod_of(book)
    pod.respond(1, ("content-length", "9"), status=status, end=not data)
    if data:
        pod.h2.send_data(1, b"", end_stream=True)
        pod.flush()
    peer.flush()
    assert (peer.status(stream), peer.fields(stream)["content-length"]) == (str(status), "9")
    assert peer.of(h2.events.StreamEnded, stream)


def test_trailers_about_an_http1_connection_do_not_end_that_of_the_client() -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    stream = peer.request()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    book.from_upstream(head + b"0\r\nConnection: close\r\nKeep-Alive: 1\r\nX-Sum: 2\r\n\r\n")
    peer.flush()
    (received,) = peer.of(h2.events.TrailersReceived, stream)
    assert received.headers == [("x-sum", "2")]


def test_a_call_that_is_refused_while_its_deadline_passes_has_another() -> None:
    asked: list[str] = []

    def overdue(_: object) -> None:
        asked.append("once more")
        if len(asked) == 1:  # what comes now waits until the hook is answered
            pod.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
            book._queue.append(events.DataReceived(pod.connection, pod.h2.data_to_send()))

    policy = HttpPolicy(ExchangePolicy(grpc_timeout_s=4.0))
    book = Playbook(h2_client=True, h2_upstream=True, policy=policy, kube_call_overdue=overdue)
    peer = book.h2_client()
    call = peer.request("/s/m", GRPC, method="POST", body=b"x")
    pod = pod_of(book)
    book.pass_time(4)
    pod.flush()
    assert len(pod.of(h2.events.RequestReceived)) == 2, "it is sent again"
    book.pass_time(4)
    peer.flush()
    assert peer.fields(call)["grpc-status"] == "4"
    assert len(asked) == 2
