"""Server reflection, asked of real gRPC servers: of both versions, of none, and of some that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2 as messages

from kubetunnel.core.errors import KubeTunnelError, Timeout, UpstreamReset
from kubetunnel.inspect import grpc_reflection
from kubetunnel.inspect.grpc_descriptors import DescriptorPool
from kubetunnel.inspect.grpc_reflection import NoReflectionError, fetch_file_descriptors
from tests.inspect import shop_proto

V1, ALPHA = grpc_reflection.VERSIONS
FILES = {file.name: file for file in shop_proto.files()}

type Answer = Callable[[Any], Any]


def frugal(request: Any) -> Any:
    """Tells one file at a time, as the protocol allows."""
    name = request.file_by_filename or "shop/orders.proto"
    if request.file_containing_symbol not in ("", "shop.Orders") or name not in FILES:
        error = messages.ErrorResponse(error_code=5, error_message="Symbol not found.")
        return messages.ServerReflectionResponse(error_response=error)
    found = messages.FileDescriptorResponse(file_descriptor_proto=[FILES[name].SerializeToString()])
    return messages.ServerReflectionResponse(file_descriptor_response=found)


@asynccontextmanager
async def server(versions: Iterable[str], answer: Answer = frugal) -> AsyncIterator[int]:
    async def info(requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield answer(request)

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=messages.ServerReflectionRequest.FromString,
        response_serializer=messages.ServerReflectionResponse.SerializeToString,
    )
    running = grpc.aio.server()
    for version in versions:
        name = f"{version}.ServerReflection"
        running.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    try:
        yield port
    finally:
        await running.stop(None)


async def fetch(port: int, symbol: str = "shop.Orders", patience_s: float = 10.0) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await fetch_file_descriptors(
            reader, writer, symbol, scheme="http", authority="orders.shop:80", patience_s=patience_s
        )
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("versions", [(V1,), (ALPHA,), (V1, ALPHA)])
async def test_all_files_of_a_service(versions: tuple[str, ...]) -> None:
    async with server(versions) as port:
        found = await fetch(port)
    assert DescriptorPool(found).method("/shop.Orders/Place") is not None


async def test_a_symbol_that_it_does_not_know() -> None:
    async with server([V1]) as port:
        with pytest.raises(NoReflectionError, match="Symbol not found"):
            await fetch(port, "shop.Nobody")


async def test_no_reflection() -> None:
    async with server([]) as port:
        with pytest.raises(NoReflectionError, match="status 12"):
            await fetch(port)


def lacking(request: Any) -> Any:
    if request.file_by_filename:
        return messages.ServerReflectionResponse(file_descriptor_response=messages.FileDescriptorResponse())
    return frugal(request)


def endless(request: Any) -> Any:
    """A file that needs another, and that one another."""
    number = int(request.file_by_filename or "0")
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=str(number), dependency=[str(number + 1)])
    found = messages.FileDescriptorResponse(file_descriptor_proto=[file.SerializeToString()])
    return messages.ServerReflectionResponse(file_descriptor_response=found)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(lacking, "does not tell the file shop/money.proto"), (endless, "more than 512 files")],
)
async def test_servers_that_have_no_end(answer: Answer, says: str) -> None:
    async with server([V1], answer) as port:
        with pytest.raises(NoReflectionError, match=says):
            await fetch(port)


@asynccontextmanager
async def program(answer: bytes | None, reached: asyncio.Event | None = None) -> AsyncIterator[int]:
    """Answers with these bytes and closes; None: is silent. `reached` is set when it was asked."""

    writers: list[asyncio.StreamWriter] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(1)
        if reached is not None:
            reached.set()
        if answer is None:
            await done.wait()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            done.set()
            for writer in writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, Timeout),
        (b"", UpstreamReset),
        (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", UpstreamReset),
    ],
    ids=["silent", "hangs up", "HTTP/1.1"],
)
async def test_programs_that_are_no_grpc_server(answer: bytes | None, error: type[KubeTunnelError]) -> None:
    async with program(answer) as port:
        with pytest.raises(error):
            await fetch(port, patience_s=0.5)


async def test_a_question_that_is_cancelled_ends() -> None:
    reached = asyncio.Event()
    async with program(None, reached) as port:
        asking = asyncio.create_task(fetch(port))
        await reached.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
