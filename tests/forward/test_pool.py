"""The pool: reuse, isolation, draining, liveness, cancellation and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from kubetunnel.cluster.reach import LEAST_PATIENCE_S, LEAST_S
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError, Timeout, UpstreamReset
from kubetunnel.forward.errors import DialTimeout, StreamFailed
from kubetunnel.forward.lane import UPLOAD_BYTES
from kubetunnel.forward.liveness import DEATH_S, UPLOAD_DEATH_S
from kubetunnel.forward.pod_forward import PodForward
from kubetunnel.forward.policy import IDLE_TIMEOUT_S
from kubetunnel.forward.pool import PortForwards, _delay_s
from kubetunnel.forward.silence import Silences
from kubetunnel.forward.upstream import LINGER_S, Upstream
from tests.forward.apiserver import ALL, DEAF, DEAF_BYTES, ECHO, FLOODS, V4, Access, ApiServer
from tests.forward.test_streams import Recorder, to, until

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def opened(forwards: PortForwards) -> Streams:
    """A stream that is known to work."""
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    return reader, writer


async def closed(streams: Streams) -> None:
    streams[1].close()
    await streams[1].wait_closed()


def whole(forwards: PortForwards) -> bool:
    """Nobody waits, nothing dials, and the books agree with the upstreams."""
    pods = forwards._pods.values()
    books = all(
        pod.policy._upstreams[key].streams == sum(lane.counted for lane in upstream._lanes.values())
        for pod in pods
        for key, upstream in pod._upstreams.items()
    )
    return books and not forwards._tasks and not any(pod._waiters or pod.policy._dials for pod in pods)


async def test_an_upstream_is_used_again(api: ApiServer, forwards: PortForwards) -> None:
    for _ in range(5):
        await closed(await opened(forwards))
    assert api.connections == 1
    assert forwards.upstreams()[0].streams_opened == 5
    assert whole(forwards)


async def test_a_v4_upstream_is_not_used_again(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4})
    for _ in range(2):
        await closed(await opened(forwards))
    await until(lambda: not forwards.upstreams())
    assert whole(forwards)


async def test_streams_at_once_do_not_share(api: ApiServer, forwards: PortForwards) -> None:
    streams = [await opened(forwards) for _ in range(3)]
    assert api.connections == 3
    assert forwards.open_streams("shop", "web") == 3
    assert forwards.open_streams("shop", "other") == 0
    for one in streams:
        await closed(one)
    assert forwards.open_streams("shop", "web") == 0


async def test_above_the_limit_they_share(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=2)
    streams = [await opened(forwards) for _ in range(6)]
    assert api.connections == 2
    assert sorted(facts.streams for facts in forwards.upstreams()) == [3, 3]
    for one in streams:
        await closed(one)
    await forwards.aclose()


async def test_one_dial_for_one_waiter(api: ApiServer, forwards: PortForwards) -> None:
    streams = await asyncio.gather(*(opened(forwards) for _ in range(10)))
    assert api.connections == 10
    for one in streams:
        await closed(one)
    assert whole(forwards)


async def test_after_repeated_failures_one_dial_is_tried_for_all(api: ApiServer, forwards: PortForwards) -> None:
    api.fault = "hangup"
    for _ in range(2):
        with pytest.raises(KubeTunnelError):
            await forwards.open_connection(to(ECHO))
    before = api.connections
    results = await asyncio.gather(*(forwards.open_connection(to(ECHO)) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, KubeTunnelError) for result in results)
    assert api.connections == before + 1
    api.fault = ""
    await closed(await opened(forwards))
    assert whole(forwards)


async def test_a_cancelled_open_leaves_the_pool_whole(api: ApiServer, forwards: PortForwards) -> None:
    cancelled = 0
    for turns in range(40):
        opening = asyncio.create_task(forwards.open(to(ECHO), Recorder))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            transport, _ = await opening
        except asyncio.CancelledError:
            cancelled += 1
        else:
            transport.close()
    assert cancelled >= 2
    await until(lambda: whole(forwards))
    before = api.connections
    for _ in range(3):
        await closed(await opened(forwards))
    # what was dialled for those who went away is there for those who came
    assert api.connections == before


async def test_an_open_cancelled_between_choice_and_use(api: ApiServer, forwards: PortForwards) -> None:
    await closed(await opened(forwards))
    holders = [await opened(forwards)]
    opening = asyncio.create_task(opened(forwards))
    while forwards.open_streams("shop", "web") < 2:  # noqa: ASYNC110  (turn by turn: chosen, and its waiter asleep)
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for holder in holders:
        await closed(holder)
    await until(lambda: whole(forwards))


async def test_draining_keeps_what_runs_and_takes_nothing_new(api: ApiServer, forwards: PortForwards) -> None:
    running = await opened(forwards)
    await closed(await opened(forwards))
    forwards.drain("shop", "web")
    await until(lambda: len(api.sessions) == 1)
    running[1].write(b"to the end")
    assert await running[0].readexactly(10) == b"to the end"
    other = await opened(forwards)
    assert api.connections == 3
    await closed(running)
    await until(lambda: len(api.sessions) == 1)
    await closed(other)


async def test_a_pod_that_ends_is_drained_until_nothing_is_open_to_it(api: ApiServer, forwards: PortForwards) -> None:
    holder = await opened(forwards)
    forwards.drain("shop", "web", "it was closed on request")
    assert [(each.state, each.reason) for each in forwards.forwards()] == [("draining", "it was closed on request")]
    await closed(holder)
    await until(lambda: not forwards.upstreams())
    assert [(each.state, each.reason) for each in forwards.forwards()] == [("closed", "it was closed on request")]


async def test_a_pod_that_ends_with_nothing_open_to_it_is_not_ready(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4})
    await closed(await opened(forwards))
    await until(lambda: not forwards.upstreams())
    forwards.drain("shop", "web")
    assert [(each.state, each.reason) for each in forwards.forwards()] == [("closed", "its pod ends")]
    await closed(await opened(forwards))
    assert forwards.forwards()[0].state == "ready"


async def test_who_waits_for_a_pod_that_ended_in_silence_is_told_soon(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await opened(forwards)
    api.sessions[0].silent = True
    writer.write(b"a question")
    forwards.drain("shop", "web")
    async with asyncio.timeout(DEATH_S - 2):
        with pytest.raises(StreamFailed, match="on new connections only"):
            await reader.read()
    writer.close()


async def test_idle_upstreams_are_reaped(api: ApiServer, forwards: PortForwards) -> None:
    await closed(await opened(forwards))
    now = asyncio.get_running_loop().time()
    for pod in forwards._pods.values():
        pod.tick(now + IDLE_TIMEOUT_S - 1)
    assert len(forwards.upstreams()) == 1
    for pod in forwards._pods.values():
        pod.tick(now + IDLE_TIMEOUT_S + 1)
    await until(lambda: not forwards.upstreams())
    assert all(pod.policy.empty for pod in forwards._pods.values())


async def test_a_new_connection_to_a_pod_in_use_costs_no_dial(api: ApiServer, forwards: PortForwards) -> None:
    streams = [await opened(forwards)]
    for connections in (2, 3):
        forwards._look_at_all(asyncio.get_running_loop().time())
        await until(lambda count=connections: len(forwards.upstreams()) == count)
        streams.append(await opened(forwards))
        assert api.connections == connections
    for one in streams:
        await closed(one)


async def test_a_pod_that_is_dialled_at_the_upgrade_gets_no_spare(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4})
    one = await opened(forwards)
    forwards._look_at_all(asyncio.get_running_loop().time())
    assert not forwards._tasks
    await closed(one)


async def test_a_forward_that_nobody_uses_is_forgotten(
    api: ApiServer, forwards: PortForwards, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kubetunnel")
    await closed(await opened(forwards))
    await until(lambda: not forwards.open_streams("shop", "web"))
    forwards._look_at_all(asyncio.get_running_loop().time() + IDLE_TIMEOUT_S + 1)
    await until(lambda: not forwards.upstreams())
    assert len(forwards.forwards()) == 1, "its upstream was closing"
    forwards._look_at_all(asyncio.get_running_loop().time() + 32)
    assert forwards.forwards() == []
    assert caplog.records[-1].getMessage() == "Forward to shop/web closed: nobody uses it"


@pytest.mark.parametrize("speaks", [ALL, frozenset({"SPDY/3.1"})])
async def test_an_upstream_that_answers_no_pings_dies(
    api: ApiServer, forwards: PortForwards, speaks: frozenset[str], caplog: pytest.LogCaptureFixture
) -> None:
    api.speaks = speaks
    caplog.set_level(logging.INFO)
    reader, writer = await opened(forwards)
    upstream = next(iter(forwards._of_upstream))
    api.sessions[0].silent = True
    now = asyncio.get_running_loop().time()
    for second in range(1, 9):
        upstream.look(now + second)
    assert not upstream.retired
    upstream.look(now + 10)
    with pytest.raises(StreamFailed, match="pings") as caught:
        await reader.read()
    assert type(caught.value.error) is UpstreamReset
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("kubetunnel.forward")]
    assert sum("no pings" in line for line in ours) == 1
    writer.close()


async def test_an_upstream_that_answers_lives(api: ApiServer, forwards: PortForwards) -> None:
    _reader, writer = await opened(forwards)
    upstream = next(iter(forwards._of_upstream))
    now = asyncio.get_running_loop().time()
    for second in range(1, 7):
        upstream.look(now + second)
    assert upstream._liveness._pinged_at is not None
    await until(lambda: upstream._liveness._pinged_at is None)
    writer.close()


async def test_where_connections_are_in_doubt_a_new_stream_waits_for_none_of_them(
    api: ApiServer, forwards: PortForwards, access: Access
) -> None:
    lane, idle = await opened(forwards), await opened(forwards)
    await closed(idle)
    await until(lambda: forwards.open_streams("shop", "web") == 1)
    for session in api.sessions:
        session.silent = True
    access.suspicion.voice("the network changed")
    assert all(upstream.stalled for upstream in forwards._of_upstream)
    assert lane[1].get_extra_info("crowded")
    await closed(await opened(forwards))
    assert api.connections == 3
    assert not lane[0].at_eof()
    lane[1].transport.abort()


async def test_a_doubt_is_over_with_the_answer(api: ApiServer, forwards: PortForwards, access: Access) -> None:
    lane = await opened(forwards)
    access.suspicion.voice("the network changed")
    assert lane[1].get_extra_info("crowded")
    await until(lambda: not lane[1].get_extra_info("crowded"))
    await closed(lane)


async def test_an_upstream_whose_pod_is_reached_by_another_makes_the_others_doubtful(
    api: ApiServer, forwards: PortForwards, access: Access
) -> None:
    told: list[str] = []
    unsubscribe = access.suspicion.subscribe(told.append)
    _, writer = await opened(forwards)
    forwards._silences = Silences()  # as if the dial had been long ago
    api.sessions[0].silent = True
    upstream = next(iter(forwards._of_upstream))
    now = asyncio.get_running_loop().time()
    for second in range(1, 11):
        upstream.look(now + second)
    assert "answers no pings" in upstream.retired
    assert told == [], "its node may be dead, and nothing else"
    writer.close()
    await closed(await opened(forwards))
    assert len(told) == 1
    assert "shop/web" in told[0]
    unsubscribe()


async def test_a_stuck_upstream_makes_no_other_doubtful(api: ApiServer, forwards: PortForwards, access: Access) -> None:
    told: list[str] = []
    unsubscribe = access.suspicion.subscribe(told.append)
    _, writer = await opened(forwards)
    upstream = next(iter(forwards._of_upstream))
    upstream.drain("a stream on it failed")
    upstream.found_dead("answers no pings")
    assert told == []
    unsubscribe()
    writer.close()


async def test_the_last_bytes_on_a_draining_upstream_arrive(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=1, spares=0)
    streams = [await opened(forwards) for _ in range(2)]
    forwards.drain("shop", "web")
    streams[0][1].close()
    streams[1][1].write(b"COMMIT")
    streams[1][1].close()
    assert forwards.open_streams("shop", "web") == 0
    (upstream,) = forwards._of_upstream
    assert str(upstream.retired) == "", "its streams are under way"
    (session,) = api.sessions
    await until(lambda: not forwards.upstreams())
    assert sum(session.received.values()) == 2 * len(b"x") + len(b"COMMIT")
    assert str(upstream.retired) == "draining"
    await forwards.aclose()


async def test_a_factory_that_raises_leaves_no_stream(api: ApiServer, forwards: PortForwards) -> None:
    def broken() -> asyncio.Protocol:
        raise ValueError

    with pytest.raises(ValueError):
        await forwards.open(to(ECHO), broken)
    assert forwards.open_streams("shop", "web") == 0
    await closed(await opened(forwards))
    assert api.connections == 1


async def test_a_defect_in_one_upstream_does_not_end_the_care_for_the_others(
    api: ApiServer, forwards: PortForwards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [await opened(forwards) for _ in range(2)]
    looked: list[Upstream] = []

    def look(upstream: Upstream, now: float) -> None:
        looked.append(upstream)
        if len(looked) == 1:
            raise ValueError

    monkeypatch.setattr(Upstream, "look", look)
    forwards._look_at_all(asyncio.get_running_loop().time())
    assert len(set(looked)) == 2
    assert "failed unexpectedly" in caplog.text
    for one in streams:
        await closed(one)


async def test_a_defect_in_one_forward_does_not_end_the_care_for_the_others(
    api: ApiServer, forwards: PortForwards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await closed(await opened(forwards))
    ticked: list[PodForward] = []

    def tick(pod: PodForward, now: float) -> None:
        ticked.append(pod)
        if len(ticked) == 1:
            raise ValueError

    forwards._pod("shop", "another")
    monkeypatch.setattr(PodForward, "tick", tick)
    forwards._look_at_all(asyncio.get_running_loop().time())
    assert len(set(ticked)) == 2
    assert "failed unexpectedly" in caplog.text


async def test_a_stream_that_does_not_end_is_cut(api: ApiServer, forwards: PortForwards) -> None:
    _, writer = await opened(forwards)
    api.sessions[0].silent = True
    writer.close()
    upstream = next(iter(forwards._of_upstream))
    upstream.look(asyncio.get_running_loop().time() + LINGER_S - 1)
    assert not upstream.retired
    upstream.look(asyncio.get_running_loop().time() + LINGER_S + 1)
    assert upstream.retired
    await until(lambda: not forwards.upstreams())


async def test_an_upload_that_was_closed_has_the_time_that_its_pod_takes(
    api: ApiServer, forwards: PortForwards
) -> None:
    """A pod that is slow reads on long after its client has closed: what is under way must not be cut."""
    _, writer = await opened(forwards)
    api.sessions[0].released.clear()  # it reads what is there, and no more for now
    writer.write(bytes(UPLOAD_BYTES))
    writer.close()
    upstream = next(iter(forwards._of_upstream))
    now = asyncio.get_running_loop().time()
    upstream.look(now + LINGER_S + 1)
    upstream.look(now + UPLOAD_DEATH_S - 1)
    assert not upstream.retired
    upstream.look(now + UPLOAD_DEATH_S + 1)
    assert upstream.retired, "but not all the time in the world"
    api.sessions[0].released.set()
    await until(lambda: not forwards.upstreams())


async def test_who_comes_first_to_an_upstream_that_is_silent_is_among_those_that_are_told(
    api: ApiServer, forwards: PortForwards
) -> None:
    streams = await opened(forwards)
    (upstream,) = forwards._of_upstream
    await until(lambda: upstream._liveness.asked_at is None)
    api.sessions[0].silent = True
    recorder = Recorder()
    upstream.open_stream(to(ECHO), lambda: recorder)
    upstream.fail_unheard(ClusterUnreachable("Nobody is there."))
    failure = await recorder.lost
    assert isinstance(failure, StreamFailed)
    assert isinstance(failure.error, ClusterUnreachable)
    streams[1].transport.abort()
    await until(lambda: not forwards.upstreams())


async def test_a_dial_that_began_before_the_question_proves_no_death(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await opened(forwards)
    (upstream,) = forwards._of_upstream
    await until(lambda: upstream._liveness.asked_at is None)
    (forward,) = forwards._pods.values()
    api.sessions[0].silent = True
    api.fault = "hang"  # for the dial that is to tell
    before = asyncio.get_running_loop().time()
    upstream.open_stream(to(ECHO), Recorder)
    await until(lambda: upstream.unanswered)
    forward._bury(before - 1)  # on a busy machine one that took its time
    assert not upstream.silent
    forward._bury(asyncio.get_running_loop().time())
    assert upstream.silent
    with pytest.raises(StreamFailed, match="on new connections only"):
        await reader.read()
    writer.close()


async def test_aclose_ends_streams_dials_and_waiters(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access)
    reader, _ = await opened(forwards)
    flood, recorder = await forwards.open(to(FLOODS), lambda: Recorder(pause=True))
    api.fault = "hang"
    waiting = asyncio.create_task(forwards.open_connection(to(ECHO)))
    await until(lambda: len(api.requests) == 3)
    await forwards.aclose()
    with pytest.raises(StreamFailed):
        await reader.read()
    with pytest.raises(UpstreamReset):
        await waiting
    recorder.pause = False
    flood.resume_reading()
    assert isinstance(await recorder.lost, StreamFailed)
    assert forwards.upstreams() == []
    with pytest.raises(ClusterUnreachable, match=r"session to https://.* was closed: its settings changed"):
        await forwards.open_connection(to(ECHO))


async def test_one_line_a_change_of_state(
    api: ApiServer, forwards: PortForwards, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kubetunnel")
    await closed(await opened(forwards))
    reader, writer = await opened(forwards)
    api.cut()
    with pytest.raises(StreamFailed):
        await reader.read()
    writer.close()
    await closed(await opened(forwards))
    await until(lambda: not forwards.open_streams("shop", "web"))
    api.cut()
    await until(lambda: not forwards.upstreams())
    reader, writer = await opened(forwards)
    forwards.drain("shop", "web")
    states = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert states == [
        f"Forward to shop/web {state}" for state in ("ready", "broken", "ready", "closed", "ready", "draining")
    ]
    assert "SPDY/3.1+portforward.k8s.io, 0." in caplog.records[0].getMessage()
    assert caplog.records[-1].getMessage().endswith("draining: its pod ends")
    writer.close()
    await until(lambda: forwards.forwards()[0].state != "draining")
    assert [record.getMessage() for record in caplog.records[6:]] == ["Forward to shop/web closed: its pod ends"]
    assert "Bearer" not in caplog.text


async def test_a_stuck_dial_refuses_in_time_and_the_next_open_does_not_wait_for_it(
    api: ApiServer, access: Access
) -> None:
    forwards = PortForwards(access)
    access.reach.succeeded(0.01)  # a server nearby
    access.reach.answered(0.01)
    api.fault = "hang"
    with pytest.raises(DialTimeout, match=r"within 1\.8 s"):
        await forwards.open_connection(to(ECHO))
    assert forwards.forwards()[0].state == "broken"
    with pytest.raises(DialTimeout, match=r"within 0\.9 s"):
        await forwards.open_connection(to(ECHO))
    with pytest.raises(DialTimeout, match=r"within 0\.9 s"):
        await forwards.warm_up(to(ECHO))
    assert issubclass(DialTimeout, Timeout)
    api.fault = ""
    await closed(await opened(forwards))  # or it would be a DialTimeout, too
    await forwards.aclose()


async def test_a_slow_dial_is_there_for_the_next_open(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, open_timeout_s=0.1)
    connect, late = access.connect, asyncio.Event()

    async def slow(protocol_factory: Callable[[], Any], *, bulk: bool = False) -> tuple[asyncio.Transport, Any]:
        await late.wait()
        return await connect(protocol_factory, bulk=bulk)

    access.connect = slow  # type: ignore[method-assign]
    with pytest.raises(Timeout):
        await forwards.open_connection(to(ECHO))
    late.set()
    await until(lambda: len(forwards.upstreams()) == 1)
    await closed(await opened(forwards))
    assert api.connections == 1
    await forwards.aclose()


async def test_nobody_is_given_up_while_others_get_theirs(api: ApiServer, access: Access) -> None:
    patience_s = 2.0
    forwards = PortForwards(access, open_timeout_s=patience_s)
    api.speaks, api.fault = frozenset({V4}), "hang"
    started = time.monotonic()
    waiting = asyncio.create_task(forwards.open_connection(to(ECHO)))
    await until(lambda: len(api.requests) > 0)
    api.fault = ""
    await asyncio.sleep(patience_s / 2)
    others = await forwards.open_connection(to(DEAF))  # which a v4 connection is of no use to who waits
    assert not waiting.done()
    with pytest.raises(DialTimeout) as refused:
        await waiting
    assert "within 2 s" not in str(refused.value), "that is not how long it was"
    assert time.monotonic() - started > 1.4 * patience_s
    others[1].transport.abort()
    await forwards.aclose()


async def test_repeated_failures_cost_a_refusal_little(api: ApiServer, access: Access) -> None:
    """To connect and the backoff are to take less than an open waits: 1.5 s and 1.8 s with a server nearby."""
    assert max(_delay_s(failures) for failures in range(1, 50)) <= LEAST_PATIENCE_S - LEAST_S


async def uploaded(api: ApiServer, forwards: PortForwards, count: int) -> tuple[asyncio.StreamWriter, Upstream]:
    """A stream on which `count` bytes were sent, and nothing ever came."""
    _, writer = await forwards.open_connection(to(DEAF))
    writer.write(bytes(count))
    await until(lambda: sum(sum(session.received.values()) for session in api.sessions) >= count)
    return writer, next(iter(forwards._of_upstream))


async def test_a_stream_that_only_sends_does_not_hide_a_dead_node(api: ApiServer, forwards: PortForwards) -> None:
    writer, upstream = await uploaded(api, forwards, DEAF_BYTES)
    assert upstream.stalled
    now = asyncio.get_running_loop().time()
    for second in range(1, 7):
        upstream.look(now + second)
    await until(lambda: upstream._liveness._pinged_at is None)
    assert not upstream.stalled, "it answered: it had read all that"
    api.sessions[0].silent = True
    now = asyncio.get_running_loop().time()
    for second in range(1, 12):
        upstream.look(now + second)
    assert "no pings" in upstream.retired
    writer.close()


async def test_a_pod_that_is_busy_with_an_upload_is_not_taken_for_dead(api: ApiServer, forwards: PortForwards) -> None:
    writer, upstream = await uploaded(api, forwards, DEAF_BYTES + 1)
    now = asyncio.get_running_loop().time()
    for second in range(1, 120):
        upstream.look(now + second)
    assert not upstream.retired
    for second in range(120, 123):
        upstream.look(now + second)
    assert "no pings" in upstream.retired, "from here a node that died under an upload looks the same"
    writer.close()
