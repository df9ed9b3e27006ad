"""Upstreams whose connection died without a word, as a machine finds them when it wakes up."""

from __future__ import annotations

import asyncio

import pytest

from kubetunnel.core.errors import ClusterUnreachable, UpstreamReset
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.liveness import PROOF_S, Liveness
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.upstream import Upstream
from tests.forward.apiserver import DEAF, DEAF_BYTES, ECHO, Access, ApiServer
from tests.forward.test_pool import closed, opened, whole
from tests.forward.test_streams import to, until

LIMIT_S = 3.0  # a second for the proof, a dial, and a busy machine


def upstreams(forwards: PortForwards) -> list[Upstream]:
    return list(forwards._of_upstream)


def let_time_pass(forwards: PortForwards) -> None:
    """As if the pod had said nothing for long."""
    for upstream in upstreams(forwards):
        upstream._liveness.heard_at -= 60


def test_what_every_live_peer_answers_at_once_is_a_question() -> None:
    liveness = Liveness(0.0)
    liveness.ask(10.0)
    liveness.ask(10.5)
    assert not liveness.unanswered(10.9)
    assert liveness.unanswered(11.0), "the first question counts"
    assert liveness.stalled(11.0)
    liveness.heard(11.5)
    assert not liveness.stalled(99.0)
    silent_by_nature = Liveness(0.0, answers=False)
    silent_by_nature.ask(10.0)
    assert not silent_by_nature.unanswered(99.0)


def test_a_suspended_machine_starts_over() -> None:
    liveness = Liveness(0.0)
    liveness.ask(1.0)
    assert liveness.look(5000.0, reading=True, uploading=False) == "ping"
    assert not liveness.unanswered(5000.0)


async def test_a_new_stream_on_a_dead_upstream_fails_soon_and_the_next_works(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, spares=0)
    told: list[str] = []
    unsubscribe = access.suspicion.subscribe(told.append)
    await closed(await opened(forwards))
    api.sessions[0].silent = True
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StreamFailed, match="died in silence") as failed:
            await reader.read()
        assert isinstance(failed.value.error, UpstreamReset)
        await closed(await opened(forwards))
    assert api.connections == 2, "the dial that proved it is of use"
    assert len(told) == 1
    unsubscribe()
    await until(lambda: whole(forwards))
    await forwards.aclose()


async def test_a_dead_upstream_of_a_pod_that_is_gone_puts_everything_in_doubt(api: ApiServer, access: Access) -> None:
    """Nobody told that the pod was replaced: the watches are as dead as the upstream."""
    forwards = PortForwards(access, spares=0)
    told: list[str] = []
    access.suspicion.subscribe(told.append)
    await closed(await opened(forwards))
    api.sessions[0].silent = True
    api.answers = [(404, b'{"kind":"Status","message":"pods \\"web\\" not found"}')]
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StreamFailed, match="died in silence"):
            await reader.read()
    assert len(told) == 1
    await forwards.aclose()


async def test_an_exchange_on_an_old_stream_of_a_dead_upstream_fails_as_soon(
    api: ApiServer, forwards: PortForwards
) -> None:
    reader, writer = await opened(forwards)
    api.sessions[0].silent = True
    let_time_pass(forwards)
    writer.write(b"y")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StreamFailed, match="died in silence"):
            await reader.read()


async def test_idle_upstreams_that_are_in_doubt_and_answer_nothing_are_closed_and_nothing_is_dialled_for_them(
    api: ApiServer, forwards: PortForwards, access: Access
) -> None:
    streams = await opened(forwards), await opened(forwards)
    for stream in streams:
        await closed(stream)
    await until(lambda: not any(upstream._lanes for upstream in upstreams(forwards)))
    for session in api.sessions:
        session.silent = True
    access.suspicion.voice("the network changed")
    async with asyncio.timeout(LIMIT_S):
        await asyncio.wait([upstream.closed for upstream in upstreams(forwards)])
    assert api.connections == 2


async def test_where_nobody_answers_on_new_connections_either_only_who_came_last_is_told_so(
    api: ApiServer, forwards: PortForwards
) -> None:
    old_reader, old_writer = await forwards.open_connection(to(ECHO), shared=True)
    old_writer.write(b"x")
    assert await old_reader.readexactly(1) == b"x"
    api.sessions[0].silent = True
    api.fault = "hangup"
    new_reader, new_writer = await forwards.open_connection(to(ECHO), shared=True)
    new_writer.write(b"x")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StreamFailed) as failed:
            await new_reader.read()
    assert isinstance(failed.value.error, ClusterUnreachable)
    assert upstreams(forwards)[0].clients == 1, "its connection may come back with the network"
    api.fault = ""
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StreamFailed, match="died in silence"):
            await old_reader.read()


async def test_a_pod_that_does_not_take_what_it_is_sent_is_not_dead(api: ApiServer, forwards: PortForwards) -> None:
    _, writer = await forwards.open_connection(to(DEAF))
    writer.write(bytes(2 * DEAF_BYTES))
    await until(lambda: api.sessions and api.sessions[0].deaf.is_set())
    (upstream,) = upstreams(forwards)
    upstream._ask()
    assert upstream._liveness.asked_at is not None
    upstream._liveness.asked_at -= 2 * PROOF_S
    assert upstream.stalled
    assert not upstream.unanswered
    writer.transport.abort()


async def test_an_answer_in_time_is_an_answer(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await opened(forwards)
    let_time_pass(forwards)
    writer.write(b"y")
    (upstream,) = upstreams(forwards)
    assert upstream._liveness.asked_at is not None
    assert await reader.readexactly(1) == b"y"
    await until(lambda: upstream._liveness.asked_at is None)
    assert not upstream.stalled
    await closed((reader, writer))


async def test_the_end_of_the_pool_ends_a_probe(api: ApiServer, access: Access) -> None:
    pool = PortForwards(access)
    streams = await opened(pool)
    api.sessions[0].silent = True
    api.fault = "hang"
    (upstream,) = upstreams(pool)
    upstream.doubt()
    pool.upstream_silent(upstream)
    assert pool._tasks
    await pool.aclose()
    assert not pool._tasks
    streams[1].close()
