"""WebSocket: how connections end, and what a pod may choose that the demo's real pods do not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from kubetunnel.sim.listener import reset
from tests.proxy.scripted_pod import tunnel_to
from tests.tunnel import Tunnel

LIMIT_S = 10.0
CLOSE, TEXT = 0x88, 0x81
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

# what a pod sends after the handshake, and whether it resets then
ENDS = {
    "/coded": (bytes([TEXT, 2]) + b"hi" + bytes([CLOSE, 7]) + (4002).to_bytes(2) + b"enoug", False),
    "/uncoded": (bytes([TEXT, 2]) + b"hi" + bytes([CLOSE, 0]), False),
    "/vanishes": (bytes([TEXT, 2]) + b"hi", False),
    "/resets": (bytes([TEXT, 2]) + b"hi", True),
    "/garbage": (bytes([TEXT, 2]) + b"hi" + b"\x07\xff\xff\xff", False),
}


async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    frames, resets = ENDS[head.split(b" ")[1].decode()]
    writer.write(frames)
    await writer.drain()
    await reader.read(1)  # the client's answer to the first message
    if resets:
        reset(writer)


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with tunnel_to(end, "ends", tmp_path_factory.mktemp("confdir")) as tunnel:
        yield tunnel


def open_socket(tunnel: Tunnel, url: str, **options: Any) -> connect:
    return connect(url, host="127.0.0.1", port=tunnel.port, proxy=None, open_timeout=LIMIT_S, **options)


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/coded", 4002, "enoug"), ("/uncoded", 1005, ""), ("/vanishes", 1006, ""), ("/resets", 1006, ""),
        ("/garbage", 1002, None),
    ],
)  # fmt: skip
async def test_the_pods_end_is_the_clients(tunnel: Tunnel, path: str, code: int, reason: str | None) -> None:
    async with asyncio.timeout(LIMIT_S), open_socket(tunnel, f"ws://ends.demo{path}") as client:
        assert await client.recv() == "hi"
        with pytest.raises(ConnectionClosed):
            await client.send("yes")
            await client.recv()
        assert client.close_code == code
        assert reason is None or client.close_reason == reason


async def test_a_client_that_vanishes_leaves_the_pod_too(tunnel: Tunnel) -> None:
    async with asyncio.timeout(LIMIT_S):
        for _ in range(5):
            client = await open_socket(tunnel, "ws://echo.demo/ws")
            await client.send("x")
            assert await client.recv() == "x"
            client.transport.abort()
        async with open_socket(tunnel, "ws://echo.demo/ws") as client:
            await client.send("y")
            assert await client.recv() == "y"


async def test_compression_is_the_pods_choice(tunnel: Tunnel) -> None:
    async with asyncio.timeout(LIMIT_S), open_socket(tunnel, "ws://echo.demo/ws") as client:
        assert [extension.name for extension in client.protocol.extensions] == ["permessage-deflate"]
        for message in ("a" * 100_000, "b" * 100_000, "a" * 100_000):
            await client.send(message)
            assert await client.recv() == message
