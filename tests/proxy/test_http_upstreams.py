"""Which upstream a request gets, when it is sent again, how long its response may take; and nothing is left over."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import events, layer

from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, UpstreamReset
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.policy import ExchangePolicy, HttpPolicy
from kubetunnel.proxy.http.pool import UpstreamPool
from kubetunnel.proxy.service_connections import NoRoom
from tests.proxy.http_playbook import H2Peer, Playbook, stream_bodies

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(method: bytes = b"GET", body: bytes | None = None) -> bytes:
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    return b"%s / HTTP/1.1\r\nHost: api.shop\r\n%s\r\n%s" % (method, length, body or b"")


def nothing_is_left(book: Playbook) -> bool:
    layer = book.layer
    kept = {book.client, *(u for u in book.upstreams if u not in book.closed)}
    sources = [s for s in layer.command_sources if s not in book.wakeups]
    return not layer.streams and not sources and set(layer.connections) <= kept and len(layer.pool) <= len(kept) - 1


# the pool


@pytest.mark.parametrize("h2_client", [False, True])
def test_one_upstream_serves_many_requests(h2_client: bool) -> None:
    book = Playbook(h2_client=h2_client)
    peer = book.h2_client() if h2_client else None
    for _ in range(200):
        stream_id = peer.request() if peer else 0
        if not peer:
            book.from_client(request())
        assert book.to_upstream().startswith(b"GET / HTTP/1.1\r\n")
        book.from_upstream(OK)
        if peer:
            peer.flush()
            assert peer.body(stream_id) == b"ok"
            assert not book.layer.connections[book.client].streams  # type: ignore[attr-defined]
    assert len(book.upstreams) == 1
    assert not book.closed
    assert nothing_is_left(book)


def answered(book: Playbook, peer: H2Peer) -> int:
    return sum(peer.body(s) == b"ok" for s in range(1, 2000, 2))


def test_parallel_requests_get_an_upstream_each_up_to_the_bound() -> None:
    book = Playbook(h2_client=True, policy=HttpPolicy(max_upstreams=3))
    peer = book.h2_client()
    for _ in range(10):
        peer.request()
    assert len(book.upstreams) == 3
    for done in range(1, 11):
        book.from_upstream(OK, (done - 1) % 3)  # whoever waits is next
        peer.flush()
        assert answered(book, peer) == done
    assert len(book.upstreams) == 3
    assert nothing_is_left(book)


def test_the_most_recently_used_is_taken_and_too_many_idle_ones_are_closed() -> None:
    book = Playbook(h2_client=True, policy=HttpPolicy(max_idle=2))
    peer = book.h2_client()
    for _ in range(4):
        peer.request()
    for number in (0, 1, 2, 3):
        book.from_upstream(OK, number)
    assert book.closed == book.upstreams[:2]
    book.to_upstream(3)
    peer.request()
    assert book.to_upstream(3) != b""
    assert nothing_is_left(book) or book.layer.streams


def test_upstreams_that_close_are_forgotten() -> None:
    book = Playbook()
    for _ in range(50):
        book.from_client(request())
        book.from_upstream(OK)
        book.upstream_closes()
        assert nothing_is_left(book)
    assert len(book.upstreams) == 50
    assert list(book.layer.connections) == [book.client]


def test_data_that_nobody_asked_for_closes_an_idle_upstream() -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(OK + b"HTTP/1.1 408 Too late\r\n\r\n")
    assert book.closed == book.upstreams
    book.from_client(request())
    assert len(book.upstreams) == 2


def test_an_upstream_that_does_not_open_refuses_all_who_waited_for_it() -> None:
    book = Playbook(h2_client=True, open_at_once=False)
    book.open_errors.append(ConnectionRefused("api.shop:80 refused the connection."))
    peer = book.h2_client()
    streams = [peer.request() for _ in range(3)]
    assert len(book.opening) == 1  # it might speak HTTP/2
    book.opened(error="refused")
    peer.flush()
    assert [peer.fields(s)["x-kube-tunnel-error"] for s in streams] == ["ConnectionRefused"] * 3
    assert nothing_is_left(book)


def test_a_client_that_goes_while_it_waits_leaves_the_upstream_to_others() -> None:
    book = Playbook(h2_client=True, open_at_once=False)
    peer = book.h2_client()
    first = peer.request("/first")
    peer.h2.reset_stream(first, 8)
    peer.request("/second")
    book.opened()
    peer.flush()
    assert book.to_upstream().startswith(b"GET /second ")
    assert len(book.upstreams) == 1
    assert not book.closed


def test_a_streamed_request_whose_client_goes_while_it_waits_leaves_the_upstream_to_others() -> None:
    book = Playbook(h2_client=True, open_at_once=False, requestheaders=stream_bodies)
    peer = book.h2_client()
    first = peer.request("/first", method="POST", body=b"whole")
    peer.request("/second")
    peer.h2.reset_stream(first, 8)
    peer.flush()
    book.opened()
    assert book.to_upstream().startswith(b"GET /second ")
    book.from_upstream(OK)
    assert nothing_is_left(book)


def test_a_pool_that_fits_nothing_refuses_instead_of_opening_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpstreamPool, "_fits", lambda *_: False)
    book = Playbook(policy=HttpPolicy(max_upstreams=2))
    book.from_client(request())
    answer = book.to_client()
    assert b"X-Kube-Tunnel-Error: UpstreamProtocol" in answer
    assert b"The tunnel itself failed" in answer
    assert len(book.upstreams) < 20


def test_an_upstream_that_is_always_crowded_is_used_all_the_same() -> None:
    class Crowded(Lanes):
        def is_crowded(self, server: Connection) -> bool:
            return True

    book = Playbook(lanes=Crowded())
    for number in range(3):
        book.from_client(request())
        book.from_upstream(OK)
        assert book.to_client() == OK
        assert len(book.upstreams) == number + 1


@pytest.mark.parametrize(("method", "idle_s", "upstreams"), [
    (b"POST", 0.5, 1), (b"POST", 1.5, 2), (b"PATCH", 1.5, 2), (b"GET", 1.5, 1), (b"PUT", 1.5, 1),
])  # fmt: skip
def test_what_can_be_sent_but_once_is_not_sent_where_the_pod_may_have_closed(
    method: bytes, idle_s: float, upstreams: int
) -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(OK)
    book.pass_time(idle_s)
    book.from_client(request(method, b"body"))
    assert len(book.upstreams) == upstreams
    assert book.closed == book.upstreams[: upstreams - 1]
    book.from_upstream(OK)
    assert book.to_client() == OK + OK
    book.from_client(request(method, b"body"))  # the new one is as used by now
    assert len(book.upstreams) == upstreams
    book.from_upstream(OK)
    assert nothing_is_left(book)


# a request is sent again


def test_an_idempotent_request_gets_a_fresh_upstream_when_the_kept_one_is_stale() -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    book.from_client(request(b"PUT", b"body"))
    book.upstream_closes()
    assert len(book.upstreams) == 2
    assert book.to_upstream() == request(b"PUT", b"body")
    book.from_upstream(OK)
    assert book.to_client() == OK
    assert book.flows[-1].error is None
    assert nothing_is_left(book)


def test_a_streamed_request_is_sent_again_while_its_body_is_at_hand() -> None:
    book = Playbook(requestheaders=stream_bodies)
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    whole = request(b"PUT", b"a" * 60000)
    book.from_client(whole[:-100])
    book.upstream_closes()
    assert book.to_upstream() == whole[:-100]
    book.from_client(whole[-100:])
    assert book.to_upstream() == whole[-100:]
    book.from_upstream(OK)
    assert book.to_client() == OK


@pytest.mark.parametrize("method", [b"POST", b"PATCH"])
def test_another_request_is_refused_and_told_why(method: bytes) -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    book.from_client(request(method, b"body"))
    book.upstream_closes()
    answer = book.to_client()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"X-Kube-Tunnel-Error: UpstreamReset" in answer
    assert b"is not sent again" in answer
    assert len(book.upstreams) == 1
    book.from_client(request())  # the connection goes on
    assert len(book.upstreams) == 2


def test_it_is_sent_again_as_often_as_configured_and_not_at_once() -> None:
    book = Playbook(policy=HttpPolicy(ExchangePolicy(retry_max=3, retry_delay_s=0.1), idle_timeout_s=None))
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    book.from_client(request())
    book.upstream_closes()  # stale
    assert len(book.upstreams) == 2
    for repeat in (1, 2):
        book.upstream_closes()
        assert len(book.upstreams) == 1 + repeat
        assert 0 < book.wakeups[-1].delay <= 0.1 * 2**repeat
        book.pass_time(0.1 * 2**repeat)
        assert len(book.upstreams) == 2 + repeat
        assert book.to_upstream() == request()
    book.upstream_closes()
    assert b" 502 " in book.to_client()
    assert not book.wakeups
    assert nothing_is_left(book)


@pytest.mark.parametrize("error", [None, UpstreamReset("The pod was deleted.")])
def test_a_get_on_a_first_use_is_sent_again_too(error: UpstreamReset | None) -> None:
    book = Playbook(policy=HttpPolicy(idle_timeout_s=None))
    book.from_client(request())
    if error:
        book.stream_errors[book.upstreams[0]] = error
    book.upstream_closes()
    book.pass_time(0.1)
    book.from_upstream(OK)
    assert book.to_client() == OK
    assert len(book.upstreams) == 2
    assert nothing_is_left(book)


def test_a_client_that_goes_before_its_request_is_sent_again_leaves_nothing() -> None:
    book = Playbook(h2_client=True, policy=HttpPolicy(idle_timeout_s=None))
    peer = book.h2_client()
    stream_id = peer.request()
    book.upstream_closes()
    peer.h2.reset_stream(stream_id, 8)
    peer.flush()
    book.pass_time(0.1)
    assert not book.layer.streams
    peer.request("/second")
    assert book.to_upstream().startswith(b"GET /second ")


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_it_is_not_sent_again_when_some_answer_came(begun: bytes) -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    book.from_client(request())
    book.from_upstream(begun)
    book.upstream_closes()
    assert b" 502 " in book.to_client()
    assert len(book.upstreams) == 1


@pytest.mark.parametrize(("error", "retry_max"), [(UpstreamReset("It ended."), 0), (ConnectionRefused("It ended."), 2)])
def test_it_is_not_sent_again_without_leave_or_to_a_port_that_refuses(error: KubeTunnelError, retry_max: int) -> None:
    book = Playbook(policy=HttpPolicy(ExchangePolicy(retry_max=retry_max)))
    book.from_client(request())
    book.from_upstream(OK)
    book.to_client()
    book.from_client(request())
    book.stream_errors[book.upstreams[0]] = error
    book.upstream_closes()
    assert b"It ended." in book.to_client()
    assert len(book.upstreams) == 1


def test_what_is_no_http_is_told() -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    answer = book.to_client()
    assert b"X-Kube-Tunnel-Error: UpstreamProtocol" in answer
    assert b"SSH-2.0" in answer
    assert book.closed == book.upstreams


def test_a_response_that_could_smuggle_another_is_refused() -> None:
    book = Playbook()
    book.from_client(request())
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b"X-Kube-Tunnel-Error: UpstreamProtocol" in book.to_client()
    assert book.upstreams[0] in book.closed
    assert nothing_is_left(book)


# how long a response may take

TIMEOUT = HttpPolicy(ExchangePolicy(response_header_timeout_s=5.0, grpc_timeout_s=7.0), idle_timeout_s=None)


def test_response_headers_that_do_not_come_are_a_timeout() -> None:
    book = Playbook(policy=TIMEOUT)
    book.from_client(request())
    book.pass_time(4.9)
    assert book.to_client() == b""
    book.pass_time(5.0)
    answer = book.to_client()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"X-Kube-Tunnel-Error: Timeout" in answer
    assert book.closed == book.upstreams
    assert nothing_is_left(book)


def test_other_limits_hold_for_the_next_request_of_a_client() -> None:
    book = Playbook(h2_client=True, policy=HttpPolicy(ExchangePolicy(response_header_timeout_s=30.0)))
    peer = book.h2_client()
    before = peer.request()
    book.policy = HttpPolicy(ExchangePolicy(response_header_timeout_s=5.0), max_upstreams=2)
    after = peer.request()
    book.pass_time(1.0)
    queued = peer.request()
    assert len(book.upstreams) == 2
    book.pass_time(4.0)
    peer.flush()
    assert [peer.status(stream) for stream in (before, after, queued)] == [None, "504", None]
    assert b"sent no response headers in 5 s" in peer.body(after)
    book.pass_time(24.9)
    peer.flush()
    assert peer.status(before) is None
    book.pass_time(0.2)
    peer.flush()
    assert b"sent no response headers in 30 s" in peer.body(before)


def test_the_time_begins_at_the_end_of_the_request() -> None:
    book = Playbook(policy=TIMEOUT, requestheaders=stream_bodies)
    book.from_client(request(b"PUT", b"body")[:-1])
    assert not book.wakeups
    book.pass_time(60)
    book.from_client(b"y")
    assert [w.delay for w in book.wakeups] == [5.0]


def test_a_response_that_has_begun_may_take_its_time() -> None:
    book = Playbook(policy=TIMEOUT, responseheaders=stream_bodies)
    book.from_client(request())
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    book.pass_time(60)
    assert not book.closed
    book.from_upstream(b"k")
    assert book.to_client() == OK


def test_many_requests_do_not_pile_up_timers() -> None:
    book = Playbook(policy=TIMEOUT)
    for _ in range(500):
        book.from_client(request())
        book.from_upstream(OK)
        book.now_s += 0.001
    assert len(book.wakeups) == 1
    book.pass_time(5)
    assert not book.wakeups
    assert nothing_is_left(book)
    book.from_client(request())
    assert len(book.wakeups) == 1
    book.pass_time(5.1)
    assert b" 504 " in book.to_client()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "closed the connection"),
        (bytes.fromhex("000000 01 04 00000000"), "something else"),  # HEADERS of stream 0
    ],
)
def test_a_pod_that_does_not_know_http2_is_told_of(answer: bytes, found: str) -> None:
    book = Playbook(h2_upstream=True)
    book.from_client(request(b"POST", b"abc"))
    book.from_upstream(answer)
    book.upstream_closes()
    refused = book.to_client()
    assert b" 502 " in refused
    assert b"UpstreamProtocol" in refused
    assert b"was spoken to in HTTP/2" in refused
    assert found.encode() in refused
    assert nothing_is_left(book)


@pytest.mark.parametrize(("fields", "timeout_s", "end"), [((("grpc-timeout", "300m"),), 0.3, False), ((), 7.0, True)])
def test_a_call_has_its_own_deadline(fields: tuple[tuple[str, str], ...], timeout_s: float, end: bool) -> None:
    book = Playbook(h2_client=True, h2_upstream=True, policy=TIMEOUT, requestheaders=stream_bodies)
    peer = book.h2_client()
    call = peer.request("/s/m", ("content-type", "application/grpc"), *fields, method="POST", body=b"12345", end=end)
    pod = book.h2_server()
    pod.flush()
    assert [w.delay for w in book.wakeups] == [timeout_s]
    book.pass_time(timeout_s + 0.001)
    peer.flush()
    assert peer.fields(call)["grpc-status"] == "4"
    pod.flush()
    assert [type(e).__name__ for e in pod.events if "Reset" in type(e).__name__] == ["StreamReset"]
    assert not book.closed


def test_a_call_whose_client_goes_on_sending_has_no_deadline_but_its_own() -> None:
    """Many servers send their headers with their first message only."""
    book = Playbook(h2_client=True, h2_upstream=True, policy=TIMEOUT, requestheaders=stream_bodies)
    peer = book.h2_client()
    call = peer.request("/s/m", ("content-type", "application/grpc"), method="POST", body=b"12345", end=False)
    pod = book.h2_server()
    pod.flush()
    book.pass_time(3600)
    peer.h2.end_stream(call)
    peer.flush()
    assert [w.delay for w in book.wakeups] == [7.0]
    pod.respond(1, ("content-type", "application/grpc"), ("grpc-status", "0"))
    peer.flush()
    assert peer.fields(call)["grpc-status"] == "0"


# what users of mitmproxy do


@pytest.mark.parametrize("hook", ["requestheaders", "request", "responseheaders", "response"])
@pytest.mark.parametrize("h2_client", [False, True])
def test_a_killed_flow_leaves_nothing(hook: str, h2_client: bool) -> None:
    book = Playbook(h2_client=h2_client, **{hook: lambda flow: flow.kill()})
    peer = book.h2_client() if h2_client else None
    if peer:
        peer.request()
    else:
        book.from_client(request())
    if book.upstreams:
        book.from_upstream(OK)
    if peer:
        peer.flush()
        assert [e.stream_id for e in peer.events if type(e).__name__ == "StreamReset"] == [1]
    else:
        assert book.client in book.closed
    assert nothing_is_left(book)


@pytest.mark.parametrize("h2_upstream", [False, True])
def test_an_addon_may_answer_a_streamed_request(h2_upstream: bool) -> None:
    def answer(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(200, b"ours")

    book = Playbook(h2_client=True, h2_upstream=h2_upstream, requestheaders=stream_bodies, request=answer)
    peer = book.h2_client()
    stream = peer.request(method="POST", body=b"body")
    assert (peer.status(stream), peer.body(stream)) == ("200", b"ours")
    assert h2_upstream or book.closed == book.upstreams, "half a request is in it"
    assert nothing_is_left(book)


def test_an_addons_answer_is_too_late_where_the_pod_has_answered() -> None:
    def answer(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(200, b"ours")
        book._queue.append(events.DataReceived(book.upstreams[0], OK.replace(b"200 OK", b"409 Conflict")))

    book = Playbook(h2_client=True, requestheaders=stream_bodies, request=answer)
    peer = book.h2_client()
    stream = peer.request(method="POST", body=b"body")
    peer.flush()
    assert peer.status(stream) == "409"
    assert nothing_is_left(book)


def test_an_invalid_request_leaves_nothing() -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    stream = peer.request("/", ("content-length", "2"), ("content-length", "2"), method="POST", body=b"ok")
    assert peer.status(stream) == "400"
    assert nothing_is_left(book)


def test_an_answer_of_an_addon_needs_no_upstream() -> None:
    def answer(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(200, b"ours")

    book = Playbook(request=answer)
    book.from_client(request())
    assert book.to_client().endswith(b"\r\n\r\nours")
    assert not book.upstreams
    assert nothing_is_left(book)


@pytest.mark.parametrize("hook", ["requestheaders", "request", "response"])
def test_an_answer_to_head_has_no_body_whatever_an_addon_has_put_there(hook: str) -> None:
    def answer(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(200, b"ours")

    book = Playbook(h2_client=True, **{hook: answer})
    peer = book.h2_client()
    stream = peer.request(method="HEAD")
    if hook == "response":
        book.from_upstream(OK)
    peer.flush()  # the library takes a body for an error of the whole connection
    assert (peer.status(stream), peer.fields(stream)["content-length"]) == ("200", "4")
    invalid = peer.request("/", ("content-length", "0"), ("content-length", "0"), method="HEAD")
    assert (peer.status(invalid), peer.body(invalid)) == ("400", b"")
    assert nothing_is_left(book)


def test_a_refusal_does_not_wait_for_a_body_that_waits_for_100() -> None:
    def refuse(flow: http.HTTPFlow) -> None:
        flow.response = http.Response.make(404, b"no")

    book = Playbook(requestheaders=refuse)
    book.from_client(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    assert book.to_client().startswith(b"HTTP/1.1 404 ")
    book.from_client(b"body" + request())
    assert book.to_client().startswith(b"HTTP/1.1 404 ")


def test_connect_becomes_a_pipe() -> None:
    asked: list[bytes] = []

    def note(data: layer.NextLayer) -> None:
        asked.append(data.data_client())

    book = Playbook(next_layer=note)
    book.from_client(b"CONNECT api.shop:80 HTTP/1.1\r\nHost: api.shop:80\r\n\r\n")
    assert book.to_client() == b"HTTP/1.1 200 Connection established\r\n\r\n"
    book.from_client(b"anything")
    assert asked == [b"anything"]


# limits of time and number


def test_nobody_waits_for_a_free_upstream_for_ever() -> None:
    policy = HttpPolicy(ExchangePolicy(response_header_timeout_s=5.0), max_upstreams=1)
    book = Playbook(h2_client=True, policy=policy)
    peer = book.h2_client()
    peer.request()
    book.pass_time(2)
    second = peer.request()
    book.pass_time(2)
    third = peer.request()
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")  # busy, and no deadline of its own any more
    book.pass_time(2.9)
    peer.flush()
    assert peer.status(second) is None
    book.pass_time(0.2)
    peer.flush()
    assert peer.status(second) == "504"
    assert peer.fields(second)["x-kube-tunnel-error"] == "Timeout"
    assert b"pool.max_connections_per_service" in peer.body(second)
    assert peer.status(third) is None
    book.from_upstream(b"ok")
    book.from_upstream(OK)
    peer.flush()
    assert peer.status(third) == "200"
    assert nothing_is_left(book)


def test_want_of_room_ends_only_those_who_waited_for_it() -> None:
    policy = HttpPolicy(ExchangePolicy(response_header_timeout_s=5.0))
    book = Playbook(h2_client=True, policy=policy, open_at_once=False)
    peer = book.h2_client()
    book.open_errors.append(NoRoom("full"))
    first = peer.request()
    book.pass_time(3)
    second = peer.request()
    book.pass_time(2)
    book.opened(error="full")
    peer.flush()
    assert peer.status(first) == "504"
    assert peer.status(second) is None
    book.opened()
    book.from_upstream(OK)
    peer.flush()
    assert peer.status(second) == "200"
    assert nothing_is_left(book)


READ_TIMEOUT = HttpPolicy(ExchangePolicy(read_timeout_s=3.0))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_pod_that_stops_in_the_middle_of_its_response(streamed: bool) -> None:
    hooks = {"responseheaders": stream_bodies} if streamed else {}
    book = Playbook(policy=READ_TIMEOUT, **hooks)
    book.from_client(request())
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\no")
    book.pass_time(1)
    book.from_upstream(b"k")
    book.pass_time(2)
    assert not book.closed
    book.pass_time(1)
    assert book.upstreams[0] in book.closed
    told = book.to_client()
    if streamed:
        assert told.startswith(b"HTTP/1.1 200 OK")
        assert book.client in book.closed or book.aborted
    else:
        assert told.startswith(b"HTTP/1.1 504 ")
        assert b"nothing more of its response came in 3 s" in told


def test_a_pod_is_not_blamed_for_a_client_that_reads_slowly() -> None:
    book = Playbook(policy=READ_TIMEOUT, responseheaders=stream_bodies)
    book.from_client(request())
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\no")
    for _ in range(5):
        book.pass_time(3, reading=False)
    book.from_upstream(b"k!!")
    assert book.to_client().endswith(b"\r\n\r\nok!!")


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked\r\n", b"Content-Type: text/event-stream\r\n"])
def test_a_stream_may_be_silent(head: bytes) -> None:
    book = Playbook(policy=READ_TIMEOUT, responseheaders=stream_bodies)
    book.from_client(request())
    book.from_upstream(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
    book.pass_time(1000)
    assert not book.closed
