"""The same streams against a real cluster with the demo's objects: `pytest -m cluster` with KUBECONFIG set.

The subjects are the runtimes' habits, which the scripted server only imitates.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator

import pytest

from kubetunnel.cluster.access import load_access
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, NoReadyEndpoints, UpstreamReset
from kubetunnel.forward import dial
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.negotiation import CHANNEL, SPDY, TUNNEL, Memory, Way
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.upgrade import Offer, websocket_offer
from tests.forward.test_crowds import crowd_on
from tests.forward.test_streams import Recorder, until

pytestmark = pytest.mark.cluster

MIB_100 = 100 * 1024 * 1024
PATTERN = bytes(offset * 31 % 251 for offset in range(251))  # the demo's /bytes


@pytest.fixture(scope="module")
def pods() -> list[str]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    command = ["kubectl", "-n", "demo", "get", "pod", "-l", "app=echo", "-o", "name"]
    names = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()
    return [name.removeprefix("pod/") for name in names]


@pytest.fixture(params=[TUNNEL, SPDY, CHANNEL])
async def forwards(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, pods: list[str]
) -> AsyncIterator[PortForwards]:
    wanted: str = request.param
    offer = websocket_offer

    def only(path: str, port: int, subprotocols: tuple[str, ...]) -> Offer:
        return offer(path, port, [name for name in subprotocols if name == wanted])

    way = Way.SPDY if wanted == SPDY else Way.WEBSOCKET
    monkeypatch.setattr(dial, "websocket_offer", only)
    monkeypatch.setattr(Memory, "order", lambda self, now: (way,))
    access = await load_access()
    pool = PortForwards(access)
    try:
        _, writer = await pool.open_connection(PodPort("demo", pods[0], 8080))
    except Exception as error:
        await pool.aclose()
        await access.aclose()
        if wanted == TUNNEL and "403" in str(error):
            pytest.skip("this API server does not speak the tunnel")
        raise
    assert writer.get_extra_info("upstream").protocol == wanted
    writer.close()
    yield pool
    await pool.aclose()
    await access.aclose()


async def hostname(forwards: PortForwards, pod: str) -> str:
    reader, writer = await forwards.open_connection(PodPort("demo", pod, 8080))
    writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    line = await reader.readline()
    writer.close()
    return line.decode().strip()


async def test_every_pod_answers_by_its_name(forwards: PortForwards, pods: list[str]) -> None:
    assert len(pods) >= 2
    for pod in pods:
        assert [await hostname(forwards, pod) for _ in range(3)] == [pod] * 3


async def test_100_mib_down(forwards: PortForwards, pods: list[str]) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], 8080))
    writer.write(b"GET /bytes?n=100m HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    received, digest = 0, hashlib.sha256()
    while data := await reader.read(1 << 20):
        received += len(data)
        digest.update(data)
    assert received == MIB_100
    assert digest.hexdigest() == hashlib.sha256((PATTERN * (MIB_100 // 251 + 1))[:MIB_100]).hexdigest()
    writer.close()


async def test_100_mib_up(forwards: PortForwards, pods: list[str]) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], 8080))
    writer.write(f"POST /upload HTTP/1.1\r\nHost: echo\r\nContent-Length: {MIB_100}\r\n\r\n".encode())
    digest = hashlib.sha256()
    for number in range(1600):
        block = hashlib.sha256(str(number).encode()).digest() * 2048
        digest.update(block)
        writer.write(block)
        await writer.drain()
    await reader.readuntil(b"\r\n\r\n")
    answer = json.loads(await reader.readline())
    assert (answer["bytes"], answer["sha256"]) == (MIB_100, digest.hexdigest())
    writer.close()


@pytest.mark.parametrize(("port", "expected"), [(9999, ConnectionRefused), (9002, UpstreamReset)])
async def test_failures_of_a_port(
    forwards: PortForwards, pods: list[str], port: int, expected: type[Exception]
) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], port))
    writer.write(b"x")
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    assert isinstance(caught.value.error, expected)
    writer.close()
    assert await hostname(forwards, pods[0]) == pods[0]


async def test_a_server_that_speaks_first(forwards: PortForwards, pods: list[str]) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], 9001))
    assert (await reader.readline()).startswith(b"220 ")
    writer.close()


async def test_a_port_that_never_reads_stalls_nobody_else(forwards: PortForwards, pods: list[str]) -> None:
    transport, deaf = await forwards.open(PodPort("demo", pods[0], 9007), Recorder)
    while deaf.writable:
        transport.write(bytes(64 * 1024))
        await asyncio.sleep(0)
    for _ in range(20):
        assert await hostname(forwards, pods[0]) == pods[0]
    transport.abort()
    assert await deaf.lost is None


async def test_an_endless_download_stops_when_abandoned(forwards: PortForwards, pods: list[str]) -> None:
    transport, recorder = await forwards.open(PodPort("demo", pods[0], 9004), Recorder)
    await until(lambda: recorder.received > 5_000_000)
    transport.close()
    await recorder.lost
    await until(lambda: forwards.open_streams("demo", pods[0]) == 0)
    assert await hostname(forwards, pods[0]) == pods[0]


async def test_a_killed_connection_fails_its_stream_and_the_next_works(forwards: PortForwards, pods: list[str]) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], 9000))
    writer.write(b"echo")
    assert await reader.readexactly(4) == b"echo"
    for upstream in forwards._of_upstream:
        upstream._transport.abort()
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    assert isinstance(caught.value.error, UpstreamReset)
    writer.close()
    assert await hostname(forwards, pods[0]) == pods[0]


async def test_pings_are_answered(forwards: PortForwards, pods: list[str]) -> None:
    reader, writer = await forwards.open_connection(PodPort("demo", pods[0], 9000))
    writer.write(b"echo")
    assert await reader.readexactly(4) == b"echo"
    upstream = next(up for up in forwards._of_upstream if up.facts.streams and not up.retired)
    heard_at = upstream._liveness.heard_at
    upstream._queue_ping()
    upstream.flush()
    async with asyncio.timeout(3):
        await until(lambda: upstream._liveness.heard_at > heard_at)
    writer.close()


async def test_a_pod_that_is_not_there(forwards: PortForwards) -> None:
    with pytest.raises(NoReadyEndpoints):
        await forwards.open_connection(PodPort("demo", "nobody", 80))


async def test_of_200_connections_50_in_trouble_hurt_nobody(forwards: PortForwards, pods: list[str]) -> None:
    await crowd_on(forwards, "demo", pods[0])


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_clients_that_leave_in_the_middle_of_exchanges_take_nobody_along(
    forwards: PortForwards, pods: list[str], how: str
) -> None:
    target = PodPort("demo", pods[0], 8080)
    request = b"GET /hostname HTTP/1.1\r\nHost: echo\r\n\r\n"

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readline()).decode().strip() == pods[0]

    for _ in range(4):
        staying, *leaving = [await forwards.open_connection(target, shared=True) for _ in range(16)]
        for streams in (staying, *leaving):
            await exchange(*streams)
        for _, writer in leaving:
            writer.write(3 * request)
            getattr(writer.transport, how)()
        for _ in range(10):
            await exchange(*staying)
        staying[1].close()
