"""HTTP/1 messages through the layer: framing, trailers, informational responses, heads, and every cut of the bytes."""

from __future__ import annotations

from collections.abc import Callable

import h2.events
import pytest
from mitmproxy import http

from kubetunnel.proxy.http.h1_server import LINGER_S
from tests.proxy.http_playbook import Playbook, stream_bodies

GET = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"
CHUNKED_REQUEST = (
    b"POST /a HTTP/1.1\r\nHost: api.shop\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\nx-Other: b\r\n\r\n"
)
CHUNKED_RESPONSE = (
    b"HTTP/1.1 200 Fine\r\nX-b: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n"
)


def streamed() -> Playbook:
    return Playbook(requestheaders=stream_bodies, responseheaders=stream_bodies)


@pytest.mark.parametrize("make", [Playbook, streamed])
def test_chunked_messages_with_trailers_pass_both_ways(make: Callable[[], Playbook]) -> None:
    book = make()
    book.from_client(CHUNKED_REQUEST)
    sent = book.to_upstream()
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head + b"\r\n\r\n" == CHUNKED_REQUEST[: len(head) + 4]
    assert body.endswith(b"0\r\nX-Sum: 11\r\nx-Other: b\r\n\r\n")
    assert b"hello" in body
    book.from_upstream(CHUNKED_RESPONSE)
    assert book.to_client() == CHUNKED_RESPONSE
    assert book.flows[0].response is not None
    assert book.flows[0].response.trailers == http.Headers([(b"X-Sum", b"2")])


@pytest.mark.parametrize("cut", range(1, len(CHUNKED_REQUEST)))
def test_a_request_cut_anywhere_is_the_same(cut: int) -> None:
    book = Playbook()
    book.from_client(CHUNKED_REQUEST[:cut])
    book.from_client(CHUNKED_REQUEST[cut:])
    whole = Playbook()
    whole.from_client(CHUNKED_REQUEST)
    assert book.to_upstream() == whole.to_upstream() != b""


@pytest.mark.parametrize("cut", range(1, len(CHUNKED_RESPONSE)))
def test_a_response_cut_anywhere_is_the_same(cut: int) -> None:
    book = Playbook()
    book.from_client(GET)
    book.from_upstream(CHUNKED_RESPONSE[:cut])
    book.from_upstream(CHUNKED_RESPONSE[cut:])
    assert book.to_client() == CHUNKED_RESPONSE
    assert not book.closed


def test_byte_by_byte() -> None:
    book = streamed()
    for byte in CHUNKED_REQUEST:
        book.from_client(bytes([byte]))
    assert book.to_upstream().endswith(b"0\r\nX-Sum: 11\r\nx-Other: b\r\n\r\n")
    for byte in CHUNKED_RESPONSE:
        book.from_upstream(bytes([byte]))
    assert book.to_client().endswith(b"k\r\n0\r\nX-Sum: 2\r\n\r\n")


def test_heads_stay_as_they_came() -> None:
    book = Playbook()
    request = (
        b"GET //a%2Fb/../c?x=%20&y HTTP/1.1\r\nhOST: api.shop\r\nX-Dup: 1\r\nCookie: a=1\r\nx-dup: 2\r\n"
        b"Range: bytes=0-1\r\nX-Latin: \xe4\r\n\r\n"
    )
    book.from_client(request)
    assert book.to_upstream() == request
    response = (
        b"HTTP/1.1 302 Elsewhere \xe4\r\nset-cookie: a=1\r\nLocation: http://other.shop.svc.cluster.local//x\r\n"
        b"Set-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
    )
    book.from_upstream(response)
    assert book.to_client() == response


def test_absolute_form_becomes_origin_form() -> None:
    book = Playbook()
    book.from_client(b"GET http://api.shop//a%2Fb?q HTTP/1.1\r\nHost: api.shop\r\n\r\n")
    assert book.to_upstream() == b"GET //a%2Fb?q HTTP/1.1\r\nHost: api.shop\r\n\r\n"
    assert book.upstreams[0].address == ("api.shop", 80)


def test_head_has_no_body_but_its_length() -> None:
    book = Playbook()
    book.from_client(GET.replace(b"GET", b"HEAD"))
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
    book.from_upstream(response)
    assert book.to_client() == response
    book.from_client(GET)
    assert book.to_upstream().endswith(GET)  # the same upstream went on
    assert len(book.upstreams) == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_responses_that_have_no_body_end_with_their_head(status: bytes) -> None:
    book = Playbook()
    book.from_client(GET)
    response = b"HTTP/1.1 %s\r\nETag: x\r\n\r\n" % status
    book.from_upstream(response)
    assert book.to_client() == response
    assert not book.closed


@pytest.mark.parametrize("side", ["request", "response"])
@pytest.mark.parametrize("token", [b"close", b"Close", b"foo, CLOSE"])
def test_connection_close(side: str, token: bytes) -> None:
    book = Playbook()
    close = b"Connection: %s\r\n\r\n" % token
    request = GET[:-2] + close if side == "request" else GET
    book.from_client(request)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    response = head + (close if side == "response" else b"\r\n") + b"ok"
    book.from_upstream(response)
    assert book.to_client() == response
    assert book.closed == [*book.upstreams, book.client]


def test_http_1_0_closes_unless_it_keeps_alive() -> None:
    book = Playbook()
    book.from_client(b"GET / HTTP/1.0\r\nHost: api.shop\r\nConnection: Keep-Alive\r\n\r\n")
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert not book.closed
    book.from_client(b"GET / HTTP/1.0\r\nHost: api.shop\r\n\r\n")
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert book.client in book.closed


def test_a_body_until_the_end_of_the_connection() -> None:
    book = streamed()
    book.from_client(GET)
    book.from_upstream(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert book.to_client() == b"HTTP/1.1 200 OK\r\n\r\nabc"
    book.from_upstream(b"def")
    book.upstream_closes()
    assert book.to_client() == b"def"
    assert book.client in book.closed


def test_pipelined_requests_are_answered_in_their_order() -> None:
    book = Playbook()
    book.from_client(GET.replace(b"/ ", b"/1 ") + GET.replace(b"/ ", b"/2 ") + GET.replace(b"/ ", b"/3 "))
    for number in (1, 2, 3):
        assert book.to_upstream() == GET.replace(b"/ ", b"/%d " % number)
        book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert book.to_client().endswith(b"\r\n\r\n%d" % number)
    assert len(book.upstreams) == 1


@pytest.mark.parametrize("rest", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nbo"])
def test_who_pipelines_and_sends_no_more_gets_all_answers(rest: bytes) -> None:
    book = Playbook()
    book.from_client(GET.replace(b"/ ", b"/1 ") + GET.replace(b"/ ", b"/2 ") + rest)
    book.client_finishes()
    for number in (1, 2):
        assert book.to_upstream() == GET.replace(b"/ ", b"/%d " % number)
        assert book.client not in book.closed
        book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert book.to_client().endswith(b"\r\n\r\n%d" % number)
    assert book.client in book.closed
    assert not book.to_upstream()
    assert not book.layer.streams


def test_who_pipelines_without_end_is_cut_off() -> None:
    book = Playbook()
    book.from_client(GET)
    for _ in range(40):
        book.from_client(b"x" * 65536)
    assert book.client in book.closed


def test_empty_lines_before_a_request_are_ignored() -> None:
    book = Playbook()
    book.from_client(b"\r\n\r\n" + GET)
    assert book.to_upstream() == GET


@pytest.mark.parametrize("ends", [b"", b"\r\n\r\n"])
def test_a_request_head_without_end_is_refused(ends: bytes) -> None:
    book = Playbook()
    book.from_client(GET[:-2] + b"X-Long: " + b"a" * (64 << 10) + ends)
    assert book.to_client().startswith(b"HTTP/1.1 431 ")
    # the rest is read, or the client would not get to the answer
    assert book.half_closed == [book.client]
    book.from_client(b"a" * 65536)
    assert not book.closed
    book.client_closes()
    assert book.closed == [book.client]


def test_a_response_head_without_end_is_refused() -> None:
    book = Playbook()
    book.from_client(GET)
    book.from_upstream(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * (64 << 10))
    answer = book.to_client()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"X-Kube-Tunnel-Error: UpstreamProtocol" in answer
    assert book.closed == book.upstreams


def test_trailers_without_end_are_refused() -> None:
    book = Playbook()
    book.from_client(GET)
    book.from_upstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * (65 << 10))
    assert book.to_client().startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1 x\r\n\r\n",
        b"nonsense\r\n\r\n",
        GET[:-2] + b"Content-Length: x\r\n\r\n",
        GET[:-2] + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
        GET[:-2] + b"X: a\0b\r\n\r\n",
        GET.replace(b"HTTP/1.1", b"HTTP/2.0"),
    ],
)
def test_what_is_no_request_is_refused(request_head: bytes) -> None:
    book = Playbook()
    book.from_client(request_head)
    assert book.to_client().startswith(b"HTTP/1.1 400 ")
    assert not book.upstreams


def test_folded_fields_are_unfolded_both_ways() -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    stream = peer.request()
    book.from_upstream(b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\n\tc\r\nContent-Length: 0\r\n\r\n")
    peer.flush()
    assert peer.fields(stream)["x-folded"] == "a b c"
    book = Playbook()
    book.from_client(GET[:-2] + b"X-Folded: a\r\n  b\r\n\r\n")
    assert book.to_upstream() == GET[:-2] + b"X-Folded: a b\r\n\r\n"


@pytest.mark.parametrize("h2_client", [False, True])
def test_a_pod_that_switches_unasked_is_refused(h2_client: bool) -> None:
    book = Playbook(h2_client=h2_client)
    peer = book.h2_client() if h2_client else None
    if peer:
        stream = peer.request()
    else:
        book.from_client(GET)
    book.from_upstream(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nbytes")
    if peer:
        peer.flush()
        assert peer.status(stream) == "502"
    else:
        assert book.to_client().startswith(b"HTTP/1.1 502 ")
    assert book.closed == book.upstreams


def test_a_broken_chunk_of_a_request_is_refused() -> None:
    book = streamed()
    book.from_client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert book.to_client().startswith(b"HTTP/1.1 400 ")
    assert book.closed == book.upstreams
    assert not book.layer.streams


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
def test_a_truncated_body_is_an_error_for_the_client(response: bytes) -> None:
    book = streamed()
    book.from_client(GET)
    book.from_upstream(response)
    book.upstream_closes()
    assert not book.to_client().endswith(b"0\r\n\r\n")
    assert book.client in book.closed
    assert book.flows[0].error is not None


def test_a_truncated_body_that_is_held_back_is_told() -> None:
    book = Playbook()
    book.from_client(GET)
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    book.upstream_closes()
    answer = book.to_client()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"X-Kube-Tunnel-Error: UpstreamReset" in answer


def test_informational_responses_pass() -> None:
    book = Playbook()
    book.from_client(GET)
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nlink: </b>\r\n\r\n"
    book.from_upstream(hints)
    assert book.to_client() == hints
    book.from_upstream(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert book.to_client() == b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_informational_responses_do_not_pass_to_http_1_0() -> None:
    book = Playbook()
    book.from_client(b"GET / HTTP/1.0\r\nHost: api.shop\r\n\r\n")
    book.from_upstream(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert book.to_client() == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


EXPECTING = b"PUT / HTTP/1.1\r\nHost: api.shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"


def test_the_pod_decides_whether_a_streamed_body_is_wanted() -> None:
    book = streamed()
    book.from_client(EXPECTING)
    assert book.to_upstream() == EXPECTING
    assert book.to_client() == b""
    book.from_upstream(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert book.to_client() == b"HTTP/1.1 100 Continue\r\n\r\n"
    book.from_client(b"body")
    assert book.to_upstream() == b"body"


@pytest.mark.parametrize("status", [401, 417])
def test_a_pod_that_does_not_want_the_body_says_so_at_once(status: int) -> None:
    book = streamed()
    book.from_client(EXPECTING)
    book.to_upstream()
    response = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
    book.from_upstream(response)
    assert book.to_client() == response
    book.client_closes()
    assert book.upstreams[0] in book.closed  # half a request is in it
    assert not book.layer.streams


def test_a_body_that_is_held_back_is_asked_for_by_us() -> None:
    book = Playbook()
    book.from_client(EXPECTING)
    assert book.to_client() == b"HTTP/1.1 100 Continue\r\n\r\n"
    book.from_client(b"body")
    assert book.to_upstream() == b"PUT / HTTP/1.1\r\nHost: api.shop\r\nContent-Length: 4\r\n\r\nbody"


def test_an_early_answer_does_not_wait_for_the_rest_of_the_request() -> None:
    book = streamed()
    book.from_client(b"POST / HTTP/1.1\r\nHost: api.shop\r\nContent-Length: 10\r\n\r\nabc")
    response = b"HTTP/1.1 413 Too much\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nno\r\n0\r\n\r\n"
    book.from_upstream(response)
    assert book.to_client() == response
    assert book.closed == book.upstreams
    assert not book.flows[0].error
    book.from_client(b"defghij")  # is read and dropped
    assert book.client in book.closed
    assert not book.layer.streams


@pytest.mark.parametrize("status", [401, 417])
def test_a_refused_body_and_a_close_end_the_connection(status: int) -> None:
    book = streamed()
    book.from_client(EXPECTING)
    response = b"HTTP/1.1 %d No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status
    book.from_upstream(response)
    assert book.to_client() == response
    assert book.half_closed == [book.client], "it might be sending the body already, so no whole close yet"
    book.pass_time(LINGER_S)
    assert book.client in book.closed
    assert not book.layer.streams


def test_what_is_no_request_is_waited_for_but_not_for_ever() -> None:
    book = Playbook()
    book.from_client(b"nonsense\r\n\r\n")
    assert book.client not in book.closed
    book.pass_time(LINGER_S)
    assert book.client in book.closed


def test_an_offer_of_h2c_is_withdrawn() -> None:
    book = Playbook()
    book.from_client(GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n")
    assert book.to_upstream() == GET


def test_http2_and_http1_mix_with_trailers() -> None:
    book = Playbook(h2_client=True, requestheaders=stream_bodies, responseheaders=stream_bodies)
    peer = book.h2_client()
    stream_id = peer.request("/up", ("cookie", "a=1"), ("cookie", "b=2"), method="POST", body=b"abc", end=False)
    assert book.to_upstream() == (
        b"POST /up HTTP/1.1\r\nHost: api.shop\r\ncookie: a=1; b=2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    peer.h2.send_headers(stream_id, [("x-sum", "3")], end_stream=True)
    peer.flush()
    assert book.to_upstream() == b"0\r\nx-sum: 3\r\n\r\n"
    book.from_upstream(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CHUNKED_RESPONSE)
    peer.flush()
    (hints,) = peer.of(h2.events.InformationalResponseReceived)
    assert dict(hints.headers) == {":status": "103", "link": "</a>"}
    assert peer.status(stream_id) == "200"
    assert peer.body(stream_id) == b"ok"
    (trailers,) = peer.of(h2.events.TrailersReceived)
    assert trailers.headers == [("x-sum", "2")]
    cookies = [v for k, v in peer.of(h2.events.ResponseReceived)[0].headers if k == "set-cookie"]
    assert cookies == ["a=1", "b=2"]


def test_http1_client_of_an_http2_pod_gets_chunks_and_trailers() -> None:
    book = Playbook(h2_upstream=True, requestheaders=stream_bodies, responseheaders=stream_bodies)
    book.from_client(CHUNKED_REQUEST)
    pod = book.h2_server()
    pod.flush()
    (request,) = pod.of(h2.events.RequestReceived)
    assert dict(request.headers)[":authority"] == "api.shop"
    assert [e.headers for e in pod.of(h2.events.TrailersReceived)] == [[("x-sum", "11"), ("x-other", "b")]]
    assert pod.body(1) == b"hello world"
    pod.respond(1, status=103, end=False)
    pod.respond(1, ("x", "y"), end=False)
    pod.h2.send_data(1, b"ok")
    pod.h2.send_headers(1, [("x-sum", "2")], end_stream=True)
    pod.flush()
    assert book.to_client() == (
        b"HTTP/1.1 103 Early Hints\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nx: y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n"
    )
    assert not book.closed


def test_an_http2_request_without_body_has_a_length_in_http1() -> None:
    book = Playbook(h2_client=True)
    book.h2_client().request(method="POST")
    assert book.to_upstream() == b"POST / HTTP/1.1\r\nHost: api.shop\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("te", "passed"), [(b"gzip, Trailers", "trailers"), (b"gzip", None), (b"trailers", "trailers")]
)
def test_fields_of_one_connection_do_not_pass_into_http2(te: bytes, passed: str | None) -> None:
    book = Playbook(h2_upstream=True)
    book.from_client(
        GET[:-2] + b"TE: %s\r\nConnection: TE, X-Hop, keep-alive, Host\r\nX-Hop: 1\r\nX-End: 2\r\n"
        b"Keep-Alive: timeout=5\r\n\r\n" % te
    )  # fmt: skip
    pod = book.h2_server()
    pod.flush()
    headers = dict(pod.of(h2.events.RequestReceived)[0].headers)
    assert headers.get("te") == passed
    assert headers[":authority"] == "api.shop"
    assert {"x-hop", "connection", "keep-alive"}.isdisjoint(headers)
    assert headers["x-end"] == "2"
    assert "X-Hop" in book.flows[0].request.headers, "the flow shows what the client sent"


def test_fields_of_one_connection_do_not_pass_back_into_http2() -> None:
    book = Playbook(h2_client=True)
    peer = book.h2_client()
    call = peer.request()
    book.from_upstream(b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n")
    peer.flush()
    fields = peer.fields(call)
    assert fields["x-end"] == "2"
    assert {"x-hop", "connection"}.isdisjoint(fields)
