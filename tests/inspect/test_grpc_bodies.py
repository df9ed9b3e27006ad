"""gRPC bodies in mitmweb, with the names that the pods' reflection or a file of descriptors gives their fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from mitmproxy import contentviews, http
from mitmproxy.contentviews import Metadata
from mitmproxy.net.encoding import encode
from mitmproxy.test import tflow

from kubetunnel.inspect.grpc_view import GrpcView
from kubetunnel.inspect.reflected import Descriptors
from kubetunnel.sim.cluster import SimCluster
from tests.inspect import shop_proto
from tests.inspect.conftest import Web, until
from tests.inspect.test_grpc_messages import framed

ECHO = "echo.demo.svc.cluster.local"


async def stream(web: Web, port: int, *, credentials: grpc.ChannelCredentials | None = None) -> dict[str, Any]:
    """The flow of a call that is answered with three messages."""
    options = [("grpc.default_authority", f"{ECHO}:{port}"), ("grpc.enable_http_proxy", 0)]
    options += [("grpc.ssl_target_name_override", ECHO)] if credentials else []
    at = f"127.0.0.1:{web.port}"
    make = grpc.aio.secure_channel if credentials else grpc.aio.insecure_channel
    async with make(at, *([credentials] if credentials else []), options=options) as channel:
        call = channel.unary_stream(
            "/echo.v1.Echo/ServerStream",
            request_serializer=Int64Value.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        assert len([answer async for answer in call(Int64Value(value=3), timeout=20)]) == 3
    found: dict[str, Any] = (await asyncio.to_thread(web.flows))[-1]
    return found


async def named(web: Web, flow: dict[str, Any], message: str) -> str:
    """What mitmweb shows by itself, once the names are known."""

    def look() -> str:
        shown = web.content(flow, message, "auto")
        return str(shown["text"]) if shown["view_name"] == "gRPC Kubernetes" else ""

    return await until(look)


async def test_names_come_from_the_pod(sim: SimCluster, web: Web) -> None:
    flow = await stream(web, 9090)
    lines = (await named(web, flow, "response")).splitlines()
    pod = flow["comment"].partition(":")[0]
    assert lines[0] == f"# message 1: google.protobuf.StringValue, {len(pod) + 4} bytes"
    assert [line for line in lines if not line.startswith("#")] == [
        f'"0 {pod}"', "---", f'"1 {pod}"', "---", f'"2 {pod}"'
    ]  # fmt: skip
    assert "google.protobuf.Int64Value" in await named(web, flow, "request")
    before = sim.count_requests("create", "portforward")
    for _ in range(3):
        await stream(web, 9090)
    assert web.log.count("told its descriptors") == 1, "asked once"
    assert sim.count_requests("create", "portforward") - before <= 3


async def test_the_forward_was_set_up_for_the_first_call_of_a_channel(web: Web) -> None:
    options = [("grpc.default_authority", f"{ECHO}:9090"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{web.port}", options=options) as channel:
        unary = channel.unary_unary("/echo.v1.Echo/Unary", request_serializer=StringValue.SerializeToString)
        for _ in range(2):
            await unary(StringValue(value="hello"), timeout=20)
    first, second = await asyncio.to_thread(web.flows)
    assert first["comment"].endswith(" ms")
    assert second["comment"].endswith(" · reused")


async def test_names_come_through_tls(web: Web) -> None:
    authority = (web.confdir / "mitmproxy-ca-cert.pem").read_bytes()
    flow = await stream(web, 9443, credentials=grpc.ssl_channel_credentials(authority))
    assert "google.protobuf.StringValue" in await named(web, flow, "response")


async def test_pods_are_not_asked_where_it_is_off(
    sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path
) -> None:
    off = ["--set", "kube_grpc_reflection=false"]
    web = await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"), options=off)
    flow = await stream(web, 9090)
    shown = await asyncio.to_thread(web.content, flow, "response", "auto")
    assert shown["view_name"] == "gRPC", "mitmproxy's own"
    asked_for = await asyncio.to_thread(web.content, flow, "response", "gRPC Kubernetes")
    assert "grpc.reflection is off" in asked_for["text"]


async def test_names_come_from_a_file_and_a_broken_one_is_told(
    sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path
) -> None:
    (echo,) = [file for file in _echo_files() if file.name == "echo/v1/echo.proto"]
    good, bad = tmp_path / "echo.binpb", tmp_path / "bad.binpb"
    good.write_bytes(descriptor_pb2.FileDescriptorSet(file=[echo]).SerializeToString())
    bad.write_bytes(b"\xff\xff")
    files = [word for file in (bad, good) for word in ("--set", f"kube_grpc_descriptors={file}")]
    options = ["--set", "kube_grpc_reflection=false", *files]
    web = await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    await asyncio.to_thread(web.wait_for, f"grpc.descriptors: {bad} is no FileDescriptorSet")
    assert "google.protobuf.StringValue" in await named(web, await stream(web, 9090), "response")


def _echo_files() -> list[Any]:
    from kubetunnel.sim.grpc_echo import _descriptors

    file = descriptor_pb2.FileDescriptorProto()
    _descriptors().FindFileByName("echo/v1/echo.proto").CopyToProto(file)
    return [file]


# the view by itself


def view(tmp_path: Path) -> GrpcView:
    path = tmp_path / "shop.binpb"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=shop_proto.files()).SerializeToString())
    found = Descriptors(None, None, lambda: True)  # type: ignore[arg-type]  # no flow goes through it
    assert found.read([str(path)]) == []
    return GrpcView(found)


def call(body: bytes, path: str = "/shop.Orders/Place", **headers: str) -> Metadata:
    flow: http.HTTPFlow = tflow.tflow(resp=True)
    flow.request.path = path
    flow.request.headers["content-type"] = "application/grpc"
    assert flow.response
    for name, value in headers.items():
        flow.response.headers[name.replace("_", "-")] = value
    flow.response.content = body
    return Metadata(flow=flow, http_message=flow.response)


def test_fields_have_their_names(tmp_path: Path) -> None:
    body = framed(shop_proto.an_order())
    metadata = call(body)
    shown = view(tmp_path).prettify(body, metadata)
    heading, _, order = shown.partition("\n")
    assert heading.startswith("# message 1: shop.Order, ")
    assert json.loads(order) == {
        "order_id": "o-1",
        "tags": ["a", "b"],
        "total": {"currency": "EUR", "minor_units": "1250"},
        "placed_at": "2023-11-14T22:13:20Z",
    }
    mitmproxys_own = contentviews.registry["grpc"].render_priority(body, metadata)
    assert view(tmp_path).render_priority(body, metadata) > mitmproxys_own


def test_compressed_ones_and_cut_ones(tmp_path: Path) -> None:
    whole = framed(bytes(encode(shop_proto.an_order(), "gzip")), 1)  # type: ignore[arg-type]
    body = whole + whole[:-3]
    shown = view(tmp_path).prettify(body, call(body, grpc_encoding="gzip"))
    assert ", compressed\n" in shown
    assert shown.endswith("# message 2 is cut: 3 bytes are missing")


def test_what_the_descriptors_do_not_know(tmp_path: Path) -> None:
    newer = shop_proto.an_order() + b"\x98\x06\x01"  # field 99, a varint
    shown = view(tmp_path).prettify(framed(newer), call(framed(newer)))
    assert shown.endswith("# fields without a name: 99")
    other = framed(b"\xff\xff\xff")
    assert "# not a shop.Order: " in view(tmp_path).prettify(other, call(other))


def test_it_steps_back_where_it_knows_nothing(tmp_path: Path) -> None:
    body = framed(b"")
    unknown = call(body, "/shop.Baskets/Fill")
    assert view(tmp_path).render_priority(body, unknown) < 0
    assert "shop.Baskets are not known" in view(tmp_path).prettify(body, unknown)
    plain = Metadata(flow=tflow.tflow(resp=True))
    assert view(tmp_path).render_priority(b"{}", plain) < 0
    assert view(tmp_path).prettify(b"{}", plain) == "# This is no gRPC call."
    assert view(tmp_path).render_priority(b"", call(b"")) < 0
