"""While a fifth of the connections to the API server is cut again and again, only calls on cut ones fail.

A client connection has one stream to a pod, and below 32 streams a pod each has an upgraded connection of its own
(forward/policy.py), so there can be no more failures than connections that were cut.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
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
CALL_LIMIT_S = 30.0  # longer than it takes to find a connection dead that does not even end (forward/liveness.py)

String = wrappers_pb2.StringValue

CUT_AFTER = {EXCHANGES * i // (CUTS + 1) for i in range(1, CUTS + 1)}


@dataclass
class Score:
    """What became of the exchanges; connections are cut at equal distances, while other exchanges are under way."""

    sim: SimCluster
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(EXCHANGES)))
    rng: random.Random = field(default_factory=lambda: random.Random(3))
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cut: int = 0

    @property
    def total(self) -> int:
        return self.right + len(self.wrong) + len(self.failures)

    def count(self, *, wrong: str | None = None, failure: str | None = None) -> None:
        """One exchange is over."""
        self.right += wrong is None and failure is None
        self.wrong += [wrong] if wrong else []
        self.failures += [failure] if failure else []
        if self.total in CUT_AFTER:
            self.cut += self.sim.faults.cut(share=SHARE, rng=self.rng)

    async def take(self, client: Callable[[Score], Awaitable[None]]) -> None:
        """Lets `CLIENTS` clients share the exchanges, and judges."""
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client(self))
        assert self.wrong == []
        assert self.total == EXCHANGES
        assert 0 < len(self.failures) <= self.cut, self.failures
        assert self.cut < EXCHANGES / 5, "so that most calls are on connections that nobody cut"


PROTOCOLS = pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY, Protocols.V4])


@PROTOCOLS
async def test_grpc(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    sim.faults.protocols = protocols

    async def client(score: Score) -> None:
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
            for number in score.numbers:
                try:
                    answer = await unary(String(value=str(number)), timeout=CALL_LIMIT_S)
                except grpc.aio.AioRpcError as e:
                    told = f"{number}: {e.code()} {e.details()}"
                    cut = e.code() is grpc.StatusCode.UNAVAILABLE  # be it before the headers or after them
                    score.count(**{"failure" if cut else "wrong": told})
                else:
                    score.count(wrong=None if answer.value == str(number) else f"{number}: {answer.value}")

    await Score(sim).take(client)


@PROTOCOLS
async def test_many_calls_on_one_channel(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    """They share an upstream: its end is the end of each of them, and of no later one."""
    sim.faults.protocols = protocols
    codes: Counter[grpc.StatusCode] = Counter()
    options = [("grpc.default_authority", "echo.demo:9090"), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options) as channel:
        unary = channel.unary_unary(
            "/echo.v1.Echo/Unary", request_serializer=String.SerializeToString, response_deserializer=String.FromString
        )

        async def call(payload: str) -> None:
            try:
                await unary(String(value=payload), timeout=CALL_LIMIT_S)
            except grpc.aio.AioRpcError as e:
                codes[e.code()] += 1
            else:
                codes[grpc.StatusCode.OK] += 1

        async def caller(until: asyncio.Event) -> None:
            while not until.is_set():
                await call("x" * 20_000)

        for _ in range(8):
            done = asyncio.Event()
            async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(caller(done))
                before = codes[grpc.StatusCode.OK]
                while codes[grpc.StatusCode.OK] < before + 20:  # noqa: ASYNC110 - they are under way
                    await asyncio.sleep(0.01)
                sim.faults.cut(share=1.0)
                done.set()
            assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
            codes.clear()
            await call("afterwards")
            assert codes == {grpc.StatusCode.OK: 1}


@PROTOCOLS
async def test_websockets(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    sim.faults.protocols = protocols

    async def client(score: Score) -> None:
        address = {"host": "127.0.0.1", "port": tunnel.port, "proxy": None}
        number = next(score.numbers, None)
        while number is not None:
            try:
                async with connect("ws://echo.demo/ws", open_timeout=CALL_LIMIT_S, **address) as socket:
                    while number is not None:
                        await socket.send(str(number))
                        answer = await asyncio.wait_for(socket.recv(), CALL_LIMIT_S)
                        score.count(wrong=None if answer == str(number) else f"{number}: {answer!r}")
                        number = next(score.numbers, None)
            except (ConnectionClosed, InvalidHandshake) as e:
                score.count(**{"wrong" if isinstance(e, ConnectionClosedOK) else "failure": f"{number}: {e!r}"})
                number = next(score.numbers, None)

    await Score(sim).take(client)
