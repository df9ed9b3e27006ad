"""Parts of an answer are passed on when they arrive: pod and client share a clock here."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from tests.proxy.loopback import connect
from tests.proxy.scripted_pod import tunnel_to
from tests.tunnel import Tunnel

PARTS = 20
PAUSE_S = 0.06
LIMIT_S = 0.02  # far less than the pause: a part that waits for the next one comes too late

HEADS = {
    "/sse": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    "/upgrade": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ticks\r\n\r\n",
}


async def tick(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends the time, now and then."""
    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
    writer.write(HEADS[path])
    for _ in range(PARTS):
        await asyncio.sleep(PAUSE_S)
        event = b"data: %.6f\n\n" % time.monotonic()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event) if path == "/chunked" else event)
        await writer.drain()
    writer.write(b"0\r\n\r\n" if path == "/chunked" else b"")


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with tunnel_to(tick, "ticks", tmp_path_factory.mktemp("confdir")) as tunnel:
        yield tunnel


@pytest.mark.parametrize(("path", "finishes"), [*((path, False) for path in HEADS), ("/upgrade", True)])
def test_each_part_is_passed_on_when_it_arrives(tunnel: Tunnel, path: str, finishes: bool) -> None:
    fields = "Connection: Upgrade\r\nUpgrade: ticks\r\n" if path == "/upgrade" else ""
    late_s: list[float] = []
    buffer = b""
    with connect(tunnel.port) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: ticks.demo\r\n{fields}\r\n".encode())
        if finishes:  # and reads on
            client.shutdown(socket.SHUT_WR)
        while data := client.recv(1 << 16):
            now_s = time.monotonic()
            *events, buffer = (buffer + data).split(b"\n\n")
            late_s += [now_s - float(event.rpartition(b"data: ")[2]) for event in events]
    assert len(late_s) == PARTS
    assert min(late_s) < LIMIT_S  # the machine may be busy, but not each time
