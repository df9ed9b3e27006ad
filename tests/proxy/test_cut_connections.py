"""While a fifth of the connections to the API server is cut again and again, only calls on cut ones fail.

A client connection has one stream to a pod, and below 32 streams a pod each has an upgraded connection of its own
(forward/policy.py), so there can be no more failures than connections that were cut.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import wrappers_pb2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.tunnel import Tunnel

CLIENTS = 40  # over two pods
EXCHANGES = 1000
SHARE = 0.2
CUTS = 5
LIMIT_S = 60.0
CALL_LIMIT_S = 15.0

String = wrappers_pb2.StringValue


@dataclass
class Score:
    """What became of the exchanges."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cut: int = 0
    cut_at: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.right + len(self.wrong) + len(self.failures)


type Client = Callable[[Iterator[int], Score], Awaitable[None]]


async def run(sim: SimCluster, client: Client) -> Score:
    """`CLIENTS` clients share `EXCHANGES` exchanges, while connections are cut at equal distances."""
    rng = random.Random(3)
    score = Score()
    numbers = iter(range(EXCHANGES))

    async def cut() -> None:
        for i in range(1, CUTS + 1):
            while score.total < i * EXCHANGES // (CUTS + 1):
                await asyncio.sleep(0.005)
            score.cut += sim.faults.cut(share=SHARE, rng=rng)
            score.cut_at.append(score.total)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        group.create_task(cut())
        for _ in range(CLIENTS):
            group.create_task(client(numbers, score))
    return score


def check(score: Score) -> None:
    print(len(score.failures), score.cut, score.failures[:3])
    assert score.wrong == []
    assert score.total == EXCHANGES
    assert len(score.cut_at) == CUTS
    assert 0 < len(score.failures) <= score.cut, score.failures
    assert score.cut < EXCHANGES / 5, "so that most calls are on connections that nobody cut"


PROTOCOLS = pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY, Protocols.V4])


@PROTOCOLS
async def test_grpc(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    sim.faults.protocols = protocols

    async def client(numbers: Iterator[int], score: Score) -> None:
        options = [
            ("grpc.default_authority", "echo.demo:9090"), ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0),
        ]  # fmt: skip
        async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options) as channel:
            unary = channel.unary_unary(
                "/echo.v1.Echo/Unary",
                request_serializer=String.SerializeToString,
                response_deserializer=String.FromString,
            )
            for number in numbers:
                try:
                    answer = await unary(String(value=str(number)), timeout=CALL_LIMIT_S)
                except grpc.aio.AioRpcError as e:
                    kept = score.failures if e.code() is grpc.StatusCode.UNAVAILABLE else score.wrong
                    kept.append(f"{number}: {e.code()} {e.details()}")
                else:
                    if answer.value == str(number):
                        score.right += 1
                    else:
                        score.wrong.append(f"{number}: {answer.value}")

    check(await run(sim, client))


@PROTOCOLS
async def test_websockets(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    sim.faults.protocols = protocols

    async def client(numbers: Iterator[int], score: Score) -> None:
        address = {"host": "127.0.0.1", "port": tunnel.port, "proxy": None}
        number = next(numbers, None)
        while number is not None:
            try:
                async with connect("ws://echo.demo/ws", open_timeout=CALL_LIMIT_S, **address) as socket:
                    while number is not None:
                        await socket.send(str(number))
                        answer = await asyncio.wait_for(socket.recv(), CALL_LIMIT_S)
                        if answer == str(number):
                            score.right += 1
                        else:
                            score.wrong.append(f"{number}: {answer!r}")
                        number = next(numbers, None)
            except (ConnectionClosed, InvalidHandshake) as e:
                told = score.wrong if isinstance(e, ConnectionClosedOK) else score.failures
                told.append(f"{number}: {e!r}")
                number = next(numbers, None)

    check(await run(sim, client))
