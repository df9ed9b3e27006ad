"""WebSocket by the websockets package, by each way in."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.contract.test_protocols import NAME, ca_file
from tests.tunnel import Tunnel

LIMIT_S = 10.0
WAYS = pytest.mark.parametrize("way", ["direct", "connect", "socks5"])
SCHEMES = pytest.mark.parametrize("scheme", ["ws", "wss"])


def open_socket(tunnel: Tunnel, scheme: str = "ws", way: str = "direct", path: str = "/ws", **options: Any) -> connect:
    if scheme == "wss":
        options["ssl"] = ssl.create_default_context(cafile=str(ca_file(tunnel)))
    if way == "direct":
        options |= {"host": "127.0.0.1", "port": tunnel.port, "proxy": None}
    else:
        options["proxy"] = f"{'http' if way == 'connect' else 'socks5h'}://127.0.0.1:{tunnel.port}"
    return connect(f"{scheme}://{NAME}{path}", open_timeout=LIMIT_S, close_timeout=LIMIT_S, max_size=None, **options)


async def echoed(client: ClientConnection, message: str | bytes) -> str | bytes:
    async with asyncio.timeout(LIMIT_S):
        await client.send(message)
        return await client.recv()


@WAYS
@SCHEMES
async def test_text_and_binary(tunnel: Tunnel, scheme: str, way: str) -> None:
    async with open_socket(tunnel, scheme, way) as client:
        for message in ("héllo", b"\x00\xff", "", "long " * 50_000, bytes(1 << 20)):
            assert await echoed(client, message) == message


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_compression_offered_or_not(tunnel: Tunnel, compression: str | None) -> None:
    """The demo's real pods take no offer, simulated ones do."""
    async with open_socket(tunnel, compression=compression) as client:
        assert compression or not client.protocol.extensions
        for message in ("a" * 100_000, "b" * 100_000):
            assert await echoed(client, message) == message


async def test_a_fragmented_message(tunnel: Tunnel) -> None:
    async with open_socket(tunnel) as client:
        await client.send(["one ", "two ", "three"])
        assert await asyncio.wait_for(client.recv(), LIMIT_S) == "one two three"


@SCHEMES
async def test_ping(tunnel: Tunnel, scheme: str) -> None:
    async with open_socket(tunnel, scheme) as client:
        assert await asyncio.wait_for(await client.ping(b"are you there"), LIMIT_S) < LIMIT_S
        assert await echoed(client, "still") == "still"


@WAYS
async def test_the_close_code_goes_there_and_back(tunnel: Tunnel, way: str) -> None:
    async with open_socket(tunnel, way=way) as client:
        assert await echoed(client, "x") == "x"
        await client.close(4001, "enough")
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == 4001


@pytest.mark.parametrize(("offered", "chosen"), [(["other", "echo.v1"], "echo.v1"), (["other"], None), (None, None)])
async def test_the_subprotocol_is_the_pods_choice(
    tunnel: Tunnel, offered: list[str] | None, chosen: str | None
) -> None:
    async with open_socket(tunnel, subprotocols=offered) as client:
        assert client.subprotocol == chosen


async def test_a_pods_refusal_of_the_upgrade_passes(tunnel: Tunnel) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await open_socket(tunnel, path="/status?code=403")
    assert refusal.value.response.headers.get("X-Kube-Tunnel-Error") is None


async def test_our_refusal_of_the_upgrade(tunnel: Tunnel) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect("ws://nothere.demo/ws", host="127.0.0.1", port=tunnel.port, proxy=None)
    response = refusal.value.response
    assert (response.status_code, response.headers["X-Kube-Tunnel-Error"]) == (404, "ServiceNotFound")


async def test_many_at_once(tunnel: Tunnel) -> None:
    async def one(number: int) -> None:
        async with open_socket(tunnel) as client:
            for i in range(5):
                assert await echoed(client, f"{number} {i}") == f"{number} {i}"

    async with asyncio.timeout(30):
        await asyncio.gather(*(one(number) for number in range(40)))
