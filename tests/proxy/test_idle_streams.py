"""Streams that say nothing for longer than every time limit that there is, and then go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import websockets

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, PodTemplate
from tests.proxy.loopback import socks5_request
from tests.tunnel import Tunnel

NAME = "echo.demo.svc.cluster.local"
STOPS = "stops.demo.svc.cluster.local"
SHORT = ("read_timeout", "write_timeout", "response_header_timeout", "grpc_timeout", "pool_idle_timeout")
SHORT_S = 1
SILENCE_S = 3.5  # longer than all of them, and than two looks of whoever looks after connections
LIMIT_S = 10.0

# mitmproxy's own, which count in minutes: what they are in force is told in its log
SHOW_OPTIONS = """
import logging
from mitmproxy import ctx

def running():
    logging.info("limits: %s %s", ctx.options.http2_ping_keepalive, ctx.options.tcp_timeout)
"""

type Say = Callable[[bytes], Any]


@asynccontextmanager
async def grpc_call(tunnel: Tunnel) -> AsyncIterator[Say]:
    options = [("grpc.default_authority", f"{NAME}:9090"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options) as channel:
        call = channel.stream_stream("/echo.v1.Echo/Bidi")()

        async def say(text: bytes) -> bytes:
            message = b"\x0a" + bytes([len(text)]) + text  # google.protobuf.StringValue
            await call.write(message)
            answer: bytes = await call.read()
            return answer[2:]

        yield say


@asynccontextmanager
async def websocket(tunnel: Tunnel) -> AsyncIterator[Say]:
    uri = f"ws://{NAME}/ws"
    at = {"host": "127.0.0.1", "port": tunnel.port}
    async with websockets.connect(uri, proxy=None, ping_interval=None, **at) as connection:

        async def say(text: bytes) -> bytes:
            await connection.send(text)
            answer = await connection.recv()
            assert isinstance(answer, bytes)
            return answer

        yield say


@asynccontextmanager
async def raw(tunnel: Tunnel) -> AsyncIterator[Say]:
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
    writer.write(b"\x05\x01\x00" + socks5_request(NAME, 7))
    assert (await reader.readexactly(12))[3] == 0

    async def say(text: bytes) -> bytes:
        writer.write(text)
        return await reader.readexactly(len(text))

    yield say
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def events(tunnel: Tunnel) -> AsyncIterator[Say]:
    """Server-sent ones, further apart than the limits: each is awaited by the next word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
    path = f"/sse?n=3&ms={int(SILENCE_S * 1000)}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())

    async def say(text: bytes) -> bytes:
        await reader.readuntil(b"data: ")
        return text

    yield say
    writer.close()
    await writer.wait_closed()


@pytest.fixture
async def stopping_pod(sim: SimCluster) -> AsyncIterator[None]:
    """A Service of a pod that sends the half of its response."""
    pod = await sim.add_pod("demo", "stops", PodTemplate({"app": "stops"}, (Container("stops", "stops"),)))
    await sim.add_service(ServiceSpec("demo", "stops", (Port(80),), {"app": "stops"}))
    async with await asyncio.start_server(_stop_in_the_middle, "127.0.0.1", 0) as server:
        assert pod.workload is not None
        pod.workload.map_port(80, server.sockets[0].getsockname())
        yield


async def _stop_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    await reader.read()  # until we go away
    writer.close()
    await writer.wait_closed()


@pytest.mark.usefixtures("stopping_pod")
async def test_streams_survive_their_silence(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "show_options.py"
    script.write_text(SHOW_OPTIONS)
    options = ["-s", str(script)]
    for name in SHORT:
        options += ["--set", f"kube_{name}={SHORT_S}s"]
    tunnel: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    limits = await asyncio.to_thread(tunnel.wait_for, r"limits: (\d+) (\d+)")
    assert int(limits[1]) == 0, "a keep-alive of mitmproxy's resets idle HTTP/2 streams"
    assert int(limits[2]) > 24 * 3600
    async with AsyncExitStack() as stack:
        opened = (grpc_call, websocket, raw, events)
        says = [await stack.enter_async_context(open_stream(tunnel)) for open_stream in opened]
        for text in (b"before", b"after"):
            async with asyncio.timeout(LIMIT_S):
                assert await asyncio.gather(*(say(text) for say in says)) == [text] * len(says)
            if text == b"before":
                await asyncio.sleep(SILENCE_S)
    # a length is a promise
    answer = await asyncio.to_thread(tunnel.get, STOPS)
    assert (answer.status, answer.reason) == (504, "Timeout")
    assert f"nothing more of its response came in {SHORT_S} s" in answer.text
