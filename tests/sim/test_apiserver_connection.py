"""The API server's HTTP/1.1, byte by byte: what no proper client sends, and what follows an upgrade's head."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kubetunnel.sim.apiserver import READ_BUFFER_BYTES
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.connection import MAX_BODY_BYTES, Connection, Request
from kubetunnel.sim.resources import REVIEWS

TIMEOUT_S = 10.0
VERSION = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"

type Talk = Callable[..., Awaitable[bytes]]


@pytest.fixture
async def talk(cluster: SimCluster) -> AsyncIterator[Talk]:
    """Send pieces, each on its own, and read to the end."""
    context = ssl.create_default_context(cadata=cluster.certificate_authority_pem)

    async def talk(*pieces: bytes, half_close: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port, ssl=context)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if half_close:
                    writer.close()
                    return b""
                return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    yield talk


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (READ_BUFFER_BYTES + 10) + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 411 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), b"HTTP/1.1 413 "),
    ],
)
async def test_bad_requests_are_answered_and_the_connection_ends(talk: Talk, sent: bytes, status: bytes) -> None:
    assert (await talk(sent)).startswith(status)


async def test_requests_in_one_piece_and_in_many(talk: Talk) -> None:
    last = VERSION.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert (await talk(VERSION + VERSION + last)).count(b"HTTP/1.1 200") == 3
    assert (await talk(*(bytes([byte]) for byte in last))).count(b"HTTP/1.1 200") == 1


async def test_a_body_that_comes_late(talk: Talk) -> None:
    body = b'{"spec":{"nonResourceAttributes":{"verb":"get","path":"/api"}}}'
    path = f"/apis/{REVIEWS[0].group}/v1/{REVIEWS[0].name}".encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path, len(body))
    assert b"403 " in await talk(head, body[:10], body[10:])  # anonymous


async def test_a_client_that_goes_in_the_middle(cluster: SimCluster, talk: Talk) -> None:
    await talk(b"GET /ver", half_close=True)
    await talk(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", half_close=True)
    assert b"200" in await talk(VERSION.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))


async def test_what_follows_an_upgrade_is_left_to_it(cluster: SimCluster, talk: Talk) -> None:
    """A client may send its first frames together with the request."""
    seen = []

    async def take_over(request: Request, connection: Connection, namespace: str, name: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            seen.append((request.method, request.query_lists["ports"], namespace, name))
            connection.writer.write(await connection.reader.readexactly(9))
            await connection.writer.drain()

    cluster.api._forward = take_over
    path = b"/api/v1/namespaces/demo/pods/pair/portforward?ports=80&ports=81"
    head = b"GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % (path, cluster.token().encode())
    head += b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    assert await talk(head + b"\x80\x03", b"\0\1frame") == b"\x80\x03\0\1frame"
    assert await talk(head, b"\x80\x03\0\1frame") == b"\x80\x03\0\1frame"
    assert seen == [("GET", ["80", "81"], "demo", "pair")] * 2
