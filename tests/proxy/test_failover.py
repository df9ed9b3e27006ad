"""A pod whose port refuses costs nobody anything while another pod takes the connection."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, Settings, ZoneSettings
from kubetunnel.forward import stream
from kubetunnel.forward.answered import MAX_ANSWERED
from kubetunnel.forward.attempts import FAILED_MEMORY_S, Attempts, Choices
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.proxy import failover
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.failover import MAX_HELD_BYTES, FailoverStream
from kubetunnel.proxy.routing import Destination, Router, Upstream, error_of
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.proxy.test_troubles import get
from tests.tunnel import Tunnel

ECHO = PortRequest(7, explicit=True, scheme="")
POD_PORT = 9000  # of the demo's echo port 7


@pytest_asyncio.fixture
async def clusters(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Clusters]:
    opened = Clusters(Settings(cluster=ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig")))))
    yield opened
    await opened.aclose()


@pytest.fixture
def router(clusters: Clusters) -> Router:
    return Router(Settings(), clusters, random.Random(1))


async def find(router: Router) -> Destination:
    return await router.find(await router.parse("echo.demo"), ECHO)


def refuse_at_first_choice(sim: SimCluster, destination: Destination) -> str:
    """All but one pod refuse. Returns the name of the one that does not."""
    *others, sound = destination.targets
    for target in others:
        sim.faults.set(f"demo/{target.pod_port.pod}", POD_PORT, refuse=True)
    return sound.pod_port.pod


async def echoed(upstream: Upstream, data: bytes) -> bytes:
    upstream.writer.write(data)
    async with asyncio.timeout(5):
        return await upstream.reader.readexactly(len(data))


@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY, Protocols.V4])
@pytest.mark.parametrize("size", [1, 100_000])
async def test_what_was_sent_to_a_pod_that_refused_goes_to_another(
    sim: SimCluster, router: Router, protocols: Protocols, size: int
) -> None:
    sim.faults.protocols = protocols
    destination = await find(router)
    sound = refuse_at_first_choice(sim, destination)
    retries = 0
    for _ in range(4):
        upstream = await router.open(destination)
        assert await echoed(upstream, bytes(size)) == bytes(size)
        assert upstream.target.pod_port.pod == sound
        retries += upstream.retries
        upstream.writer.close()
    assert retries == 1, "the pod that refused is not tried first again"


async def test_what_a_pod_did_is_nothing_to_one_of_its_name_in_another_cluster(sim: SimCluster, tmp_path: Path) -> None:
    config = ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "both", context="same")))
    settings = Settings(cluster=config, zones=(ZoneSettings("other.local", "same"),))
    clusters = Clusters(settings)
    router = Router(settings, clusters, random.Random(1))
    here, there = [
        await router.find(await router.parse(f"echo.demo.svc.{zone}"), ECHO)
        for zone in ("cluster.local", "other.local")
    ]
    refuse_at_first_choice(sim, here)
    retries = 0
    for _ in range(4):
        upstream = await router.open(here)
        await echoed(upstream, b"x")
        retries += upstream.retries
        upstream.writer.close()
    assert retries >= 1
    sim.faults.clear()
    opened = [await router.open(there) for _ in there.targets]
    assert {upstream.target for upstream in opened} == set(there.targets)
    for upstream in opened:
        upstream.writer.close()
    await clusters.aclose()


async def test_a_service_whose_pods_all_refuse_says_so_soon(sim: SimCluster, router: Router) -> None:
    sim.faults.set(None, POD_PORT, refuse=True)
    upstream = await router.open(await find(router))
    upstream.writer.write(b"anybody?")
    async with asyncio.timeout(1.5):
        with pytest.raises(OSError, match="Nothing listens") as failed:
            await upstream.reader.read()
    error = error_of(failed.value)
    assert isinstance(error, ConnectionRefused)
    assert error.command
    assert upstream.retries == 1, "each pod once"
    upstream.writer.close()


async def test_who_waits_for_the_connection_is_told_that_all_refuse(
    sim: SimCluster, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", 2.0)
    sim.faults.set(None, POD_PORT, refuse=True)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionRefused, match="Nothing listens") as failed:
            await router.open(await find(router), until_connected=True)
    assert failed.value.command


async def test_who_waits_for_the_connection_gets_the_pod_that_listens(
    sim: SimCluster, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", 0.5)
    destination = await find(router)
    sound = refuse_at_first_choice(sim, destination)
    for _ in range(3):
        upstream = await router.open(destination, until_connected=True)
        assert upstream.target.pod_port.pod == sound
        assert await echoed(upstream, b"hello") == b"hello"
        upstream.writer.close()


async def test_who_waits_for_the_connection_of_a_silent_runtime_waits_no_longer_than_that(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", 3600.0)
    monkeypatch.setattr(failover, "CONNECTED_TIMEOUT_S", 0.1)
    async with asyncio.timeout(5):
        upstream = await router.open(await find(router), until_connected=True)
        assert await echoed(upstream, b"hello") == b"hello"
    upstream.writer.close()


async def test_who_leaves_while_the_connection_is_waited_for_leaves_nothing(
    clusters: Clusters, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", 3600.0)
    monkeypatch.setattr(failover, "CONNECTED_TIMEOUT_S", 3600.0)
    opening = asyncio.create_task(router.open(await find(router), until_connected=True))
    forwards = (await clusters.first.session()).forwards
    async with asyncio.timeout(5):
        while not any(facts.streams for facts in forwards.upstreams()):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        while any(facts.streams for facts in forwards.upstreams()):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0)


async def test_more_than_can_be_held_is_not_sent_to_another(sim: SimCluster, router: Router) -> None:
    destination = await find(router)
    sim.faults.set(None, POD_PORT, refuse=True)
    upstream = await router.open(destination)
    upstream.writer.write(bytes(MAX_HELD_BYTES + 1))
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="Nothing listens"):
            await upstream.reader.read()
    assert upstream.retries == 0
    upstream.writer.close()


@pytest.mark.parametrize("abort", [False, True])
async def test_who_leaves_while_another_is_tried_leaves_nothing(
    sim: SimCluster, clusters: Clusters, router: Router, abort: bool
) -> None:
    sim.faults.set(None, POD_PORT, refuse=True)
    upstream = await router.open(await find(router))
    upstream.writer.write(b"x")
    async with asyncio.timeout(5):
        while not (tasks := [task for task in asyncio.all_tasks() if task.get_name() == "fail-over"]):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0)
        (upstream.writer.transport.abort if abort else upstream.writer.close)()
        assert await upstream.reader.read() == b""
        await asyncio.wait(tasks)
    forwards = (await clusters.first.session()).forwards
    assert sum(facts.streams for facts in forwards.upstreams()) == 0


async def test_writers_wait_while_another_is_tried(sim: SimCluster, router: Router) -> None:
    destination = await find(router)
    refuse_at_first_choice(sim, destination)
    for _ in range(2):  # whichever is chosen first
        upstream = await router.open(destination)
        for _ in range(20):
            upstream.writer.write(b"0123456789")
            await upstream.writer.drain()
        async with asyncio.timeout(5):
            assert await upstream.reader.readexactly(200) == b"0123456789" * 20
        upstream.writer.close()


async def test_a_post_and_a_raw_connection_reach_the_pod_that_listens(sim: SimCluster, tunnel: Tunnel) -> None:
    first, second = sim.pods("demo", app="echo")
    for sound, refusing in ((first, second), (second, first)):
        sim.faults.clear()
        for port in (8080, POD_PORT):
            sim.faults.set(f"demo/{refusing.name}", port, refuse=True)
        for _ in range(4):
            answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/hostname", "-d", "body", timeout_s=5)
            assert (answer.status, answer.text.strip()) == (200, sound.name)
            assert await asyncio.to_thread(echo_through_connect, tunnel.port) == b"raw"
        await asyncio.sleep(0)
    assert (await get(tunnel)).status == 200


def echo_through_connect(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"CONNECT echo.demo:7 HTTP/1.1\r\nHost: echo.demo:7\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(b"raw")
        return client.recv(1000)


async def test_refused_and_good_requests_side_by_side(sim: SimCluster, tunnel: Tunnel) -> None:
    """A runtime does not read what was sent to a port that refuses: nobody may share a connection with that."""
    hosts = ["echo.demo:9999", "echo.demo"] * 10
    for _ in range(2):
        answers = await asyncio.gather(*(get(tunnel, host, limit_s=5) for host in hosts))
        assert [answer.reason for answer in answers] == ["ConnectionRefused", None] * 10


async def test_a_repeat_avoids_the_pod_whose_connection_was_cut(sim: SimCluster, router: Router) -> None:
    destination = await find(router)
    for _ in range(4):  # at random it would be the other one each time once in 16 times
        upstream = await router.open(destination)
        assert await echoed(upstream, b"x") == b"x"
        cut = upstream.target.pod_port
        sim.faults.cut(f"demo/{cut.pod}")
        with pytest.raises(OSError, match="cut"):
            await upstream.reader.read()
        error = error_of(upstream.reader.exception())
        assert error is not None
        upstream.attempts.lost(error)
        repeated = await router.open(destination)
        assert repeated.target.pod_port != cut
        repeated.writer.close()
        upstream.attempts._choices._failed_s.clear()


async def test_a_pod_that_resets_a_connection_is_not_avoided(sim: SimCluster, router: Router) -> None:
    upstream = await router.open(await find(router))
    assert await echoed(upstream, b"x") == b"x"
    sim.faults.set(f"demo/{upstream.target.pod_port.pod}", POD_PORT, reset=True)
    upstream.writer.write(b"y")
    with pytest.raises(OSError, match="reset") as failed:
        await upstream.reader.read()
    error = error_of(failed.value)
    assert error is not None
    upstream.attempts.lost(error)
    assert not upstream.attempts._choices.failed_lately(upstream.target.pod_port)
    upstream.writer.close()


def test_failures_are_remembered_for_a_while() -> None:
    now_s = 0.0
    choices = Choices(random.Random(1), lambda: now_s)
    web, other = PodPort("shop", "api-0", 80, ""), PodPort("shop", "api-0", 81, "")
    choices.failed(web, ConnectionRefused("It refused."))
    assert choices.failed_lately(web)
    assert not choices.failed_lately(other), "its other ports may listen"
    choices.failed(web, KubeTunnelError("Its node is gone."))
    assert choices.failed_lately(other)
    now_s = FAILED_MEMORY_S
    assert not choices.failed_lately(web)
    assert not choices.failed_lately(other)


def test_a_port_shares_once_it_has_answered_and_until_it_refuses() -> None:
    choices = Choices(random.Random(1))
    ports = [PodPort("shop", f"api-{number}", 80, "") for number in range(MAX_ANSWERED + 1)]
    assert ports[0] not in choices.answered
    for port in ports:
        choices.answered.add(port)
    assert ports[0] not in choices.answered, "the oldest is forgotten"
    assert ports[1] in choices.answered
    choices.failed(ports[1], ConnectionRefused("It refused."))
    assert ports[1] not in choices.answered


class Refusing(Attempts):
    """Opens no other."""

    def __init__(self) -> None:
        pass

    async def open_another(self, refused: ConnectionRefused, protocol_factory: object) -> None:
        await asyncio.Event().wait()


class Narrow(asyncio.Transport):
    """A stream that any byte fills."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = b""
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)
        self._protocol.pause_writing()

    def abort(self) -> None:
        pass


class Writer(asyncio.Protocol):
    waits = False

    def pause_writing(self) -> None:
        self.waits = True

    def resume_writing(self) -> None:
        self.waits = False


async def test_a_writer_waits_where_what_was_held_has_filled_the_next_stream() -> None:
    writer = Writer()
    failover_stream = FailoverStream(Refusing(), writer)
    failover_stream.connection_made(asyncio.Transport())
    failover_stream._held = [b"first"]
    failover_stream.connection_lost(StreamFailed(ConnectionRefused("It refused.")))
    assert writer.waits
    narrow = Narrow(failover_stream)
    failover_stream.connection_made(narrow)
    assert narrow.written == b"first"
    assert writer.waits, "as long as the stream takes no more"
    failover_stream.resume_writing()
    assert not writer.waits
    assert failover_stream._reopening is not None
    failover_stream._reopening.cancel()
