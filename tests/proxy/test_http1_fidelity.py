"""HTTP/1.1 messages arrive as they were sent, byte for byte; the clients are raw sockets, and curl for HTTP/2."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.proxy.loopback import connect, received, rest
from tests.proxy.scripted_pod import OK, Script, ScriptedPod, tunnel_to
from tests.tunnel import Tunnel

HOST = "plain.demo"
H2C = "--http2-prior-knowledge"
HEAD = b"HTTP/1.1 200 OK\r\n"
LONG = 3 << 20

SCRIPTS = {
    "/odd": Script(
        b"HTTP/1.1 299 Odd Enough\r\nX-CaSe: one\r\nx-case: two\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\n"
        b"Set-Cookie: c=\"3, 4\"\r\nX-Empty: \r\nX-Latin: \xe4\r\nContent-Length: 3\r\n\r\n\x00\xffz"
    ),
    "/trailers": Script(
        HEAD + b"Trailer: X-Sum, X-Two\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\nX-Two: 2\r\n\r\n"
    ),
    "/hints": Script(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" + OK),
    "/welcome": Script(early=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "/no-welcome": Script(early=b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),
    "/range": Script(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/9\r\nContent-Length: 3\r\n\r\ncde"
    ),
    "/head": Script(HEAD + b"Content-Length: 12345\r\n\r\n"),
    "/moved": Script(
        b"HTTP/1.1 302 Found\r\n"
        b"Location: http://other.demo.svc.cluster.local:8080/a%2Fb//c\r\nContent-Length: 0\r\n\r\n"
    ),
    "/close": Script(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", end="close"),
    "/hangs-up": Script(end="close"),  # without having said so
    "/until-end": Script(HEAD + b"Connection: close\r\n\r\n" + bytes(LONG), end="close"),
    "/until-reset": Script(HEAD + b"Connection: close\r\n\r\n" + bytes(LONG), end="reset"),
    "/short": Script(HEAD + b"Content-Length: 4000000\r\n\r\n" + bytes(LONG), end="close"),
    "/short-reset": Script(HEAD + b"Content-Length: 4000000\r\n\r\n" + bytes(LONG), end="reset"),
    "/no-last-chunk": Script(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n300000\r\n" + bytes(LONG) + b"\r\n", end="close"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """A tunnel to a cluster with a Service whose pod answers from `SCRIPTS`."""

    pod: ScriptedPod
    tunnel: Tunnel
    kubeconfig: Path

    def exchange(self, request: bytes) -> bytes:
        """Everything that comes; the request has to end the connection."""
        with connect(self.tunnel.port) as client:
            client.sendall(request)
            return rest(client)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    pod = ScriptedPod(SCRIPTS)
    directory = tmp_path_factory.mktemp("confdir")
    with tunnel_to(pod.serve, "plain", directory) as tunnel:
        yield Plain(pod, tunnel, directory / "kubeconfig")


def request(path: str, *fields: str, method: str = "GET", last: bool = True) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", *fields, *(["Connection: close"] if last else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /a%2Fb//c/../d/./e?x=1&x=2&y=%20+&&=#not HTTP/1.1\r\nHost: plain.demo\r\nConnection: close\r\n\r\n",
        b"gEt / HTTP/1.1\r\nhOST: plain.demo\r\nX-CaSe: one\r\nx-case: two\r\nCookie: a=1\r\nCookie: b=2\r\n"
        b"X-Empty: \r\nX-Latin: \xe4\r\nConnection: close\r\n\r\n",
        b"POST /%e4?%00 HTTP/1.1\r\nHost: plain.demo\r\nContent-Length: 4\r\nConnection: close\r\n\r\n\x00\xff\r\n",
        b"DELETE /x HTTP/1.1\r\nHost: plain.demo\r\nTE: trailers\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 a\r\n"
        b"Connection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: plain.demo\r\nConnection: close\r\n\r\n",
    ],
)  # fmt: skip
def test_a_request_arrives_as_it_was_sent(plain: Plain, sent: bytes) -> None:
    assert plain.exchange(sent).endswith(b"ok")
    assert plain.pod.requests[-1] == sent


def test_a_proxy_request_arrives_in_origin_form(plain: Plain) -> None:
    sent = b"GET http://plain.demo/a%2Fb//c?x HTTP/1.1\r\nHost: plain.demo\r\nX-Mine: 1\r\nConnection: close\r\n\r\n"
    plain.exchange(sent)
    assert plain.pod.requests[-1] == sent.replace(b"http://plain.demo", b"")


def test_an_answer_arrives_as_it_was_sent(plain: Plain) -> None:
    assert plain.exchange(request("/odd")) == SCRIPTS["/odd"].answer


def test_trailers_of_an_answer(plain: Plain) -> None:
    assert plain.exchange(request("/trailers", "TE: trailers")) == SCRIPTS["/trailers"].answer


def test_trailers_of_an_answer_to_an_http2_client(plain: Plain) -> None:
    answer = plain.tunnel.get(HOST, "/trailers", H2C)
    assert answer.body == b"abcde"
    assert (answer.headers["x-sum"], answer.headers["x-two"]) == ("5", "2")


def test_trailers_of_a_request(plain: Plain) -> None:
    sent = request("/a", "Trailer: X-Sum", "Transfer-Encoding: chunked", method="POST")
    sent += b"5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n"
    assert plain.exchange(sent).endswith(b"ok")
    assert plain.pod.requests[-1] == sent


def test_a_1xx_before_the_answer(plain: Plain) -> None:
    assert plain.exchange(request("/hints")) == SCRIPTS["/hints"].answer


def test_a_1xx_to_an_http2_client(plain: Plain, tmp_path: Path) -> None:
    answer = plain.tunnel.get(HOST, "/hints", H2C, "-D", str(tmp_path / "fields"))
    assert answer.text == "ok"
    fields = (tmp_path / "fields").read_text()
    assert fields.index("HTTP/2 103") < fields.index("link: </a.css>") < fields.index("HTTP/2 200")


def test_the_pod_invites_the_body(plain: Plain) -> None:
    with connect(plain.tunnel.port) as client:
        client.sendall(request("/welcome", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        assert received(client, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert rest(client) == OK
    assert plain.pod.requests[-1].endswith(b"\r\n\r\nhello")


def test_the_pod_wants_no_body(plain: Plain) -> None:
    with connect(plain.tunnel.port) as client:
        client.sendall(request("/no-welcome", "Content-Length: 5", "Expect: 100-continue", method="POST", last=False))
        expected = SCRIPTS["/no-welcome"].early
        assert received(client, len(expected)) == expected
    assert plain.pod.requests[-1].endswith(b"Expect: 100-continue\r\n\r\n")


def test_a_range(plain: Plain) -> None:
    assert plain.exchange(request("/range", "Range: bytes=2-4")) == SCRIPTS["/range"].answer
    assert b"Range: bytes=2-4\r\n" in plain.pod.requests[-1]


def test_head_then_get_on_one_connection(plain: Plain) -> None:
    sent = request("/head", method="HEAD", last=False) + request("/a")
    assert plain.exchange(sent) == SCRIPTS["/head"].answer + OK


def test_a_redirect_is_the_clients_to_follow(plain: Plain) -> None:
    assert plain.exchange(request("/moved")) == SCRIPTS["/moved"].answer


def test_pipelined_requests(plain: Plain) -> None:
    before = len(plain.pod.requests)
    sent = [request("/odd", last=False), request("/trailers", last=False), request("/a")]
    assert plain.exchange(b"".join(sent)) == SCRIPTS["/odd"].answer + SCRIPTS["/trailers"].answer + OK
    assert plain.pod.requests[before:] == sent


def test_a_pod_that_closes_after_its_answer(plain: Plain) -> None:
    assert plain.exchange(request("/close", last=False)) == SCRIPTS["/close"].answer


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_pod_that_hangs_up_between_requests_is_not_noticed(plain: Plain, method: str) -> None:
    fields = ["Content-Length: 0"] if method == "PUT" else []
    with connect(plain.tunnel.port) as client:
        for _ in range(4):  # a runtime tells of the pod's end a second late
            client.sendall(request("/hangs-up", *fields, method=method, last=False))
            assert received(client, len(OK)) == OK


def test_keep_alive_to_the_pod(plain: Plain) -> None:
    before = plain.pod.connections
    with connect(plain.tunnel.port) as client:
        for _ in range(5):
            client.sendall(request("/a", last=False))
            assert received(client, len(OK)) == OK
    assert plain.pod.connections == before + 1


def test_a_body_until_the_end_of_the_connection(plain: Plain) -> None:
    assert plain.exchange(request("/until-end")) == SCRIPTS["/until-end"].answer
    answer = plain.tunnel.get(HOST, "/until-end", H2C)
    assert (answer.exit_code, len(answer.body)) == (0, LONG)


@pytest.mark.parametrize("path", ["/until-reset", "/short", "/short-reset", "/no-last-chunk"])
@pytest.mark.parametrize("version", ["--http1.1", H2C])
def test_a_truncated_body_is_an_error_for_the_client(plain: Plain, path: str, version: str) -> None:
    answer = plain.tunnel.get(HOST, path, version)
    assert answer.status == 200
    assert answer.exit_code in (18, 56, 92), answer.stderr
    assert len(answer.body) <= LONG


def test_an_http2_request_to_a_pod_without_http2(plain: Plain) -> None:
    answer = plain.tunnel.get(HOST, "/a", H2C)
    assert (answer.http_version, answer.text) == ("2", "ok")
    assert plain.pod.requests[-1].startswith(b"GET /a HTTP/1.1\r\nHost: plain.demo\r\n")


@pytest.mark.parametrize(("option", "client"), [("kube_disable_fallback", H2C), ("kube_force_http2", "--http1.1")])
def test_no_fallback_where_the_user_wants_none(plain: Plain, tmp_path: Path, option: str, client: str) -> None:
    options = ["--set", f"{option}=true"]
    with Tunnel(tmp_path, kubeconfig=plain.kubeconfig, options=options) as tunnel:
        answer = tunnel.get(HOST, "/a", client, timeout_s=5)
        assert answer.status == 502
        assert answer.reason in ("UpstreamProtocol", "UpstreamReset"), "as the pod is quick to hang up"
        assert "Traceback" not in tunnel.log, tunnel.log


def test_a_client_that_goes_in_the_middle_of_an_answer_leaves_no_trace(plain: Plain) -> None:
    for _ in range(5):
        with connect(plain.tunnel.port) as client:
            client.sendall(request("/until-end"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            received(client, 100)
    assert plain.exchange(request("/a")) == OK
