"""Cancellation at every await of the open path leaves the pool whole: each await is tried, none by luck."""

from __future__ import annotations

import asyncio

import pytest

from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.stream import ForwardStream
from kubetunnel.forward.upstream import Upstream
from tests.forward.apiserver import ALL, ECHO, SPDY, TUNNEL, V4, Access, ApiServer
from tests.forward.cancelling import CancelledAt
from tests.forward.test_pool import closed, opened, whole
from tests.forward.test_streams import Recorder, to, until

MOST_AWAITS = 200
SPOKEN = pytest.mark.parametrize("speaks", [ALL, frozenset({TUNNEL}), frozenset({SPDY}), frozenset({V4})])


async def is_cancelled_at(attempt: CancelledAt[object]) -> bool:
    """Whether the attempt was cancelled; what it opened in spite of it is cut."""

    async def drive() -> object:
        return await attempt

    task = asyncio.create_task(drive())
    try:
        result = await task
    except asyncio.CancelledError:
        return True
    match result:
        case (ForwardStream() as stream, _):
            stream.abort()
        case Upstream():
            result.abort("the test has no use for it")
    return False


@SPOKEN
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("eager", [False, True])
async def test_open(api: ApiServer, access: Access, speaks: frozenset[str], *, shared: bool, eager: bool) -> None:
    if eager:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    api.speaks = speaks
    reached = 0
    for number in range(1, MOST_AWAITS):
        forwards = PortForwards(access, spares=0)
        attempt = CancelledAt(forwards.open(to(ECHO), Recorder, shared=shared), number)
        await is_cancelled_at(attempt)
        await until(lambda pool=forwards: whole(pool))
        await closed(await opened(forwards))
        await until(lambda pool=forwards: not pool.open_streams("shop", "web"))
        await forwards.aclose()
        await until(lambda: not api.sessions)
        reached += attempt.reached
        if not attempt.reached:
            break
    assert 1 <= reached < MOST_AWAITS - 1


@SPOKEN
async def test_every_turn_of_the_event_loop_while_the_dial_is_under_way(
    api: ApiServer, access: Access, speaks: frozenset[str]
) -> None:
    api.speaks = speaks
    forwards = PortForwards(access, spares=0)
    late = 0
    for turns in range(MOST_AWAITS):
        opening = asyncio.create_task(forwards.open(to(ECHO), Recorder))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            transport, _ = await opening
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
            late += 1
        await until(lambda: whole(forwards) and not forwards.open_streams("shop", "web"))
        for upstream in list(forwards._of_upstream):
            upstream.abort("each time is the first")
        await until(lambda: not forwards._of_upstream)
        if late > 2:
            break
    assert late, "it was followed to its end"
    await closed(await opened(forwards))
    await forwards.aclose()


@SPOKEN
@pytest.mark.parametrize("refusal", ["", "renew", "overloaded"])
async def test_dial(api: ApiServer, access: Access, speaks: frozenset[str], refusal: str) -> None:
    api.speaks = speaks
    api.retry_after = "0"
    forwards = PortForwards(access, spares=0)
    cancelled = 0
    for number in range(1, MOST_AWAITS):
        api.answers = {"": [], "renew": [(401, b"Unauthorized")], "overloaded": [(429, b"")]}[refusal]
        attempt = CancelledAt(forwards.dial(to(ECHO)), number)
        cancelled += await is_cancelled_at(attempt)
        await until(lambda: not api.sessions and not api._writers)
        if not attempt.reached:
            break
    assert cancelled >= 2
    assert asyncio.all_tasks() - api._tasks == {asyncio.current_task()}
    api.answers = []
    await closed(await opened(forwards))
    await forwards.aclose()
