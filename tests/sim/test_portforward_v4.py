"""The runtime side of a port-forward in WebSocket v4, frame by frame and by the kubernetes package's client."""

from __future__ import annotations

import asyncio
import base64
import struct
import threading
import time
from pathlib import Path

import aiohttp
import kubernetes.client
import kubernetes.config
import kubernetes.stream
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.tcp_echo import pattern
from tests.sim.clients import web_socket

POD = "demo/echo-sts-0"
V4, V4_BASE64 = "v4.channel.k8s.io", "v4.base64.channel.k8s.io"


async def next_frame(socket: aiohttp.ClientWebSocketResponse) -> aiohttp.WSMessage:
    async with asyncio.timeout(5):
        return await socket.receive()


async def test_echo_after_the_port_numbers(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4, query="?ports=9000,9001") as socket:
        numbers = [(await next_frame(socket)).data for _ in range(4)]
        assert numbers == [bytes([i]) + struct.pack("<H", 9000 + i // 2) for i in range(4)]
        assert (await next_frame(socket)).data == b"\x02220 echo-sts-0 ready\r\n", "the pod is dialled at the upgrade"
        await socket.send_bytes(b"\x00hello")
        assert (await next_frame(socket)).data == b"\x00hello"
        await socket.send_bytes(b"")
        await socket.send_bytes(b"\x09nobody")
        await socket.send_bytes(b"\x02there")
        assert (await next_frame(socket)).data == b"\x02there"


async def test_base64(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4_BASE64, query="?ports=9000") as socket:
        assert [(await next_frame(socket)).data for _ in range(2)] == ["0KCM=", "1KCM="]
        await socket.send_str("0" + base64.b64encode(b"hello").decode())
        assert (await next_frame(socket)).data == "0" + base64.b64encode(b"hello").decode()


async def test_refused_beside_a_running_port(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4, query="?ports=9999&ports=9000") as socket:
        frames = [(await next_frame(socket)).data for _ in range(5)]
        assert frames[4].startswith(b"\x01error forwarding port 9999 to pod ")
        await socket.send_bytes(b"\x00dropped")
        await socket.send_bytes(b"\x02hi")
        assert (await next_frame(socket)).data == b"\x02hi"


async def test_the_last_forward_ends_the_connection(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4, query="?ports=9999") as socket:
        frames = [await next_frame(socket) for _ in range(4)]
        assert frames[2].data.startswith(b"\x01error forwarding")
        assert frames[3].type is aiohttp.WSMsgType.CLOSE
        assert frames[3].data == 1000
    async with web_socket(cluster, POD, V4, query="?ports=8080") as socket:
        await socket.send_bytes(b"\x00GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        started, data = time.monotonic(), b""
        while (frame := await next_frame(socket)).type is aiohttp.WSMsgType.BINARY:
            data += frame.data[1:]
        assert data.endswith(b"echo-sts-0\n")
        assert time.monotonic() - started > 0.9, "the pod's close comes a second late"


async def test_a_port_that_does_not_read_stops_the_others(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4, query="?ports=9007,9000") as socket:
        for _ in range(4):
            await next_frame(socket)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await socket.send_bytes(b"\x00" + bytes(1 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await socket.send_bytes(b"\x02hi")
                await socket.receive()
        assert cluster.faults.cut(POD) == 1


async def test_clients_that_go_leave_nothing_behind(cluster: SimCluster) -> None:
    async with web_socket(cluster, POD, V4, query="?ports=9000,9004") as socket:
        await next_frame(socket)
        assert cluster.faults.upgraded(POD) == 1
    async with asyncio.timeout(5):
        while cluster.faults.upgraded():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the server tells nobody that it has noticed


async def test_the_kubernetes_packages_client(cluster: SimCluster, tmp_path: Path) -> None:
    config = cluster.kubeconfig(tmp_path / "kubeconfig")

    def download() -> bytes:
        with kubernetes.config.new_client_from_config(str(config)) as client:
            call = kubernetes.client.CoreV1Api(client).connect_get_namespaced_pod_portforward
            forward = kubernetes.stream.portforward(call, "echo-sts-0", "demo", ports="8080,9999")
            socket = forward.socket(8080)
            socket.settimeout(10)
            socket.sendall(b"GET /bytes?n=4m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while piece := socket.recv(1 << 16):
                data += piece
            assert "connection refused" in forward.error(9999)
            forward.close()
            for thread in threading.enumerate():
                if thread.name.startswith("Kubernetes port forward"):
                    thread.join(10)
            forward.websocket.shutdown()
            return data.partition(b"\r\n\r\n")[2]

    assert await asyncio.to_thread(download) == pattern(4 << 20)
