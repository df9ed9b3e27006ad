"""The runtime side of a port-forward in SPDY, by a client that can misbehave.

Each habit was seen on a real node (Kubernetes 1.20 and a 1.36 front, containerd 1.6) with the same frames.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from kubetunnel.forward.spdy import CANCEL
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.tcp_echo import pattern
from tests.sim.clients import SpdyClient, spdy, trust, tunnel, upgraded

POD = "demo/echo-sts-0"
GRACE_S = 1.0  # containerd's
CLOCK_SLACK_S = 0.05


@pytest.fixture(params=[spdy, tunnel])
def dial(request: pytest.FixtureRequest):
    return request.param


async def test_echo(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        error, stream = await client.open(9000, b"hello")
        await client.until(lambda: client.data[stream] == b"hello" and client.replied == {error, stream})
        assert client.ended == set()


async def test_many_streams_on_one_connection(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        streams = {(await client.open(9000, b"%d" % i))[1]: b"%d" % i for i in range(40)}
        await client.until(lambda: all(client.data[stream] == data for stream, data in streams.items()))


async def test_bulk_arrives_whole(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        _, stream = await client.open(8080, b"GET /bytes?n=8m HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.until(lambda: len(client.data[stream]) > 8 << 20)
        await client.until(lambda: len(client.data[stream].partition(b"\r\n\r\n")[2]) == 8 << 20)
        assert client.data[stream].partition(b"\r\n\r\n")[2] == pattern(8 << 20)


async def test_refused(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        error, stream = await client.open(9999)
        await client.until(lambda: client.ended == {error, stream})
        text = client.data[error].decode()
        assert text.startswith("error forwarding port 9999 to pod ")
        assert 'uid : failed to execute portforward in network namespace "/var/run/netns/cni-' in text
        assert text.endswith(
            ", IPv4: dial tcp4 127.0.0.1:9999: connect: connection refused"
            " IPv6 dial tcp6 [::1]:9999: connect: connection refused "
        )
        assert client.replied == {error, stream}, "SYN_REPLY comes before the dial"
        assert await answers_of_five(client, 5), "no data was sent to the refused stream"


async def test_localhost_without_ipv6(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        _, stream = await client.open(9006, b"six")
        await client.until(lambda: client.data[stream] == b"six")
        cluster.faults.ipv6_localhost = False
        error, _ = await client.open(9006)
        await client.until(lambda: error in client.ended)
        assert client.data[error].endswith(b"IPv6 dial tcp6: address localhost: no suitable address found ")


async def test_reset_by_the_pod(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(9002)
        await client.until(lambda: client.ended == {error, stream})
        assert b"connection reset by peer" in client.data[error]


async def test_half_close_is_fatal_a_second_later(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(9000, b"hello")
        started = time.monotonic()
        await client.send(stream, b" and more", fin=True)
        await client.until(lambda: client.data[stream] == b"hello and more")
        await client.until(lambda: client.ended == {error, stream})
        assert time.monotonic() - started > GRACE_S - CLOCK_SLACK_S
        _, counter = await client.open(9003, b"abc")
        await client.send(counter, b"", fin=True)
        await client.until(lambda: counter in client.ended)
        assert client.data[counter] == b"", "the pod never saw the end"


async def test_the_pods_close_comes_a_second_late(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(8080, b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await client.until(lambda: client.data[stream].endswith(b"echo-sts-0\n"))
        started = time.monotonic()
        await client.until(lambda: client.ended == {error, stream})
        assert time.monotonic() - started > GRACE_S - CLOCK_SLACK_S
        assert client.data[error] == b""


async def answers_of_five(client: SpdyClient, count: int) -> bool:
    """Whether so many of five pings, one a frame worker, are answered, and no more."""
    pings = await client.ping(5)
    await client.until(lambda: len(pings & client.pongs) >= count)
    return await client.silent(for_s=0.3) and len(pings & client.pongs) == count


async def test_data_for_a_refused_stream_stops_a_worker_for_good(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        error, stream = await client.open(9999, b"optimistic")
        await client.until(lambda: client.ended == {error, stream})
        assert await answers_of_five(client, 4)
        client.spdy.reset(stream, CANCEL)
        await client.flush()
        assert await answers_of_five(client, 4), "not even a reset frees it"


async def test_a_port_that_does_not_read_freezes_the_others(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        _, mute = await client.open(9007)
        assert await answers_of_five(client, 5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await client.send(mute, bytes(1 << 20))
        assert await client.silent(for_s=0.2)


async def test_a_reset_does_not_stop_a_download(cluster: SimCluster) -> None:
    received = 0
    async with upgraded(
        cluster,
        POD,
        {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "portforward.k8s.io"},
    ) as (_, reader, writer):

        async def write(data: bytes) -> None:
            writer.write(data)

        client = SpdyClient(lambda: reader.read(1 << 16), write)
        error, stream = await client.open(9004)
        await client.until(lambda: len(client.data[stream]) > 100_000)
        client.spdy.reset(stream)
        await client.flush()
        async with asyncio.timeout(5):
            while error not in client.ended:
                data = await reader.read(1 << 16)
                received += len(data)
                for event in client.spdy.receive_data(data):
                    if getattr(event, "fin", False):
                        client.ended.add(event.stream_id)
    assert received > 1 << 20


@pytest.mark.parametrize("headers", [{"streamtype": "data"}, {"streamtype": "data", "port": "0"}, {"port": "80"}])
async def test_bad_stream_headers_are_reset(cluster: SimCluster, headers: dict[str, str]) -> None:
    async with spdy(cluster, POD) as client:
        stream = client.spdy.open_stream(headers.items())
        await client.flush()
        await client.until(lambda: client.resets == {stream: CANCEL})


async def test_a_request_id_used_twice(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")
        client.spdy.open_stream([("streamtype", "error"), ("port", "9000"), ("requestid", "1")])
        await client.flush()
        await client.until(lambda: b"error stream already assigned" in client.data[error])


async def test_goaway_ends_the_connection(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        client.spdy.goaway()
        await client.flush()
        await client.until(lambda: client.gone_away)
        await client.until(lambda: client.closed)
    async with dial(cluster, POD) as client:
        _, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")
        client.spdy.goaway()
        await client.flush()
        await client.until(lambda: client.closed)


async def test_nonsense_ends_the_connection(cluster: SimCluster) -> None:
    async with upgraded(
        cluster,
        POD,
        {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "portforward.k8s.io"},
    ) as (_, reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""


async def test_the_connection_outlives_the_pod(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client:
        error, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")
        await cluster.kill_pod("demo", "echo-sts-0")
        await client.until(lambda: client.ended == {error, stream})
        error, stream = await client.open(9000)
        await client.until(lambda: client.ended >= {error, stream})
        assert client.data[error].startswith(b"error forwarding port 9000 to pod ")
        assert b', uid : network namespace for sandbox "' in client.data[error]
        assert client.data[error].endswith(b'" is closed')
        assert await answers_of_five(client, 5)


async def test_clients_that_go_leave_nothing_behind(cluster: SimCluster, dial) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(3):
        async with dial(cluster, POD) as client:
            _, stream = await client.open(9000, b"x")
            await client.open(9004)
            await client.until(lambda stream=stream: client.data[stream] == b"x")
    async with asyncio.timeout(5):
        while cluster.faults.upgraded() or len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the server tells nobody that it has noticed


async def test_closing_the_cluster_cuts_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubetunnel.sim.runtime.GRACE_S", 3600.0)  # which is not waited for then
    async with asyncio.timeout(60), SimCluster(seed=1) as cluster:
        reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port, ssl=trust(cluster))
        writer.write(
            f"POST /api/v1/namespaces/demo/pods/echo-sts-0/portforward HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            f"{cluster.token()}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
