"""gRPC by grpcio: clear (h2c) and over TLS, at the listening port with the Service as the authority."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from google.protobuf import wrappers_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.contract.test_protocols import ca_file
from tests.proxy.loopback import connect
from tests.tunnel import Tunnel

LIMIT_S = 10.0
MIB = 1 << 20
SIZES = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", 64 * MIB)]

String, Bytes, Int64 = wrappers_pb2.StringValue, wrappers_pb2.BytesValue, wrappers_pb2.Int64Value


def open_channel(tunnel: Tunnel, authority: str, *, tls: bool = False, proxy: bool = False) -> grpc.Channel:
    """To the tunnel itself, or to the Service's name by CONNECT (`proxy`); `authority` names Service and port."""
    options = [*SIZES, ("grpc.use_local_subchannel_pool", 1)]
    at = f"127.0.0.1:{tunnel.port}"
    if proxy:
        target, options = authority, [*options, ("grpc.http_proxy", f"http://{at}")]
    else:
        target, options = at, [*options, ("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
    if not tls:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(ca_file(tunnel).read_bytes())
    host = authority.partition(":")[0]
    return grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", host)])


class Echo:
    """echo.v1.Echo of the demo's pods."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

        def method(make: Callable[..., Any], name: str, request: Any, response: Any) -> Any:
            path = f"/echo.v1.Echo/{name}"
            return make(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)

        self.unary = method(channel.unary_unary, "Unary", String, String)
        self.bytes = method(channel.unary_unary, "Bytes", Bytes, Bytes)
        self.fail = method(channel.unary_unary, "Fail", String, String)
        self.server_stream = method(channel.unary_stream, "ServerStream", Int64, String)
        self.client_stream = method(channel.stream_unary, "ClientStream", Bytes, Int64)
        self.bidi = method(channel.stream_stream, "Bidi", String, String)


WAYS = {
    "h2c": {"authority": "echo.demo.svc.cluster.local:9090"},
    "tls": {"authority": "echo.demo.svc.cluster.local:9443", "tls": True},
    "proxy": {"authority": "echo.demo.svc.cluster.local:9090", "proxy": True},
    "tls-proxy": {"authority": "echo.demo.svc.cluster.local:9443", "tls": True, "proxy": True},
}


class PlainClient:
    """HTTP/2 without gRPC's own ideas: a client that sends what it is told to and waits for as long as it takes."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.socket = connect(tunnel.port)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.body = b""
        self.head: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.reset = False

    def call(self, path: str, authority: str, *fields: tuple[str, str]) -> int:
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *fields])
        return stream_id

    def send(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def until(self, happened: Callable[[], object]) -> None:
        """Sends what waits, and reads until then."""
        while not happened():
            self.send()
            data = self.socket.recv(1 << 16)
            assert data, "the connection ended"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.body += event.data
                elif isinstance(event, h2.events.ResponseReceived):
                    self.head = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.TrailersReceived):
                    self.trailers = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.StreamReset):
                    self.reset = True

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.fixture(params=WAYS)
def echo(tunnel: Tunnel, request: pytest.FixtureRequest) -> Iterator[Echo]:
    with open_channel(tunnel, **WAYS[request.param]) as channel:
        yield Echo(channel)


@pytest.fixture
def clear(tunnel: Tunnel) -> Iterator[Echo]:
    with open_channel(tunnel, "echo.demo:9090") as channel:
        yield Echo(channel)


def test_unary_with_metadata_both_ways(echo: Echo) -> None:
    metadata = [("x-mine", "a"), ("x-mine", "b"), ("x-bytes-bin", b"\x00\xff")]
    answer, call = echo.unary.with_call(String(value="héllo"), timeout=LIMIT_S, metadata=metadata)
    assert answer.value == "héllo"
    assert dict(call.initial_metadata())["x-pod"].startswith("echo-")
    assert call.code() is grpc.StatusCode.OK


def test_a_port_whose_name_tells_nothing(tunnel: Tunnel) -> None:
    """9090 of a headless Service that has not got it: the pod has, and is asked what it speaks."""
    with open_channel(tunnel, "echo-sts-0.echo-sts.demo.svc.cluster.local:9090") as channel:
        answer, call = Echo(channel).unary.with_call(String(value="x"), timeout=LIMIT_S)
        assert answer.value == "x"
        assert dict(call.initial_metadata())["x-pod"] == "echo-sts-0"


def test_server_stream(echo: Echo) -> None:
    answers = [answer.value for answer in echo.server_stream(Int64(value=100), timeout=LIMIT_S)]
    assert [answer.split()[0] for answer in answers] == [str(i) for i in range(100)]


def test_client_stream(echo: Echo) -> None:
    sent = (Bytes(value=bytes(10_000)) for _ in range(50))
    assert echo.client_stream(sent, timeout=LIMIT_S).value == 500_000


def test_bidi_interleaved(echo: Echo) -> None:
    """Each message is sent only after the answer to the one before: nothing may wait for the request's end."""
    requests: queue.Queue[String | None] = queue.Queue()
    call = echo.bidi(iter(requests.get, None), timeout=LIMIT_S)
    for i in range(50):
        requests.put(String(value=f"message {i}"))
        assert next(call).value == f"message {i}"
    requests.put(None)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_a_failure_is_the_pods_own(echo: Echo) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        echo.fail(String(value="nö, 100 %"), timeout=LIMIT_S)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "nö, 100 %")


def test_a_method_that_is_not_there(clear: Echo) -> None:
    """Trailers only: the answer is one HEADERS frame."""
    call = clear.channel.unary_unary("/echo.v1.Echo/Nothing")
    with pytest.raises(grpc.RpcError) as failed:
        call(b"", timeout=LIMIT_S)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_16_mib(echo: Echo) -> None:
    sent = Bytes(value=bytes(range(256)) * (16 * MIB // 256))
    assert echo.bytes(sent, timeout=30) == sent


def test_a_thousand_calls_on_one_channel(clear: Echo) -> None:
    """In batches, so that many are under way at once."""
    for start in range(0, 1000, 50):
        calls = [clear.unary.future(String(value=str(start + i)), timeout=30) for i in range(50)]
        assert [call.result().value for call in calls] == [str(start + i) for i in range(50)]


def test_the_deadline_reaches_the_pod(tunnel: Tunnel) -> None:
    """The client here enforces nothing, and the tunnel nothing after the headers: it is the pod that ends the call."""
    message = b"\x00" + (4).to_bytes(4) + String(value="hi").SerializeToString()
    started = time.monotonic()
    with PlainClient(tunnel) as client:
        stream_id = client.call("/echo.v1.Echo/Bidi", "echo.demo:9090", ("grpc-timeout", "2S"))
        client.h2.send_data(stream_id, message)
        client.until(lambda: client.body == message)
        assert not (client.trailers or client.reset)
        client.until(lambda: client.trailers or client.reset)
    assert 1.9 < time.monotonic() - started < 10
    assert client.trailers.get("grpc-status") == "4" or client.reset, client.trailers


def test_a_deadline_before_the_headers_is_told(tunnel: Tunnel) -> None:
    """A call that the pod never answers: `Bidi` without a message. The client enforces nothing here, either."""
    started = time.monotonic()
    with PlainClient(tunnel) as client:
        client.call("/echo.v1.Echo/Bidi", "echo.demo:9090", ("grpc-timeout", "500m"))
        client.until(lambda: client.head or client.reset)
    assert client.head.get("grpc-status") == "4", client.head
    assert 0.4 < time.monotonic() - started < 5


def test_cancelling_leaves_the_channel_usable(clear: Echo) -> None:
    """That the pod learns of one call's end is in tests/proxy/test_grpc_fidelity.py: the demo's pods cannot tell, but
    for their connections (test_departures.py)."""
    requests: queue.Queue[String | None] = queue.Queue()
    call = clear.bidi(iter(requests.get, None), timeout=LIMIT_S)
    requests.put(String(value="x"))
    assert next(call).value == "x"
    call.cancel()
    requests.put(None)
    assert call.code() is grpc.StatusCode.CANCELLED
    long = clear.server_stream(Int64(value=100_000), timeout=LIMIT_S)
    assert next(long).value.startswith("0 ")
    long.cancel()
    assert clear.unary(String(value="y"), timeout=LIMIT_S).value == "y"


@pytest.mark.parametrize("way", ["h2c", "tls"])
def test_reflection_and_health(tunnel: Tunnel, way: str) -> None:
    with open_channel(tunnel, **WAYS[way]) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"echo.v1.Echo", "grpc.health.v1.Health"} <= set(services)
        request = health_pb2.HealthCheckRequest(service="echo.v1.Echo")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("tls", [False, True], ids=["h2c", "tls"])
@pytest.mark.parametrize(
    ("authority", "reason", "code"),
    [
        ("www.example.com", "NotAServiceName", grpc.StatusCode.INVALID_ARGUMENT),
        ("nothere.demo.svc.cluster.local", "ServiceNotFound", grpc.StatusCode.NOT_FOUND),
        ("echo.nowhere.svc.cluster.local", "NamespaceNotFound", grpc.StatusCode.NOT_FOUND),
        ("echo.demo.svc.cluster.local:81", "PortNotExposed", grpc.StatusCode.NOT_FOUND),
        ("unready.demo.svc.cluster.local", "NoReadyEndpoints", grpc.StatusCode.UNAVAILABLE),
        ("external.demo.svc.cluster.local", "NotForwardable", grpc.StatusCode.UNIMPLEMENTED),
        ("echo.demo.svc.cluster.local:9999", "ConnectionRefused", grpc.StatusCode.UNAVAILABLE),
        ("echo.demo.svc.cluster.local:9002", "UpstreamReset", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_our_own_refusals(tunnel: Tunnel, authority: str, reason: str, code: grpc.StatusCode, tls: bool) -> None:
    with open_channel(tunnel, authority, tls=tls) as channel, pytest.raises(grpc.RpcError) as failed:
        Echo(channel).unary(String(value="x"), timeout=LIMIT_S)
    assert failed.value.code() is code, failed.value.details()
    metadata = dict([*failed.value.initial_metadata(), *failed.value.trailing_metadata()])
    assert metadata["x-kube-tunnel-error"] == reason


def test_the_limited_users_refusal(limited_tunnel: Tunnel) -> None:
    with open_channel(limited_tunnel, "echo.demo:9090") as channel, pytest.raises(grpc.RpcError) as failed:
        Echo(channel).unary(String(value="x"), timeout=LIMIT_S)
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "pods/portforward" in failed.value.details()
