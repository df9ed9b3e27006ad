"""The programs of a simulated pod, by clients that we did not write."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import h2.events
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from websockets.asyncio.client import connect

from kubetunnel.sim.tcp_echo import pattern
from kubetunnel.sim.workloads import Workload
from tests.sim.clients import curl

SECOND_S = 1.0


@pytest.fixture
async def workload() -> AsyncIterator[Workload]:
    workload = Workload("pod-1", version="7")
    await workload.start()
    yield workload
    await workload.aclose()


def url(workload: Workload, path: str, port: int = 8080, scheme: str = "http") -> str:
    address = workload.listen_address(port)
    assert address is not None
    return f"{scheme}://{address[0]}:{address[1]}{path}"


async def dial(workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = workload.listen_address(port)
    assert address is not None
    return await asyncio.open_connection(*address)


@pytest.mark.parametrize(
    ("option", "port", "scheme", "proto"),
    [
        ("--http1.1", 8080, "http", "HTTP/1.1"),
        ("--http2-prior-knowledge", 8080, "http", "HTTP/2.0"),
        ("--http2", 8080, "http", "HTTP/2.0"),
        ("--http1.1", 8443, "https", "HTTP/1.1"),
        ("--http2", 8443, "https", "HTTP/2.0"),
    ],
)
async def test_every_http_version_echoes_the_request(
    workload: Workload, option: str, port: int, scheme: str, proto: str
) -> None:
    result = await curl("-k", option, "-H", "x-a: 1", "-H", "X-A: 2", url(workload, "/a%2Fb?q=1&q=2", port, scheme))
    echoed = json.loads(result.out)
    assert {key: echoed[key] for key in ("pod", "version", "method", "path", "query", "proto", "tls", "body")} == {
        "pod": "pod-1", "version": "7", "method": "GET", "path": "/a/b", "query": "q=1&q=2", "proto": proto,
        "tls": scheme == "https", "body": "",
    }  # fmt: skip
    assert echoed["headers"]["X-A"] == ["1", "2"]
    assert "Host" not in echoed["headers"]
    assert echoed["host"] == url(workload, "", port)[7:]
    assert set(echoed) == {"pod", "version", "method", "path", "query", "proto", "tls", "body", "body_bytes"} | {
        "body_sha256", "headers", "host", "remote"
    }  # fmt: skip


async def test_short_answers(workload: Workload) -> None:
    assert (await curl(url(workload, "/hostname"))).out == b"pod-1\n"
    assert (await curl(url(workload, "/healthz"))).out == b"ok\n"
    head = await curl("-i", url(workload, "/status?code=503&code=200"))
    assert head.out.startswith(b"HTTP/1.1 503")
    assert b"x-pod: pod-1" in head.out
    assert (await curl("-i", url(workload, "/status?code=204"))).out.startswith(b"HTTP/1.1 204")
    stats = json.loads((await curl(url(workload, "/stats"))).out)
    assert stats == {"pod": "pod-1", "requests": 5, "open_conns": 1}


@pytest.mark.parametrize("option", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("query", ["n=300000", "n=300000&chunked=1", "n=3k&n=1", "n=150000&rate=1m"])
async def test_bytes_are_the_pattern(workload: Workload, option: str, query: str) -> None:
    result = await curl(option, url(workload, f"/bytes?{query}"))
    wanted = 3 << 10 if "3k" in query else 150_000 if "rate" in query else 300_000
    assert result.out == bytes(i * 31 % 251 for i in range(wanted))


def test_pattern_goes_on_anywhere() -> None:
    whole = pattern(2000)
    assert b"".join(pattern(count, start) for start, count in ((0, 7), (7, 993), (1000, 1000))) == whole


@pytest.mark.parametrize("option", ["--http1.1", "--http2-prior-knowledge"])
async def test_a_large_upload_arrives_whole(workload: Workload, option: str, tmp_path: Path) -> None:
    body = pattern(20 << 20)
    file = tmp_path / "body"
    file.write_bytes(body)
    result = await curl(option, "-T", str(file), url(workload, "/upload"))
    answer = json.loads(result.out)
    assert (answer["bytes"], answer["sha256"], answer["error"]) == (len(body), hashlib.sha256(body).hexdigest(), "")


@pytest.mark.parametrize(("option", "code"), [("--http1.1", 18), ("--http2-prior-knowledge", 92)])
async def test_abort_ends_half_way(workload: Workload, option: str, code: int) -> None:
    result = await curl(option, url(workload, "/abort"))
    assert result.code == code
    assert len(result.out) == 1000 or option != "--http1.1", "of a reset stream curl may drop what came"
    assert (await curl(option, url(workload, "/hostname"))).code == 0


async def test_an_answer_may_overtake_its_upload(workload: Workload) -> None:
    result = await curl("-X", "POST", "--data-binary", "@-", url(workload, "/status?code=413"), stdin=bytes(9000))
    assert (result.code, result.out) == (0, b"pod-1\n")


async def test_an_http2_answer_may_overtake_its_upload(workload: Workload) -> None:
    """By the h2 library: some versions of curl fail now and then, with Go's servers too."""
    connection = H2Connection(H2Configuration(header_encoding=None))
    connection.initiate_connection()
    connection.send_headers(
        1, [(":method", "POST"), (":scheme", "http"), (":path", "/status?code=413"), (":authority", "x")]
    )
    reader, writer = await dial(workload, 8080)
    writer.write(connection.data_to_send())
    events: list[h2.events.Event] = []
    async with asyncio.timeout(SECOND_S):
        while not any(isinstance(event, h2.events.StreamReset) for event in events):
            events += connection.receive_data(await reader.read(1 << 16))
    assert b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived)) == b"pod-1\n"
    assert [event.error_code for event in events if isinstance(event, h2.events.StreamReset)] == [0]
    writer.close()
    await writer.wait_closed()


async def test_streams_come_line_by_line(workload: Workload) -> None:
    reader, writer = await dial(workload, 8080)
    writer.write(b"GET /sse?n=2&ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
        assert b"id: 0\ndata: pod-1\n\n" in await reader.readuntil(b"\n\n")
    writer.close()
    await writer.wait_closed()
    assert (await curl(url(workload, "/stream?n=2&ms=1"))).out == b"0 pod-1\n1 pod-1\n"


async def test_a_client_that_goes_ends_its_request(workload: Workload) -> None:
    _, writer = await dial(workload, 8080)
    writer.write(b"GET /delay?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    stats: dict[str, int] = {}
    while stats.get("open_conns") != 2:
        stats = json.loads((await curl(url(workload, "/stats"))).out)
    writer.close()
    await writer.wait_closed()
    while stats["open_conns"] != 1:
        stats = json.loads((await curl(url(workload, "/stats"))).out)


@pytest.mark.parametrize("message", ["hello", b"\x00\xff", "x" * 100_000])
async def test_web_socket_echoes(workload: Workload, message: str | bytes) -> None:
    async with connect(url(workload, "/ws", scheme="ws"), subprotocols=["echo.v1"], proxy=None) as socket:
        assert socket.subprotocol == "echo.v1"
        await socket.send(message)
        assert await socket.recv() == message
    assert socket.close_code == 1000


async def test_web_socket_needs_an_upgrade(workload: Workload) -> None:
    assert (await curl("-i", url(workload, "/ws"))).out.startswith(b"HTTP/1.1 400")


async def test_exit_ends_the_pod() -> None:
    codes: list[int] = []
    workload = Workload("pod-1", on_exit=codes.append)
    await workload.start()
    reader, writer = await dial(workload, 9000)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert (await curl(url(workload, "/exit?code=3"))).code in (52, 56)
    assert codes == [3]
    assert workload.listen_address(9000) is None
    with pytest.raises(ConnectionError):
        if not await reader.read():
            raise ConnectionError
    writer.close()
    await workload.aclose()


# TCP


async def test_tcp_echo_and_greeting(workload: Workload) -> None:
    for port, greeting in ((9000, b""), (9001, b"220 pod-1 ready\r\n"), (9005, b""), (9006, b"")):
        reader, writer = await dial(workload, port)
        async with asyncio.timeout(5):
            assert await reader.readexactly(len(greeting)) == greeting
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_tcp_reset(workload: Workload) -> None:
    with pytest.raises(ConnectionResetError):
        reader, writer = await dial(workload, 9002)
        try:
            await reader.read()
        finally:
            writer.close()


async def test_tcp_counts_to_the_end(workload: Workload) -> None:
    body = pattern(1 << 20)
    reader, writer = await dial(workload, 9003)
    writer.write(body)
    writer.write_eof()
    async with asyncio.timeout(5):
        assert await reader.read() == f"{len(body)} {hashlib.sha256(body).hexdigest()} <nil>\n".encode()
    writer.close()
    await writer.wait_closed()


async def test_tcp_flood_waits_for_its_reader(workload: Workload) -> None:
    reader, writer = await dial(workload, 9004)
    async with asyncio.timeout(5):
        assert await reader.readexactly(3 << 20) == pattern(3 << 20)
    writer.transport.abort()


async def test_mute_never_reads(workload: Workload) -> None:
    _, writer = await dial(workload, 9007)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()
    writer.transport.abort()


async def test_nothing_listens_elsewhere(workload: Workload) -> None:
    assert workload.listen_address(9999) is None


async def test_a_program_of_ones_own() -> None:
    workload = Workload("pod-1")
    await workload.start()

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"mine")

    await workload.listen(7000, greet)
    reader, writer = await dial(workload, 7000)
    async with asyncio.timeout(SECOND_S):
        assert await reader.read() == b"mine"
    writer.close()
    with pytest.raises(OSError, match="port 9000 of pod pod-1 is taken"):
        await workload.listen(9000, greet)
    await workload.aclose()
    assert workload.listen_address(7000) is None


async def test_closing_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    workload = Workload("pod-1")
    await workload.start()
    connections = [await dial(workload, port) for port in (8080, 9000, 9004, 9007)]
    connections[0][1].write(b"GET /delay?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(SECOND_S):
        await workload.aclose()
    for reader, writer in connections:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()
    gc.collect()
    assert asyncio.all_tasks() == before
