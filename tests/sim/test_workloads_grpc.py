"""The gRPC program of a simulated pod, by grpcio's client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.workloads import Workload


@pytest.fixture(params=["plain", "tls"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[grpc.aio.Channel]:
    authority = CertificateAuthority("test")
    workload = Workload("pod-1", certificate=authority.server("echo", ("localhost", "127.0.0.1")))
    await workload.start()
    address = workload.listen_address(9443 if request.param == "tls" else 9090)
    assert address is not None
    target = f"{address[0]}:{address[1]}"
    roots = grpc.ssl_channel_credentials(authority.certificate_pem.encode())
    channel = grpc.aio.secure_channel(target, roots) if request.param == "tls" else grpc.aio.insecure_channel(target)
    async with channel:
        yield channel
    await workload.aclose()


def method(channel: grpc.aio.Channel, kind: str, name: str, response: type) -> grpc.aio.UnaryUnaryMultiCallable:
    return getattr(channel, kind)(
        f"/echo.v1.Echo/{name}",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=response.FromString,
    )


async def test_unary(channel: grpc.aio.Channel) -> None:
    call = method(channel, "unary_unary", "Unary", StringValue)(StringValue(value="hi"), timeout=5)
    assert (await call).value == "hi"
    assert ("x-pod", "pod-1") in tuple(await call.initial_metadata())
    big = BytesValue(value=bytes(3 << 20))
    assert await method(channel, "unary_unary", "Bytes", BytesValue)(big, timeout=5) == big


async def test_fail(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await method(channel, "unary_unary", "Fail", StringValue)(StringValue(value="why"), timeout=5)
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "why")


async def test_streams(channel: grpc.aio.Channel) -> None:
    down = method(channel, "unary_stream", "ServerStream", StringValue)(Int64Value(value=3), timeout=5)
    assert [message.value async for message in down] == ["0 pod-1", "1 pod-1", "2 pod-1"]
    up = method(channel, "stream_unary", "ClientStream", Int64Value)(iter([BytesValue(value=b"abc")] * 3), timeout=5)
    assert (await up).value == 9
    both = method(channel, "stream_stream", "Bidi", StringValue)(timeout=5)
    for text in ("a", "b"):
        await both.write(StringValue(value=text))
        assert (await both.read()).value == text
    await both.done_writing()
    assert await both.read() is grpc.aio.EOF


async def test_health(channel: grpc.aio.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="echo.v1.Echo")
    answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_shows_the_methods(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="echo.v1.Echo"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="google/protobuf/wrappers.proto"),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=5)]
    assert "echo.v1.Echo" in {service.name for service in answers[0].list_services_response.service}
    pool = DescriptorPool()
    for answer in reversed(answers[1:]):
        for file in answer.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(file)
    methods = pool.FindServiceByName("echo.v1.Echo").methods_by_name
    assert set(methods) == {"Unary", "Bytes", "Fail", "ServerStream", "ClientStream", "Bidi"}
    assert methods["Bidi"].client_streaming
    assert methods["Bidi"].server_streaming
