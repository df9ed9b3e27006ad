"""The gRPC program of a simulated pod: echo.v1.Echo, health, reflection, as the real demo's echo.go (9090, 9443).

No protoc: the messages are google.protobuf's wrappers, and the service's file descriptor is made here, for reflection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from kubetunnel.sim.certs import KeyPair

SERVICE = "echo.v1.Echo"
MAX_MESSAGE_BYTES = 64 << 20
HOST = "127.0.0.1"

String, Bytes, Int64 = wrappers_pb2.StringValue, wrappers_pb2.BytesValue, wrappers_pb2.Int64Value
# name, request, response, client streams, server streams
METHODS = (
    ("Unary", String, String, False, False),
    ("Bytes", Bytes, Bytes, False, False),
    ("Fail", String, String, False, False),
    ("ServerStream", Int64, String, False, True),
    ("ClientStream", Bytes, Int64, True, False),
    ("Bidi", String, String, True, True),
)


class GrpcEcho:
    """One gRPC port of one pod.

    Args:
        pod_name: the pod's hostname, as x-pod in the initial metadata of unary calls.
        certificate: for the port that speaks TLS.
    """

    def __init__(self, pod_name: str, certificate: KeyPair | None = None) -> None:
        self._pod_name = pod_name
        self._certificate = certificate
        self._server: grpc.aio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Listen on an ephemeral port. Returns the address; raises RuntimeError where there is none to be had."""
        limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
        self._server = server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        for name in ("", SERVICE):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=_descriptors())
        if self._certificate is None:
            port = server.add_insecure_port(f"{HOST}:0")
        else:
            pair = (self._certificate.key_pem.encode(), self._certificate.certificate_pem.encode())
            port = server.add_secure_port(f"{HOST}:0", grpc.ssl_server_credentials([pair]))
        await server.start()
        return HOST, int(port)

    async def aclose(self) -> None:
        """Stop at once: running calls are cut."""
        if self._server is not None:
            await self._server.stop(None)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        programs = {
            "Unary": self._echo, "Bytes": self._echo, "Fail": _fail, "ServerStream": self._server_stream,
            "ClientStream": _client_stream, "Bidi": _bidi,
        }  # fmt: skip
        kinds = {
            (False, False): grpc.unary_unary_rpc_method_handler, (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler, (True, True): grpc.stream_stream_rpc_method_handler,
        }  # fmt: skip
        return {
            name: kinds[client_streams, server_streams](
                programs[name], request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )
            for name, request, response, client_streams, server_streams in METHODS
        }

    async def _echo[Message](self, request: Message, context: Any) -> Message:
        await context.send_initial_metadata((("x-pod", self._pod_name),))
        return request

    async def _server_stream(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        for i in range(request.value):
            yield String(value=f"{i} {self._pod_name}")


async def _fail(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.value)


async def _client_stream(requests: AsyncIterator[Any], _context: Any) -> Any:
    total = 0
    async for request in requests:
        total += len(request.value)
    return Int64(value=total)


async def _bidi(requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


def _descriptors() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="echo/v1/echo.proto", package="echo.v1", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    service = file.service.add(name="Echo")
    for name, request, response, client_streams, server_streams in METHODS:
        service.method.add(
            name=name,
            input_type=f".{request.DESCRIPTOR.full_name}",
            output_type=f".{response.DESCRIPTOR.full_name}",
            client_streaming=client_streams,
            server_streaming=server_streams,
        )
    pool = descriptor_pool.DescriptorPool()  # of our own: a process may have another echo.proto in the default one
    for known in (wrappers_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool
