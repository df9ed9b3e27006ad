"""gRPC as the pod sees it: metadata, the deadline, cancellation; and trailers of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.tunnel import Tunnel

POD_PORT = 7002
LIMIT_S = 10.0
SERVICE = "test.Recorder"


class Recorder:
    """The service `test.Recorder` of a pod; messages are bytes."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str | bytes]] = []
        self.remaining_s = 0.0
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.released = asyncio.Event()

    async def call(self, request: bytes, context: Any) -> bytes:
        self.metadata = list(context.invocation_metadata())
        self.remaining_s = context.time_remaining()
        context.set_trailing_metadata((("x-trailer", "a"), ("x-trailer", "b"), ("x-bytes-bin", b"\x00\xff")))
        return request

    async def wait(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def talk(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def late(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        """Its headers go with the first message."""
        await self.released.wait()
        yield b"late"

    async def hang(self, _request: bytes, _context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Recorder",
            {
                "Call": grpc.unary_unary_rpc_method_handler(self.call),
                "Late": grpc.unary_stream_rpc_method_handler(self.late),
                "Wait": grpc.unary_stream_rpc_method_handler(self.wait),
                "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            },
        )


def descriptors() -> descriptor_pool.DescriptorPool:
    """What reflection tells of the two methods that keep their clients waiting."""
    file = descriptor_pb2.FileDescriptorProto(name="recorder.proto", package="test", syntax="proto3")
    file.message_type.add(name="Any")
    service = file.service.add(name="Recorder")
    for name, server_streams in (("Hang", False), ("Late", True)):
        service.method.add(name=name, input_type=".test.Any", output_type=".test.Any", server_streaming=server_streams)
    pool = descriptor_pool.DescriptorPool()
    for serialized in (reflection_pb2.DESCRIPTOR.serialized_pb, file.SerializeToString()):
        pool.AddSerializedFile(serialized)
    return pool


def pipe_to(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """A program that is another one, on a port of loopback."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, to_writer))
            group.create_task(copy(to_reader, writer))

    return serve


@pytest.fixture
async def recorder(sim: SimCluster) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((recorder.handler(),))
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server, pool=descriptors())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    workload = sim.pod("demo", "pair").workload
    assert workload is not None
    await workload.listen(POD_PORT, pipe_to(port))
    await sim.add_service(ServiceSpec("demo", "recorder", (Port(80, "grpc", POD_PORT),), {"app": "pair"}))
    yield recorder
    await server.stop(None)


@pytest.fixture
async def channel(recorder: Recorder, tunnel: Tunnel) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.default_authority", "recorder.demo"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", options) as channel:
        yield channel


async def test_metadata_trailers_and_deadline(recorder: Recorder, channel: grpc.aio.Channel) -> None:
    metadata = (("x-mine", "a"), ("x-mine", "b, c"), ("x-bytes-bin", b"\x00\xff"), ("x-empty", ""))
    call = channel.unary_unary("/test.Recorder/Call")(b"\x00\x01", timeout=7.5, metadata=metadata)
    assert await call == b"\x00\x01"
    assert [pair for pair in recorder.metadata if pair[0].startswith("x-")] == list(metadata)
    assert 0 < recorder.remaining_s <= 7.5
    trailers = list(await call.trailing_metadata())
    assert trailers == [("x-trailer", "a"), ("x-trailer", "b"), ("x-bytes-bin", b"\x00\xff")]


async def test_a_call_without_a_deadline_gets_none_from_us(recorder: Recorder, channel: grpc.aio.Channel) -> None:
    assert await channel.unary_unary("/test.Recorder/Call")(b"x") == b"x"
    assert recorder.remaining_s is None or recorder.remaining_s > 1e6


async def test_cancelling_reaches_the_pod(recorder: Recorder, channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/test.Recorder/Wait")(b"")
    assert await call.read() == b"first"
    call.cancel()
    async with asyncio.timeout(LIMIT_S):
        await recorder.cancelled.wait()


async def test_a_deadline_that_passes_reaches_the_pod(recorder: Recorder, channel: grpc.aio.Channel) -> None:
    assert await channel.unary_unary("/test.Recorder/Call")(b"x") == b"x"  # what comes first may take its time
    call = channel.unary_stream("/test.Recorder/Wait")(b"", timeout=2.0)
    assert await call.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(LIMIT_S):
        await recorder.cancelled.wait()


async def test_a_pod_that_vanishes_in_a_stream(sim: SimCluster, recorder: Recorder, channel: grpc.aio.Channel) -> None:
    """Headers and a message have come, and the client is told what may be tried again."""
    call = channel.unary_stream("/test.Recorder/Wait")(b"", timeout=LIMIT_S)
    assert await call.read() == b"first"
    sim.faults.cut()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(failed.value.trailing_metadata())["x-kube-tunnel-error"] == "UpstreamReset"
    assert await channel.unary_unary("/test.Recorder/Call")(b"again", timeout=LIMIT_S) == b"again"


async def test_a_stream_that_is_silent_before_its_headers_outlives_the_default(
    recorder: Recorder, sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    """A server sends its headers with its first message, and this one waits for the client's."""
    options = ["--set", "kube_grpc_timeout=1s"]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    channel_options = [("grpc.default_authority", "recorder.demo"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", channel_options) as channel:
        talk = channel.stream_stream("/test.Recorder/Talk")()
        hang = channel.unary_unary("/test.Recorder/Hang")(b"")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await hang
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, "which a call that has sent all is"
        async with asyncio.timeout(LIMIT_S):
            await talk.write(b"late")
            assert await talk.read() == b"late"
            await talk.done_writing()
            assert await talk.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("known", [True, False], ids=["reflection", "nothing-known"])
async def test_a_server_that_streams_may_be_silent_before_its_headers(
    recorder: Recorder, sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path, known: bool
) -> None:
    """Its client has sent all, as that of a unary call has; the pod tells which of the two it is."""
    options = ["--set", "kube_grpc_timeout=1s", "--set", f"kube_grpc_reflection={str(known).lower()}"]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    channel_options = [("grpc.default_authority", "recorder.demo"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tunnel.port}", channel_options) as channel:
        late = channel.unary_stream("/test.Recorder/Late")(b"")
        reading = asyncio.ensure_future(late.read())
        async with asyncio.timeout(LIMIT_S):
            for _ in range(2 if known else 1):  # the second one begins when the first has outlived the time
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await channel.unary_unary("/test.Recorder/Hang")(b"")
                assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if known:
                assert not reading.done()
                recorder.released.set()
                assert await reading == b"late"
            else:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await reading
                assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
