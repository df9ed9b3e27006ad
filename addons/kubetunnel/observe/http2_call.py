"""One request over HTTP/2 on a stream of its own (RFC 9113), for health checks: h2 does the frames."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions

_MAX_READ_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 16

# gRPC over HTTP/2, Requests
GRPC_HEADERS = (("content-type", "application/grpc"), ("te", "trailers"))


class Http2CallFailed(Exception):  # noqa: N818 - as the errors of the tree are named
    """The server did not answer, or not in HTTP/2."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers`: those of the head and of the trailers, lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


def grpc_message(message: bytes) -> bytes:
    """Length-Prefixed-Message of gRPC over HTTP/2, not compressed."""
    return b"\0" + len(message).to_bytes(4) + message


async def call_http2(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    method: str,
    authority: str,
    path: str,
    tls: bool,
    headers: list[tuple[str, str]],
    body: bytes = b"",
    head_only: bool = False,
) -> Answer:
    """Sends the request and returns its answer. The caller sets the time limit, and closes.

    Args:
        head_only: the answer is what its head tells; its body may be of any length, or never end.

    Raises:
        Http2CallFailed: there was none.
        OSError: the stream failed.
    """
    # RFC 9110 5.5: a field's value may have any bytes
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
    connection.initiate_connection()
    pseudo = [
        (":method", method), (":scheme", "https" if tls else "http"), (":authority", authority), (":path", path),
    ]  # fmt: skip
    connection.send_headers(1, [*pseudo, *headers], end_stream=not body)
    if body:
        connection.send_data(1, body, end_stream=True)
    collected: dict[str, str] = {}
    received = bytearray()
    while True:
        writer.write(connection.data_to_send())
        data = await reader.read(_MAX_READ_BYTES)
        if not data:
            raise Http2CallFailed("the connection was closed without an answer")
        try:
            happened = connection.receive_data(data)
        except h2.exceptions.ProtocolError as e:
            raise Http2CallFailed(f"the port does not speak HTTP/2: {e}") from e
        for event in happened:
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                collected.update(event.headers)  # type: ignore[arg-type]  # texts, by header_encoding
                if head_only:
                    return _answer(collected, received)
            elif isinstance(event, h2.events.DataReceived):
                received += event.data
                if len(received) > _MAX_BODY_BYTES:
                    return _answer(collected, received)
            elif isinstance(event, h2.events.StreamEnded):
                return _answer(collected, received)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise Http2CallFailed(f"the server ended the request with HTTP/2 error {event.error_code}")


def _answer(headers: dict[str, str], body: bytearray) -> Answer:
    status = headers.get(":status", "0")
    return Answer(int(status) if status.isdigit() else 0, headers, bytes(body))
