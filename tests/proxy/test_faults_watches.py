"""Whatever a watch brings or loses: the next change of the pods reaches the requests; meanwhile none hangs or lies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.proxy.test_troubles import get
from tests.tunnel import Tunnel

type Disturb = Callable[[SimCluster], None]

HUGE = b'{"type":"MODIFIED","object":{"metadata":{"name":"' + b"x" * (17 << 20)  # more than etcd holds, and no end


def garbage(data: bytes) -> Disturb:
    return lambda sim: sim.send_garbage_in_watches(data)


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda sim: sim.cut_watches(), id="cut"),
        pytest.param(lambda sim: sim.cut_watches(orderly=True), id="ended"),
        pytest.param(lambda sim: sim.expire_watches(), id="410"),
        pytest.param(garbage(b"<html>log in, please</html>\n"), id="no JSON"),
        pytest.param(garbage(b'{"type": "MODIFIED", "object": {"metadata": 7}}\n'), id="wrong types"),
        pytest.param(garbage(b'{"type": "MODIFIED"}\n[]\nnull\n'), id="wrong shapes"),
        pytest.param(garbage(b"\x00\xff\xfe\n"), id="no text"),
        pytest.param(garbage(HUGE), id="a line without end"),
    ],
)
async def test_a_disturbed_watch(sim: SimCluster, tunnel: Tunnel, disturb: Disturb) -> None:
    assert (await get(tunnel, limit_s=10)).status == 200
    disturb(sim)
    # the pods change while there is no watch that could tell
    gone = sim.pods("demo", app="echo")[0]
    await sim.replace_pod("demo", gone.name)
    answers = await asyncio.gather(*(get(tunnel, limit_s=10) for _ in range(6)))
    # nobody told of the pod's end: what was on its way to it may be cut, and says so
    assert {answer.reason for answer in answers} <= {None, "UpstreamReset"}, [answer.text for answer in answers]
    pods = {pod.name for pod in sim.pods("demo", app="echo")}
    async with asyncio.timeout(10):  # the longest delay between attempts is 5 s
        while {(await get(tunnel, limit_s=10)).text.strip() for _ in range(4)} != pods:
            pass
