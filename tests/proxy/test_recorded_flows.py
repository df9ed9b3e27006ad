"""Flows recorded from a real cluster (tests/flows), read again and answered from, with no cluster at all."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from mitmproxy import http, tcp
from mitmproxy.flow import Flow

from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, Settings
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.sim.cluster import SimCluster
from tests.flows.record import DIRECTORY, MAX_FILE_BYTES, RECORDINGS
from tests.proxy.loopback import received, socks5
from tests.tunnel import Tunnel, curl, run_mitmdump

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore", DeprecationWarning)
    from mitmproxy import flowfilter
    from mitmproxy.io import FlowReader

ECHO = "echo.demo.svc.cluster.local"
NO_CLUSTER = {"KUBECONFIG": "/nonexistent/kubeconfig"}


def recording(name: str) -> Path:
    return DIRECTORY / f"{name}.mitm"


def flows(path: Path) -> list[Flow]:
    with path.open("rb") as file:
        return list(FlowReader(file).stream())


def reread(confdir: Path, *arguments: Path | str) -> str:
    """What `mitmdump -s … -n -r FILE [FILTER]` says."""
    status, said = run_mitmdump(confdir, "-n", *arguments, env=NO_CLUSTER)
    assert status == 0, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_is_small_and_names_services_and_pods(name: str) -> None:
    assert recording(name).stat().st_size <= MAX_FILE_BYTES
    for flow in flows(recording(name)):
        kube = flow.metadata.get("kube")
        assert kube is not None, flow
        assert kube["service"].endswith(".demo.svc.cluster.local")
        if name == "refusals":
            assert flow.marked
            assert flow.comment == kube["reason"]
            continue
        assert flow.comment.startswith(f"{kube['pod']}:{kube['pod_port']} · zone-a · ")
        if isinstance(flow, http.HTTPFlow):
            assert (flow.request.host, flow.request.port) == (kube["service"], kube["port"])


def test_a_raw_connection_has_its_bytes_and_their_count() -> None:
    (flow,) = flows(recording("tcp"))
    assert isinstance(flow, tcp.TCPFlow)
    assert [(message.from_client, message.content) for message in flow.messages] == [
        (True, b"first\n"),
        (False, b"first\n"),
        (True, b"second\n"),
        (False, b"second\n"),
    ]
    assert (flow.metadata["kube"]["up_bytes"], flow.metadata["kube"]["down_bytes"]) == (13, 13)
    assert flow.comment.endswith("13b up, 13b down")


def test_a_websocket_has_its_messages() -> None:
    (flow,) = flows(recording("websocket"))
    assert isinstance(flow, http.HTTPFlow)
    assert flow.websocket is not None
    assert [message.content for message in flow.websocket.messages] == [b"text"] * 2 + [b"\x00binary"] * 2
    assert flow.websocket.close_code == 1000


def test_reading_leaves_flows_as_they_were_recorded(tmp_path: Path) -> None:
    everything, copy = tmp_path / "everything.mitm", tmp_path / "copy.mitm"
    everything.write_bytes(b"".join(recording(name).read_bytes() for name in RECORDINGS))
    reread(tmp_path, "-r", everything, "-w", copy)
    before, after = ([flow.get_state() for flow in flows(path)] for path in (everything, copy))
    assert len(before) > len(RECORDINGS)
    assert after == before


def test_the_pod_is_a_filter_when_a_recording_is_read(tmp_path: Path) -> None:
    found = tmp_path / "found.mitm"
    reread(tmp_path, "-r", recording("http1"), "-w", found, "~comment pair:8080")
    (flow,) = flows(found)
    assert flow.metadata["kube"]["service"] == "pair.demo.svc.cluster.local"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
@pytest.mark.parametrize(
    ("name", "filters", "count"),
    [
        ("http1", "~d pair.demo", 1),
        ("http1", "~comment pair:8080", 1),
        ("http1", "~meta pair.demo.svc.cluster.local", 1),
        ("http1", "~comment echo- & ~m POST", 2),
        ("http1", "~comment nothing-of-that-name", 0),
        ("https2", "~comment :8443", 2),
        ("refusals", "~comment NoReadyEndpoints", 1),
        ("refusals", "~marked", 3),
        ("grpc", "~meta pod_port.*9090", 2),
        ("websocket", "~websocket & ~comment echo-", 1),
        ("tcp", "~tcp & ~comment echo-", 1),
    ],
)
def test_flows_are_found_by_host_comment_and_metadata(name: str, filters: str, count: int) -> None:
    fits = flowfilter.parse(filters)
    assert sum(bool(fits(flow)) for flow in flows(recording(name))) == count


# server replay


def replay_of(*names: str) -> list[str]:
    return [argument for name in names for argument in ("--server-replay", str(recording(name)))]


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """Answers from all recordings, as often as it is asked, and has no cluster."""
    options = [*replay_of(*RECORDINGS), "--set", "server_replay_reuse=true"]
    with Tunnel(tmp_path_factory.mktemp("confdir"), env=NO_CLUSTER, options=options) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


def recorded_pod(name: str, index: int = 0) -> str:
    pod: str = flows(recording(name))[index].metadata["kube"]["pod"]
    return pod


def test_a_request_by_service_name_gets_the_recorded_answer(tunnel: Tunnel) -> None:
    answer = tunnel.get(ECHO)
    assert (answer.status, answer.reason, answer.text) == (200, None, recorded_pod("http1") + "\n")
    body = tunnel.get(ECHO, "/bytes?n=5000&chunked=1")
    assert (body.headers["transfer-encoding"], len(body.body)) == ("chunked", 5000)
    assert tunnel.via_proxy(f"http://{ECHO}/status?code=418").status == 418
    assert tunnel.get("pair.demo").text == "pair\n", "as it was recorded"


@pytest.mark.parametrize("way", ["direct", "CONNECT", "SOCKS5"])
def test_https_is_answered_however_it_comes(tunnel: Tunnel, way: str) -> None:
    through = {
        "direct": ("--connect-to", f"::127.0.0.1:{tunnel.port}"),
        "CONNECT": ("-x", tunnel.url),
        "SOCKS5": ("--socks5-hostname", f"127.0.0.1:{tunnel.port}"),
    }[way]
    answer = curl("-k", "--http2", *through, f"https://{ECHO}/hostname")
    assert (answer.status, answer.text) == (200, recorded_pod("https2") + "\n")


async def test_a_grpc_call_gets_the_recorded_message_and_trailers(tunnel: Tunnel) -> None:
    options = [("grpc.default_authority", f"{ECHO}:9090"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options=options) as channel:
        unary = channel.unary_unary(
            "/echo.v1.Echo/Unary",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        for text in ("two", "one"):
            assert (await unary(StringValue(value=text), timeout=20)).value == text
        with pytest.raises(grpc.aio.AioRpcError) as missed:
            await unary(StringValue(value="three"), timeout=20)
    assert missed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert NO_CLUSTER["KUBECONFIG"] in (missed.value.details() or "")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (ECHO, "ClusterUnreachable"),
        ("echo", "ClusterUnreachable"),  # its Namespace is the kubeconfig's
        ("api.shop.svc.example.com", "NotAServiceName"),
    ],
)
def test_a_miss_is_refused(tunnel: Tunnel, host: str, reason: str) -> None:
    answer = tunnel.get(host, "/never-recorded")
    assert (answer.exit_code, answer.reason) == (0, reason)
    assert reason == "NotAServiceName" or NO_CLUSTER["KUBECONFIG"] in answer.json["detail"]


def test_a_recorded_refusal_is_given_again(tunnel: Tunnel) -> None:
    answer = tunnel.get("nothere.demo.svc.cluster.local", "/")
    assert (answer.status, answer.reason) == (404, "ServiceNotFound")


def test_raw_tcp_is_not_replayed_and_ends(tunnel: Tunnel) -> None:
    with socks5(tunnel.port, ECHO, 7) as connection, pytest.raises(ConnectionResetError):
        connection.sendall(b"first\n")
        received(connection, 6)


async def test_each_answer_is_given_once_and_by_the_body(start_tunnel: Callable[..., Any]) -> None:
    tunnel = await start_tunnel(None, env=NO_CLUSTER, options=replay_of("http1"))
    post = partial(tunnel.get, ECHO, "/orders/1?full=yes", "-X", "POST", "--data-binary")
    for sent in ("two", "one"):
        answer = await asyncio.to_thread(post, sent)
        assert answer.json["body"] == sent
    again = await asyncio.to_thread(post, "one", "-H", "Transfer-Encoding: chunked")
    assert again.reason == "ClusterUnreachable"


async def test_options_of_server_replay_are_mitmproxys(start_tunnel: Callable[..., Any]) -> None:
    options = [*replay_of("http1"), "--set", "server_replay_extra=404", "--set", "server_replay_ignore_host=true"]
    tunnel = await start_tunnel(None, env=NO_CLUSTER, options=[*options, "--set", "kube_namespace=demo"])
    first = await asyncio.to_thread(tunnel.get, "echo")
    assert first.text == recorded_pod("http1") + "\n"
    await asyncio.to_thread(tunnel.wait_for, f"GET http://{ECHO}/hostname")
    missed = await asyncio.to_thread(tunnel.get, "echo", "/never-recorded")
    assert (missed.status, missed.reason) == (404, None)


@pytest.mark.parametrize("name", ["http1", "https2", "grpc", "websocket"])
async def test_what_was_recorded_is_routed_as_it_was(sim: SimCluster, tmp_path: Path, name: str) -> None:
    """A replay asks no cluster, so a change of routing shows here, on the simulated one with the same objects."""
    settings = Settings(cluster=ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig"))))
    clusters = Clusters(settings)
    router = Router(settings, clusters)
    recorded = [flow for flow in flows(recording(name)) if isinstance(flow, http.HTTPFlow) and "kube" in flow.metadata]
    assert recorded
    for flow in recorded:
        kube = flow.metadata["kube"]
        request = PortRequest(kube["port"], explicit=True, scheme=flow.request.scheme)
        destination = await router.find(await router.parse(kube["service"]), request)
        assert destination.address == (flow.request.host, flow.request.port)
        assert destination.spoken.tls == (flow.request.scheme == "https")
        assert {target.pod_port.port for target in destination.targets} == {kube["pod_port"]}
    await clusters.aclose()
