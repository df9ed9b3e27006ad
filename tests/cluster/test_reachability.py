"""When the API server is away, silent, or known by a name that nobody resolves any more; and when it is back."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bench.delay_relay import delayed
from kubetunnel.cluster.access import ClusterAccess, load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.reach import LEAST_PATIENCE_S, LEAST_S, LONGEST_PATIENCE_S, LONGEST_S, Reach
from kubetunnel.cluster.suspicion import REPEAT_S, SUSPENDED_S, Suspicion
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.errors import ClusterUnreachable
from tests.cluster.conftest import WriteKubeconfig, until
from tests.cluster.fake_api import FakeApi, add_endpoint, add_service
from tests.cluster.test_discovery import addresses, watched
from tests.relay import Relay

pytestmark = pytest.mark.usefixtures("either_task_factory")


class Clocks:
    """One clock that stops while the machine is suspended, and one that does not."""

    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.suspended_s = 0.0

    def monotonic(self) -> float:
        return self.monotonic_s

    def running(self) -> float:
        return self.monotonic_s + self.suspended_s


def test_a_suspension_is_seen_at_the_next_use() -> None:
    clocks, told = Clocks(), list[str]()
    suspicion = Suspicion(monotonic=clocks.monotonic, running=clocks.running)
    unsubscribe = suspicion.subscribe(told.append)
    clocks.monotonic_s += 3600.0
    suspicion.look()
    assert told == [], "an hour in which nobody asked"
    clocks.suspended_s += SUSPENDED_S
    suspicion.look()
    suspicion.look()
    assert told == ["the machine was suspended for 5 s"]
    clocks.suspended_s += 3600.0
    unsubscribe()
    suspicion.look()
    assert len(told) == 1


def test_doubts_in_a_burst_are_told_once() -> None:
    clocks, told = Clocks(), list[str]()
    suspicion = Suspicion(monotonic=clocks.monotonic, running=clocks.running)
    suspicion.subscribe(told.append)
    for number in range(5):
        suspicion.voice(f"connection {number} is dead")
    assert told == ["connection 0 is dead"]
    clocks.monotonic_s += REPEAT_S
    suspicion.voice("and another")
    assert told[1:] == ["and another"]


def test_silence_is_waited_for_once() -> None:
    reach = Reach(10.0)
    assert reach.timeout_s == 10.0, "it may simply be far away"
    reach.failed(silent=True)
    assert reach.timeout_s == 1.5
    reach.succeeded(0.02)
    assert reach.timeout_s == 1.5
    reach.failed(silent=True)
    assert reach.timeout_s == 0.5
    reach.failed(silent=False)
    assert reach.timeout_s == 1.5, "it refuses: that is no silence"
    reach.succeeded(0.3)
    reach.failed(silent=True)
    assert reach.timeout_s == pytest.approx(1.2)
    reach.succeeded(1.0)
    reach.failed(silent=True)
    assert reach.timeout_s == 4.0
    reach.succeeded(9.0)
    assert reach.timeout_s == LONGEST_S


def test_patience_follows_from_what_answers_take() -> None:
    reach = Reach()
    assert reach.patience_s > reach.timeout_s, "the connection is to blame, not what is asked on it"
    reach.failed(silent=True)
    assert reach.patience_s == LEAST_PATIENCE_S
    reach.succeeded(1.6)
    reach.answered(1.6)
    assert reach.patience_s == pytest.approx(12.8)
    reach.succeeded(0.01)
    reach.answered(0.01)
    assert reach.patience_s == LEAST_PATIENCE_S
    assert LEAST_PATIENCE_S > LEAST_S
    reach.answered(60.0)
    assert reach.patience_s == LONGEST_PATIENCE_S


def test_a_server_that_became_slow_is_found_out_by_one_request_at_a_time() -> None:
    reach = Reach()
    reach.succeeded(0.01)
    reach.answered(0.01)
    assert reach.answer_timeout_s(5.0) == 5.0
    reach.unanswered()
    reach.unanswered()
    assert reach.answer_timeout_s(5.0) == LONGEST_PATIENCE_S
    assert reach.answer_timeout_s(5.0) == 5.0
    reach.unanswered()
    reach.answered(6.0)
    assert reach.answer_timeout_s(5.0) == reach.patience_s > 6.0


async def test_who_rests_is_woken_when_somebody_else_reaches_it() -> None:
    reach = Reach()
    await asyncio.wait_for(reach.rest(0.01), 5)
    reach.failed(silent=False)
    resting = asyncio.create_task(reach.rest(60.0))
    await asyncio.sleep(0)
    reach.succeeded(0.1)
    await asyncio.wait_for(resting, 5)
    resting = asyncio.create_task(reach.rest(60.0))
    await asyncio.sleep(0)
    reach.succeeded(0.1)
    done, _ = await asyncio.wait({resting}, timeout=0.05)
    assert not done, "it was not away"
    resting.cancel()


@pytest.fixture
async def relay(either_task_factory: None, api_server: FakeApi) -> AsyncIterator[Relay]:
    async with Relay("127.0.0.1", api_server.port) as relay:
        yield relay


@pytest.fixture
async def access(relay: Relay, kubeconfig: WriteKubeconfig) -> AsyncIterator[ClusterAccess]:
    """Through the relay."""
    access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{relay.port}"}))
    yield access
    await access.aclose()


@pytest.fixture
async def discovery(access: ClusterAccess) -> AsyncIterator[Discovery]:
    discovery = Discovery(access)
    yield discovery
    await discovery.aclose()


async def test_watches_that_died_in_silence_begin_anew_on_suspicion(
    api_server: FakeApi, relay: Relay, access: ClusterAccess, discovery: Discovery
) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    dead = list(api_server.watches)
    relay.fall_silent()
    relay.resume()
    add_endpoint(api_server, address="10.0.0.2")
    access.suspicion.voice("the network changed")
    await until(lambda: len([watch for watch in api_server.watches if watch not in dead]) == 2)
    # the fake forgets what happened meanwhile, as a real one answers 410
    for watch in api_server.watches:
        watch.send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await until(lambda: addresses(discovery._followed["shop", "web"].last) == ["10.0.0.2"])


async def test_a_fresh_lookup_replaces_watches_that_say_otherwise(
    api_server: FakeApi, relay: Relay, discovery: Discovery
) -> None:
    add_service(api_server)
    changes: list[str] = []
    discovery.subscribe(lambda _, name, state: changes.append(f"{name} {addresses(state) if state else 'gone'}"))
    await discovery.service("shop", "web")
    await watched(api_server)
    before = discovery._followed["shop", "web"]
    relay.fall_silent()
    relay.resume()
    add_endpoint(api_server, address="10.0.0.2")
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"], "nobody has said otherwise"
    await discovery._api._http._connector.close()  # what the pool does a few seconds later
    discovery._api._http._session = None
    assert addresses(await discovery.service("shop", "web", fresh=True)) == ["10.0.0.2"]
    assert discovery._followed["shop", "web"] is not before
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.2"]
    assert changes == ["web ['10.0.0.1']", "web ['10.0.0.2']"]


async def test_a_fresh_lookup_that_says_the_same_changes_nothing(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    before = discovery._followed["shop", "web"]
    await discovery.service("shop", "web", fresh=True)
    assert discovery._followed["shop", "web"] is before


async def test_watches_are_back_as_soon_as_anyone_reaches_the_api_server(
    api_server: FakeApi, relay: Relay, discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as after a long outage; full jitter would make it short by chance
    monkeypatch.setattr("kubetunnel.cluster.reflector.RECONNECT", Backoff(base_s=1e6, cap_s=1e6))
    add_service(api_server)
    add_service(api_server, "second")
    await discovery.service("shop", "web")
    await watched(api_server)
    await relay.stop()
    await until(lambda: not api_server.watches)
    with pytest.raises(ClusterUnreachable):
        await discovery.service("shop", "second")
    await relay.listen()
    await discovery.service("shop", "second")
    await watched(api_server, 4)


async def test_an_api_server_that_hangs_is_waited_for_once(relay: Relay, access: ClusterAccess) -> None:
    async def connect() -> None:
        transport, _ = await access.connect(asyncio.Protocol)
        transport.abort()

    async def failing() -> float:
        started = time.monotonic()
        with pytest.raises(ClusterUnreachable, match="no answer within"):
            await connect()
        return time.monotonic() - started

    await connect()
    relay.fall_silent()
    assert await failing() >= 1.4
    assert await failing() < 1.2, "half a second, and what a loaded machine adds"
    relay.resume()
    await connect()
    assert access.reach.timeout_s == 1.5


type Lookup = Callable[..., Any]


@pytest.fixture
async def resolver(either_task_factory: None, monkeypatch: pytest.MonkeyPatch) -> list[Lookup]:
    """What answers look-ups: the last one in the list."""
    loop = asyncio.get_running_loop()
    answers: list[Lookup] = [loop.getaddrinfo]

    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        return await answers[-1](host, port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return answers


async def hang(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


async def fail(*_: Any, **__: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("trouble", [hang, fail])
async def test_a_known_api_server_is_reached_while_its_name_is_not_resolved(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, resolver: list[Lookup], trouble: Lookup
) -> None:
    access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://localhost:{api_server.port}"}))
    add_service(api_server)
    add_service(api_server, "second")
    discovery = Discovery(access)
    await discovery.service("shop", "web")
    resolver.append(trouble)
    await discovery._api._http._connector.close()  # what was kept alive would need no name
    discovery._api._http._session = None
    assert addresses(await discovery.service("shop", "second")) == ["10.0.0.1"]
    await discovery.aclose()
    await access.aclose()


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(hang, "its name is not resolved, the resolver does not answer"), (fail, "Name or service not known")],
)
async def test_a_name_that_was_never_resolved_is_told(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, resolver: list[Lookup], trouble: Lookup, told: str
) -> None:
    config = kubeconfig(cluster={"server": f"https://localhost:{api_server.port}"})
    access = await load_access(kubeconfig=config, connect_timeout_s=1.0)
    resolver.append(trouble)
    for _ in range(2):
        with pytest.raises(ClusterUnreachable, match=told) as refusal:
            await access.connect(asyncio.Protocol)
    assert "cluster-info" in str(refusal.value.command)
    resolver.pop()
    await access.aclose()  # ends the look-up that hangs
    transport, _ = await access.connect(asyncio.Protocol)
    transport.abort()
    await access.aclose()


async def test_a_server_that_moved_far_away_is_not_taken_for_dead(
    api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    """What is usual is learnt anew by an attempt that nobody waits for."""
    async with delayed("127.0.0.1", api_server.port, 0.8) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{port}"}))
        access.reach.succeeded(0.01)
        with pytest.raises(ClusterUnreachable, match=r"no answer within 1\.5 s"):
            await access.connect(asyncio.Protocol)
        assert access._connector._probe is not None
        await until(lambda: access.reach.timeout_s > LEAST_S)
        transport, _ = await access.connect(asyncio.Protocol)
        transport.abort()
        await until(lambda: access._connector._probe is None)
        await access.aclose()


async def test_what_others_take_counts_for_who_connects_already(
    api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    async with delayed("127.0.0.1", api_server.port, 0.8) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{port}"}))
        access.reach.succeeded(0.01)
        connecting = asyncio.create_task(access.connect(asyncio.Protocol))
        await until(lambda: bool(access._connector._limits))
        access._connector._learn(2.0)
        transport, _ = await connecting
        assert not access._connector._limits
        transport.abort()
        await access.aclose()
