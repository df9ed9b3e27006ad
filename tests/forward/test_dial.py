"""Negotiation: which offers are made, what is remembered, and how every refusal is told."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from kubetunnel.cluster.access import load_access
from kubetunnel.core.errors import (
    ClusterUnreachable,
    Forbidden,
    KubeTunnelError,
    PodGone,
    Timeout,
    Unauthenticated,
    UpstreamProtocol,
    UpstreamReset,
)
from kubetunnel.forward.errors import TEXT_CHARACTERS
from kubetunnel.forward.negotiation import CHANNEL, SPDY_AGAIN_S, Meaning, Memory, Way, judge
from kubetunnel.forward.negotiation import SPDY as SPDY_NAME
from kubetunnel.forward.negotiation import TUNNEL as TUNNEL_NAME
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.upgrade import Refusal
from tests.forward.apiserver import ECHO, SPDY, TUNNEL, V4, Access, ApiServer, rbac_status
from tests.forward.test_streams import to


class Echoed(asyncio.Protocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)


async def echo(forwards: PortForwards) -> str:
    """A byte there and back; the protocol that it went over. The stream stays open: its upstream is not free."""
    transport, echoed = await forwards.open(to(ECHO), Echoed)
    transport.write(b"x")
    assert await echoed.answer == b"x"
    protocol: str = transport.get_extra_info("upstream").protocol
    return protocol


def test_what_is_remembered() -> None:
    memory = Memory()
    assert memory.order(0) == (Way.WEBSOCKET, Way.SPDY)
    memory.took(TUNNEL_NAME)
    assert memory.order(0) == (Way.WEBSOCKET, Way.SPDY)
    memory.took(CHANNEL)
    assert memory.order(0) == (Way.SPDY, Way.WEBSOCKET)
    memory.refused(Way.SPDY, 0)
    assert memory.order(1) == (Way.WEBSOCKET, Way.SPDY)
    assert memory.order(SPDY_AGAIN_S + 1) == (Way.SPDY, Way.WEBSOCKET)
    memory.took(SPDY_NAME)
    memory.refused(Way.WEBSOCKET, 2)
    assert memory.order(2) == (Way.SPDY, Way.WEBSOCKET)


@pytest.mark.parametrize(
    ("status", "body", "meaning"),
    [
        (401, b"Unauthorized", Meaning.UNAUTHENTICATED),
        (403, b"", Meaning.UNKNOWN_PROTOCOL),
        (403, rbac_status("create"), Meaning.FORBIDDEN),
        (404, b'{"kind":"Status","message":"pods \\"web\\" not found"}', Meaning.POD_GONE),
        (404, b"pod does not exist", Meaning.POD_GONE),
        (404, b"<html>no such page</html>", Meaning.UNKNOWN_PROTOCOL),
        (500, b"error forwarding port: sandbox f38c not found", Meaning.POD_GONE),
        (400, b'{"kind":"Status","message":"pod web does not have a host assigned"}', Meaning.POD_GONE),
        (429, b'{"kind":"Status","message":"too many requests, please try again later"}', Meaning.OVERLOADED),
        (503, b"", Meaning.UNKNOWN_PROTOCOL),
        (500, b"error dialing backend: dial tcp 10.0.0.1:10250: connect: no route to host", Meaning.NODE_UNREACHABLE),
        (500, b'{"kind":"Status","message":"error dialing backend: dial tcp: i/o timeout"}', Meaning.NODE_UNREACHABLE),
        (502, b"<html>Bad Gateway</html>", Meaning.UNKNOWN_PROTOCOL),
        (400, b"[1,2]", Meaning.UNKNOWN_PROTOCOL),
        (200, b"\xff\xfe", Meaning.UNKNOWN_PROTOCOL),
    ],
)
def test_what_a_refusal_means(status: int, body: bytes, meaning: Meaning) -> None:
    verdict = judge(Refusal(status, body))
    assert verdict.meaning is meaning
    assert verdict.message


def test_a_long_refusal_is_read_whole_and_told_in_short() -> None:
    """Names have up to 253 characters; what stands in a detail and in a log is one line."""
    text = f'pods "{"w" * 253}" is forbidden:\n\tUser "{"u" * 253}" cannot get resource "pods/portforward"'
    verdict = judge(Refusal(403, json.dumps({"kind": "Status", "message": text}).encode()))
    assert (verdict.meaning, verdict.verb) == (Meaning.FORBIDDEN, "get")
    assert len(verdict.message) <= TEXT_CHARACTERS
    assert verdict.message.isprintable()


async def test_a_new_server_takes_the_tunnel(api: ApiServer, forwards: PortForwards) -> None:
    assert await echo(forwards) == TUNNEL
    method, target, headers = api.requests[0]
    assert (method, target) == ("GET", "/prefix/api/v1/namespaces/shop/pods/web/portforward?ports=7")
    assert headers["authorization"] == "Bearer old"
    assert headers["host"] == f"127.0.0.1:{api.port}"
    assert len(api.requests) == 1


async def test_an_old_server_serves_v4_at_once_and_spdy_from_then_on(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4, SPDY})
    assert [await echo(forwards), await echo(forwards), await echo(forwards)] == [V4, SPDY, SPDY]
    assert [method for method, _, _ in api.requests] == ["GET", "POST", "POST"]


async def test_a_server_without_websocket_is_asked_for_spdy_on_the_same_connection(
    api: ApiServer, forwards: PortForwards
) -> None:
    api.speaks = frozenset({SPDY})
    assert [await echo(forwards), await echo(forwards)] == [SPDY, SPDY]
    assert [method for method, _, _ in api.requests] == ["GET", "POST", "POST"]
    assert api.connections == 2


async def test_v4_is_kept_where_spdy_is_refused(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4})
    assert [await echo(forwards), await echo(forwards), await echo(forwards)] == [V4, V4, V4]
    assert [method for method, _, _ in api.requests] == ["GET", "POST", "GET", "GET"]


async def test_what_is_remembered_may_be_refused_later(api: ApiServer, forwards: PortForwards) -> None:
    assert await echo(forwards) == TUNNEL
    api.speaks = frozenset({SPDY})
    assert await echo(forwards) == SPDY


async def test_credentials_are_renewed_once_after_a_401(api: ApiServer, access: Access, forwards: PortForwards) -> None:
    api.answers = [(401, b"Unauthorized")]
    assert await echo(forwards) == TUNNEL
    assert [headers["authorization"] for _, _, headers in api.requests] == ["Bearer old", "Bearer new"]
    assert (access.renewals, api.connections) == (1, 1)


@pytest.mark.parametrize("renewable", [True, False])
async def test_credentials_that_are_refused_again(
    api: ApiServer, access: Access, forwards: PortForwards, renewable: bool
) -> None:
    access.renewable = renewable
    api.always = {"GET": (401, b""), "POST": (401, b"")}
    with pytest.raises(Unauthenticated):
        await forwards.open_connection(to(ECHO))
    assert access.renewals == 1
    api.always = {}
    assert await echo(forwards) == TUNNEL


async def test_forbidden_only_when_every_protocol_is(api: ApiServer, forwards: PortForwards) -> None:
    api.always = {"GET": (403, rbac_status("get")), "POST": (403, rbac_status("create"))}
    with pytest.raises(Forbidden, match="create pods/portforward in namespace shop") as caught:
        await forwards.open_connection(to(ECHO))
    assert caught.value.command == "kubectl auth can-i create pods --subresource=portforward -n shop"
    del api.always["POST"]
    assert await echo(forwards) == SPDY


@pytest.mark.parametrize("refused", ["GET", "POST"])
async def test_forbidden_also_where_a_proxy_lets_one_protocol_only_through(
    api: ApiServer, forwards: PortForwards, refused: str
) -> None:
    verbs = {"GET": "get", "POST": "create"}
    del verbs[refused]
    api.always = {refused: (403, b"<html>no upgrades here</html>")}
    api.always |= {method: (403, rbac_status(verb)) for method, verb in verbs.items()}
    with pytest.raises(Forbidden, match=f"The right to {verbs.popitem()[1]} pods/portforward"):
        await forwards.open_connection(to(ECHO))


@pytest.mark.parametrize(("wait", "requests"), [("0", 2), (None, 2), ("60", 1)])
async def test_overload_is_tried_again_a_little(
    api: ApiServer, forwards: PortForwards, wait: str | None, requests: int
) -> None:
    api.answers = [(429, b"too many requests")]
    api.retry_after = wait
    if requests == 2:
        assert await echo(forwards) == TUNNEL
    else:
        with pytest.raises(ClusterUnreachable, match=r"is overloaded .*too many requests") as refused:
            await forwards.open_connection(to(ECHO))
        assert refused.value.command == "kubectl get --raw /readyz?verbose"
    assert len(api.requests) == requests


async def test_a_user_beyond_ascii_is_impersonated(api: ApiServer, access: Access, forwards: PortForwards) -> None:
    access.token = "jürgen"
    assert await echo(forwards) == TUNNEL


async def test_an_empty_403_is_no_missing_right(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset()
    with pytest.raises(UpstreamProtocol, match="refused every port-forward protocol"):
        await forwards.open_connection(to(ECHO))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((404, b'{"kind":"Status","message":"pods \\"web\\" not found"}'), PodGone),
        ((500, b"error dialing backend: dial tcp 10.0.0.1:10250: i/o timeout"), UpstreamReset),
    ],
)
async def test_a_known_cause_ends_the_attempt(
    api: ApiServer, forwards: PortForwards, answer: tuple[int, bytes], expected: type[KubeTunnelError]
) -> None:
    api.answers = [answer]
    with pytest.raises(expected):
        await forwards.open_connection(to(ECHO))
    assert len(api.requests) == 1
    assert await echo(forwards) == TUNNEL


@pytest.mark.parametrize(
    ("fault", "expected"), [("hang", Timeout), ("hangup", ClusterUnreachable), ("garbage", UpstreamProtocol)]
)
async def test_a_server_that_does_not_answer(
    api: ApiServer, access: Access, fault: str, expected: type[KubeTunnelError]
) -> None:
    forwards = PortForwards(access, answer_timeout_s=0.1)
    api.fault = fault
    with pytest.raises(expected):
        await forwards.open_connection(to(ECHO))
    api.fault = ""
    assert await echo(forwards) == TUNNEL
    await forwards.aclose()


async def test_a_refusal_without_end_is_cut(api: ApiServer, forwards: PortForwards) -> None:
    api.answers = [(403, b"x" * 100_000)]
    with pytest.raises(UpstreamProtocol, match="no end"):
        await forwards.open_connection(to(ECHO))


async def test_credentials_that_are_no_header_are_told_without_being_shown(
    api: ApiServer, access: Access, forwards: PortForwards, caplog: pytest.LogCaptureFixture
) -> None:
    access.token = "secret\nInjected: yes"
    with pytest.raises(Unauthenticated) as caught:
        await forwards.open_connection(to(ECHO))
    assert "secret" not in str(caught.value) + caplog.text
    assert not api.requests


async def test_a_fault_of_our_own_is_told_at_once(
    api: ApiServer, access: Access, forwards: PortForwards, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: str) -> str:
        raise RuntimeError("a bug")

    access.kubectl = broken  # type: ignore[method-assign]
    api.always = {"GET": (404, b"pod does not exist")}
    with pytest.raises(UpstreamProtocol, match="in the tunnel itself"):
        await forwards.open_connection(to(ECHO))
    assert "a bug" in caplog.text


async def test_a_refusal_comes_quickly(api: ApiServer, forwards: PortForwards) -> None:
    started = time.monotonic()
    api.always = {"GET": (403, rbac_status("get")), "POST": (403, rbac_status("create"))}
    for _ in range(4):
        with pytest.raises(Forbidden):
            await forwards.open_connection(to(ECHO))
    assert time.monotonic() - started < 8


async def test_through_a_kubeconfig(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(api.ca)
    config = tmp_path / "config"
    config.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:{api.port}/prefix", certificate-authority: ca.pem}}}}]
users: [{{name: u, user: {{token: secret}}}}]
"""
    )
    access = await load_access(kubeconfig=str(config))
    forwards = PortForwards(access)
    assert await echo(forwards) == TUNNEL
    assert api.requests[0][2]["authorization"] == "Bearer secret"
    await forwards.aclose()
    await access.aclose()
    await asyncio.sleep(0)
