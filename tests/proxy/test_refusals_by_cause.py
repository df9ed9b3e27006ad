"""Causes that a real cluster cannot be given, told each way: SOCKS5, CONNECT, HTTP/2, gRPC."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.proxy.loopback import connect, received, socks5_request
from tests.tunnel import Tunnel

H2C = "--http2-prior-knowledge"
LIMIT_S = 2.0


def socks5_reply(tunnel: Tunnel, limit_s: float = LIMIT_S) -> int:
    with connect(tunnel.port) as client:
        client.settimeout(limit_s)
        client.sendall(b"\x05\x01\x00" + socks5_request("pair.demo", 80))
        return received(client, 12)[3]


async def grpc_code(tunnel: Tunnel) -> grpc.StatusCode:
    options = [("grpc.default_authority", "pair.demo"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/echo.v1.Echo/Unary")(b"", timeout=LIMIT_S)
    return failed.value.code()


@pytest.mark.parametrize(
    ("cause", "reason", "reply", "code"),
    [
        ("expired", "Unauthenticated", 2, grpc.StatusCode.UNAUTHENTICATED),
        ("away", "ClusterUnreachable", 3, grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_each_way(
    sim: SimCluster, tunnel: Tunnel, cause: str, reason: str, reply: int, code: grpc.StatusCode
) -> None:
    if cause == "expired":
        sim.expire_credentials()
        await sim.cut_connections()
    else:
        await sim.stop_api()
    assert await asyncio.to_thread(socks5_reply, tunnel) == reply
    http2 = await asyncio.to_thread(tunnel.get, "pair.demo", "/", H2C, timeout_s=LIMIT_S)
    assert (http2.status, http2.reason) == (502, reason)
    connected = await asyncio.to_thread(tunnel.via_proxy, "http://pair.demo/", "-p", timeout_s=LIMIT_S)
    assert connected.connect_status == 502
    assert await grpc_code(tunnel) is code


async def test_a_node_that_does_not_answer(sim: SimCluster, tunnel: Tunnel) -> None:
    sim.faults.set(swallow=True)
    assert await asyncio.to_thread(socks5_reply, tunnel, 30.0) == 6
