"""Asks a gRPC server what its messages are: the Server Reflection Protocol (grpc/doc/server-reflection.md).

`grpc.reflection.v1` and `v1alpha` differ in the package's name alone, so one set of messages does for both. The call is
made with `h2` on a stream that is open already: grpcio would want a socket of its own.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from kubetunnel.core.errors import Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.inspect.grpc_descriptors import DescriptorsError, dependencies
from kubetunnel.inspect.grpc_messages import parse_messages

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
PATIENCE_S = 10.0
MAX_ANSWER_BYTES = 8 << 20
MAX_FILES = 512

_UNIMPLEMENTED = 12  # grpc/doc/statuscodes.md
_READ_BYTES = 64 << 10
_PREFIX_BYTES = 5


class NoReflectionError(UpstreamProtocol):
    """The server does not tell. `status` is the gRPC status, -1 where there was none."""

    def __init__(self, detail: str, status: int = -1) -> None:
        super().__init__(detail)
        self.status = status


class GrpcCall:
    """One streaming call on a fresh connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, scheme: str, authority: str
    ) -> None:
        self._reader, self._writer = reader, writer
        self._scheme, self._authority = scheme, authority
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
        self._connection.initiate_connection()
        self._stream = 0
        self._body = bytearray()
        self._received_bytes = 0

    async def begin(self, path: str) -> None:
        """Starts a call; one before it is over then."""
        self._stream = self._connection.get_next_available_stream_id()
        self._body.clear()
        self._connection.send_headers(
            self._stream,
            [
                (":method", "POST"), (":scheme", self._scheme), (":authority", self._authority), (":path", path),
                ("content-type", "application/grpc"), ("te", "trailers"),
            ],
        )  # fmt: skip
        await self._flush()

    async def ask(self, request: bytes) -> bytes:
        """Sends one message and returns the next one that comes. Raises NoReflectionError, UpstreamReset."""
        self._connection.send_data(self._stream, struct.pack(">BI", 0, len(request)) + request)
        await self._flush()
        while (answer := self._next_message()) is None:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise UpstreamReset("The pod closed the connection.")
            self._receive(data)
            await self._flush()
        return answer

    def _next_message(self) -> bytes | None:
        if len(self._body) < _PREFIX_BYTES:
            return None
        end = _PREFIX_BYTES + int.from_bytes(self._body[1:_PREFIX_BYTES])
        if len(self._body) < end:
            return None
        message = bytes(self._body[:end])
        del self._body[:end]
        try:
            return next(parse_messages(message)).data
        except ValueError as e:
            raise NoReflectionError(str(e)) from e

    def _receive(self, data: bytes) -> None:
        try:
            received = self._connection.receive_data(data)
        except h2.exceptions.ProtocolError as e:
            raise NoReflectionError(f"The pod broke HTTP/2: {e}.") from e
        for event in received:
            match event:
                case h2.events.DataReceived(stream_id=self._stream):
                    self._received_bytes += len(event.data)
                    if self._received_bytes > MAX_ANSWER_BYTES:
                        raise NoReflectionError(f"The descriptors are longer than {MAX_ANSWER_BYTES >> 20} MiB.")
                    self._body += event.data
                    self._connection.acknowledge_received_data(event.flow_controlled_length, self._stream)
                case (
                    h2.events.ResponseReceived(stream_id=self._stream)
                    | h2.events.TrailersReceived(stream_id=self._stream)
                ):
                    _check_status(event.headers)
                case h2.events.StreamReset(stream_id=self._stream) | h2.events.ConnectionTerminated():
                    raise UpstreamReset("The pod ended the call.")
                case _:
                    pass

    async def _flush(self) -> None:
        if self._writer.is_closing():
            raise UpstreamReset("The connection to the pod was closed.")
        self._writer.write(self._connection.data_to_send())
        await self._writer.drain()


async def fetch_file_descriptors(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    symbol: str,
    *,
    scheme: str,
    authority: str,
    patience_s: float = PATIENCE_S,
) -> list[bytes]:
    """The serialized FileDescriptorProtos of a symbol and of all that it needs, over a fresh stream to the server.

    Raises:
        NoReflectionError: the server has no reflection, or does not know the symbol.
        Timeout, UpstreamReset
    """
    call = GrpcCall(reader, writer, scheme=scheme, authority=authority)
    try:
        async with asyncio.timeout(patience_s):
            for version in VERSIONS:
                await call.begin(f"/{version}.ServerReflection/ServerReflectionInfo")
                try:
                    return await _collect(call, symbol)
                except NoReflectionError as e:
                    if e.status != _UNIMPLEMENTED or version == VERSIONS[-1]:
                        raise
    except TimeoutError as e:
        raise Timeout(f"The pod has not told its descriptors within {patience_s:g} s.") from e
    except (h2.exceptions.ProtocolError, DescriptorsError) as e:
        raise NoReflectionError(str(e)) from e
    except OSError as e:
        raise UpstreamReset(f"The connection to the pod was cut: {e}.") from e
    raise AssertionError("unreachable")


async def _collect(call: GrpcCall, symbol: str) -> list[bytes]:
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

    found: dict[str, bytes] = {}
    missing = _take(await _answer(call, ServerReflectionRequest(file_containing_symbol=symbol)), found)
    while missing:
        if len(found) > MAX_FILES:
            raise NoReflectionError(f"The descriptors are more than {MAX_FILES} files.")
        name = missing.pop()
        missing |= _take(await _answer(call, ServerReflectionRequest(file_by_filename=name)), found)
        missing -= found.keys()
        if name not in found:
            raise NoReflectionError(f"The server does not tell the file {name}, which its own files need.")
    return list(found.values())


async def _answer(call: GrpcCall, request: Any) -> Sequence[bytes]:
    from google.protobuf.message import DecodeError
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse

    try:
        response = ServerReflectionResponse.FromString(await call.ask(request.SerializeToString()))
    except DecodeError as e:
        raise NoReflectionError("What came is no answer of server reflection.") from e
    if response.HasField("error_response"):
        error = response.error_response
        raise NoReflectionError(f"The server says: {error.error_message or error.error_code}.", error.error_code)
    files: Sequence[bytes] = response.file_descriptor_response.file_descriptor_proto
    return files


def _take(files: Iterable[bytes], found: dict[str, bytes]) -> set[str]:
    """Adds the files to those found. Returns which ones they need that are missing."""
    wanted: set[str] = set()
    for file in files:
        name, needed = dependencies(file)
        found.setdefault(name, bytes(file))
        wanted.update(needed)
    return wanted - found.keys()


def _check_status(headers: Iterable[tuple[Any, Any]]) -> None:
    fields = {str(name): str(value) for name, value in headers}
    status = fields.get("grpc-status", "")
    if fields.get(":status", "200") != "200":
        raise NoReflectionError(f"The pod answers with the HTTP status {fields[':status']}.")
    if status:
        message = unquote(fields.get("grpc-message", "")) or "no message"
        number = int(status) if status.isascii() and status.isdigit() else -1
        raise NoReflectionError(f"The server ends the call with the gRPC status {status}: {message}.", number)
