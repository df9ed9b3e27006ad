"""Health checks of ports that answer in HTTP/2 as they like: any body, any bytes in a header."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import pytest

from kubetunnel.core.health import Check
from kubetunnel.observe.probes import Probed, probe

TIMEOUT_S = 10.0  # of a check that works: at once
LONG = b"x" * 70_000  # more than the window of a stream (RFC 9113 6.9.2)


class Server:
    """Answers one request with this head, and as much of the body as the client's window takes."""

    def __init__(self, body: bytes, *, ends: bool, headers: list[tuple[bytes, bytes]]) -> None:
        self._left, self._ends, self._headers = body, ends, headers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    connection.send_headers(1, [(b":status", b"200"), *self._headers])
            while self._left and (room := min(connection.local_flow_control_window(1), 1 << 14)):
                piece, self._left = self._left[:room], self._left[room:]
                connection.send_data(1, piece, end_stream=self._ends and not self._left)
            writer.write(connection.data_to_send())
        writer.close()


@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize(
    ("body", "ends", "header"),
    [
        (b"ok", True, b"plain"),
        (LONG, True, b"plain"),
        (b"data: 1\n\n", False, b"plain"),  # server-sent events
        (b"ok", True, b"caf\xe9"),  # no UTF-8
    ],
)
async def test_an_answer_is_judged_by_its_head(kind: str, body: bytes, ends: bool, header: bytes) -> None:
    if kind == "grpc":
        body, ends = b"\0\0\0\0\2\x08\x01", True
    answering = Server(body, ends=ends, headers=[(b"x-name", header), (b"grpc-status", b"0")])
    async with await asyncio.start_server(answering.serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        check = Check("http", "/") if kind == "http" else Check("grpc")
        try:
            outcome = await probe(reader, writer, Probed(check, "api.shop", http2=True), TIMEOUT_S)
        finally:
            writer.close()
            await writer.wait_closed()
    assert (outcome.ok, outcome.detail) == (True, "HTTP status 200" if kind == "http" else "SERVING")
