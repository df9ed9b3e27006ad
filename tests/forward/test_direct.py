"""Pods dialled by address: what a user of PortForwards relies on holds here too, over real sockets of loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import (
    ClusterUnreachable,
    ConnectionRefused,
    KubeTunnelError,
    NotForwardable,
    PodGone,
    UpstreamReset,
)
from kubetunnel.forward.direct import DirectConnections
from kubetunnel.forward.errors import DialTimeout, StreamFailed

type Pod = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
type Serve = Callable[..., Awaitable[PodPort]]


@pytest.fixture
async def connections() -> AsyncIterator[DirectConnections]:
    connections = DirectConnections()
    yield connections
    await connections.aclose()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[asyncio.Server] = []

    async def start(pod: Pod, host: str = "127.0.0.1", name: str = "web-0") -> PodPort:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await pod(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(answer, host, 0)
        servers.append(server)
        return PodPort("shop", name, server.sockets[0].getsockname()[1], host)

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers when it has heard all: only a half-close that arrives makes it speak."""
    writer.write(str(len(await reader.read())).encode())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(1)
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_half_close_arrives(connections: DirectConnections, serve: Serve, host: str) -> None:
    target = await serve(count, host)
    reader, writer = await connections.open_connection(target)
    assert writer.get_extra_info("peername")[:2] == (host, target.port)
    writer.write(b"x" * 300_000)
    writer.write_eof()
    assert await reader.read() == b"300000"
    writer.close()


async def test_streams_and_bytes_are_counted(connections: DirectConnections, serve: Serve) -> None:
    target = await serve(echo)
    opened = [await connections.open_connection(target) for _ in range(3)]
    for reader, writer in opened:
        writer.write(b"12345")
        assert await reader.readexactly(5) == b"12345"
    assert connections.open_streams("shop", "web-0") == 3
    (facts,) = connections.forwards()
    assert (facts.state, facts.protocol, facts.streams, facts.dials) == ("ready", "tcp", 3, 3)
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
    assert connections.open_streams("shop", "web-0") == 0
    (facts,) = connections.forwards()
    assert (facts.streams, facts.streams_opened) == (0, 3)
    if hasattr(socket, "TCP_INFO"):
        assert (facts.bytes_sent, facts.bytes_received) == (15, 15)


async def test_a_port_that_refuses_is_told_at_once(connections: DirectConnections) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = PodPort("shop", "web-0", unused.getsockname()[1], "127.0.0.1")
        with pytest.raises(ConnectionRefused, match="Nothing listens on port"):
            await connections.open_connection(target)
    (facts,) = connections.forwards()
    assert "Nothing listens" in facts.last_error
    assert facts.streams_opened == 0


async def test_no_answer_is_the_endpoints_failure() -> None:
    """A listener whose queue is full drops SYNs, as a node that is down does."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        port = busy.getsockname()[1]
        waiting = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        connections = DirectConnections(connect_timeout_s=0.1)
        try:
            with pytest.raises(DialTimeout, match=r"does not answer at 127.0.0.1 within 0.1 s"):
                await connections.open_connection(PodPort("shop", "web-0", port, "127.0.0.1"))
        finally:
            await connections.aclose()
            for client in waiting:
                client.close()


@pytest.mark.parametrize(
    ("number", "refusal"), [(113, PodGone), (101, UpstreamReset), (1, UpstreamReset), (111, ConnectionRefused)]
)
async def test_what_connect_says(
    connections: DirectConnections, monkeypatch: pytest.MonkeyPatch, number: int, refusal: type[KubeTunnelError]
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
    with pytest.raises(refusal):
        await connections.open_connection(PodPort("shop", "web-0", 80, "10.0.0.9"))


@pytest.mark.parametrize("address", ["", "web-0.example"])
async def test_an_endpoint_without_an_ip_address(connections: DirectConnections, address: str) -> None:
    with pytest.raises(NotForwardable):
        await connections.open_connection(PodPort("shop", "web-0", 80, address))


async def test_a_reset_is_a_stream_that_failed(connections: DirectConnections, serve: Serve) -> None:
    reader, writer = await connections.open_connection(await serve(reset))
    writer.write(b"x")
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    assert isinstance(caught.value.error, UpstreamReset)
    writer.close()
    (facts,) = connections.forwards()
    assert "reset" in facts.last_error


async def test_another_protocol_is_told_as_well_and_the_books_agree(
    connections: DirectConnections, serve: Serve
) -> None:
    target = await serve(reset)
    transport, _ = await connections.open(target, asyncio.Protocol)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport.set_protocol(protocol)
    assert transport.get_protocol() is protocol
    protocol.connection_made(transport)
    transport.write(b"x")
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    assert isinstance(caught.value.error, UpstreamReset)
    assert connections.open_streams("shop", "web-0") == 0


async def test_what_is_written_is_the_writers_again(connections: DirectConnections, serve: Serve) -> None:
    started, received = asyncio.Event(), bytearray()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await started.wait()
        while data := await reader.read(1 << 16):
            received.extend(data)

    reader, writer = await connections.open_connection(await serve(late))
    buffer = bytearray(b"a" * (1 << 18))
    for _ in range(64):
        writer.transport.write(memoryview(buffer))
    assert writer.transport.get_write_buffer_size(), "the socket's own buffer is full"
    buffer[:] = b"b" * len(buffer)
    started.set()
    writer.write_eof()
    await reader.read()
    assert received.count(b"a") == len(received) == 64 << 18
    writer.close()


async def test_a_cancelled_open_leaves_nothing(
    connections: DirectConnections, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await serve(echo)
    arrived, stay = asyncio.Event(), asyncio.Event()

    async def hang(*_: object) -> None:
        arrived.set()
        await stay.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", hang)
    opening = asyncio.create_task(connections.open_connection(target))
    await arrived.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert connections.open_streams("shop", "web-0") == 0


async def test_a_drained_pod_finishes_what_runs(connections: DirectConnections, serve: Serve) -> None:
    reader, writer = await connections.open_connection(await serve(echo))
    connections.drain("shop", "web-0")
    assert connections.forwards()[0].state == "draining"
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    writer.close()
    await writer.wait_closed()
    assert connections.forwards()[0].state == "closed"


async def test_a_pod_that_ends_with_nothing_open_to_it_is_not_ready(
    connections: DirectConnections, serve: Serve
) -> None:
    _, writer = await connections.open_connection(await serve(echo))
    writer.close()
    await writer.wait_closed()
    assert connections.forwards()[0].state == "ready"
    connections.drain("shop", "web-0")
    (facts,) = connections.forwards()
    assert (facts.state, facts.reason) == ("closed", "its pod ends")


async def test_closing_ends_what_is_open(serve: Serve) -> None:
    connections = DirectConnections()
    target = await serve(echo)
    reader, writer = await connections.open_connection(target)
    await connections.aclose()
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    assert isinstance(caught.value.error, UpstreamReset)
    writer.close()
    with pytest.raises(ClusterUnreachable):
        await connections.open_connection(target)


async def test_pods_that_nobody_uses_are_forgotten(serve: Serve) -> None:
    now = 0.0
    connections = DirectConnections(idle_timeout_s=60, clock=lambda: now)
    target = await serve(echo)
    _, idle = await connections.open_connection(target)
    now = 100.0
    assert len(connections.forwards()) == 1, "in use"
    idle.close()
    await idle.wait_closed()
    now = 159.0
    assert len(connections.forwards()) == 1
    now = 160.0
    assert connections.forwards() == []
    await connections.aclose()


@pytest.mark.cluster
async def test_pods_of_a_real_cluster(connections: DirectConnections) -> None:
    """From a node of the cluster: pod addresses are reachable from nowhere else."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    template = '{range .items[*]}{.metadata.name} {.status.podIP}{"\\n"}{end}'
    command = ["kubectl", "-n", "demo", "get", "pod", "-l", "app=echo", "-o", f"jsonpath={template}"]
    run = partial(subprocess.run, command, check=True, capture_output=True, text=True, timeout=20)
    output = (await asyncio.to_thread(run)).stdout
    for pod, address in (line.split() for line in output.splitlines()):
        try:
            reader, writer = await connections.open_connection(PodPort("demo", pod, 8080, address))
        except (DialTimeout, PodGone, UpstreamReset) as error:
            pytest.skip(f"this machine is no node of the cluster: {error}")
        writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).rstrip().endswith(pod.encode())
        writer.close()
        with pytest.raises(ConnectionRefused):
            await connections.open_connection(PodPort("demo", pod, 9999, address))
        reader, writer = await connections.open_connection(PodPort("demo", pod, 9003, address))
        writer.write(b"12345")
        writer.write_eof()
        assert b"5" in await reader.read(), "the half-close has arrived"
        writer.close()
