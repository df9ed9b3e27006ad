"""A request that is sent again, from mitmweb or from a recording, reaches a pod."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from mitmproxy import http
from mitmproxy.io import FlowReader

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.inspect.conftest import Web, until
from tests.tunnel import curl, run_mitmdump

ECHO = "echo.demo.svc.cluster.local"


async def replayed(web: Web, index: int = -1) -> dict[str, Any]:
    """The flow after it was sent again."""
    flow = (await asyncio.to_thread(web.flows))[index]
    await asyncio.to_thread(web.call, "POST", f"/flows/{flow['id']}/replay")

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = next(each for each in web.flows() if each["id"] == flow["id"])
        over = found.get("error") or (found.get("response") or {}).get("timestamp_end")
        return found if found["is_replay"] and over else None

    found = await until(ended)
    assert found is not None
    return found


def body(web: Web, flow: dict[str, Any]) -> str:
    text: str = web.content(flow, "response", "raw")["text"]
    return text


async def test_a_plain_request(web: Web) -> None:
    await asyncio.to_thread(web.get, "pair.demo")
    flow = await replayed(web)
    assert flow["response"]["status_code"] == 200
    assert await asyncio.to_thread(body, web, flow) == "pair\n"
    assert flow["comment"].startswith("pair:8080 · ")


async def test_a_chunked_body_and_one_that_was_changed(web: Web) -> None:
    await asyncio.to_thread(
        web.get, ECHO, "/echo", "-X", "POST", "-H", "Transfer-Encoding: chunked", "--data-binary", "first"
    )
    flow = await replayed(web)
    assert '"body":"first"' in await asyncio.to_thread(body, web, flow)
    await asyncio.to_thread(web.call, "PUT", f"/flows/{flow['id']}", {"request": {"content": "second"}})
    flow = await replayed(web)
    assert '"body":"second"' in await asyncio.to_thread(body, web, flow)


async def test_a_body_that_was_streamed_is_whole_for_other_addons(web: Web) -> None:
    streamed = ("-X", "POST", "-H", "Transfer-Encoding: chunked", "--data-binary", "first")
    answer = await asyncio.to_thread(web.get, ECHO, "/echo", *streamed)
    assert answer.json["body"] == "first"
    await asyncio.to_thread(web.call, "PUT", "/options", {"modify_body": ["/~q/first/changed"]})
    flow = await replayed(web)
    assert '"body":"changed"' in await asyncio.to_thread(body, web, flow)


async def test_https_and_http2(web: Web) -> None:
    await asyncio.to_thread(web.get, ECHO)  # so that the certificate authority is there
    to = ("--connect-to", f"::127.0.0.1:{web.port}")
    first = await asyncio.to_thread(curl, "-k", "--http2", *to, f"https://{ECHO}/hostname")
    assert (first.status, first.http_version) == (200, "2")
    flow = await replayed(web)
    assert (flow["response"]["status_code"], flow["request"]["scheme"]) == (200, "https")
    assert ":8443 · " in flow["comment"]


async def test_a_grpc_call(web: Web) -> None:
    options = [("grpc.default_authority", f"{ECHO}:9090"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{web.port}", options=options) as channel:
        unary = channel.unary_unary("/echo.v1.Echo/Unary", request_serializer=StringValue.SerializeToString)
        await unary(StringValue(value="again"), timeout=20)
    flow = await replayed(web)
    assert ["grpc-status", "0"] in flow["response"]["trailers"]
    assert "again" in await asyncio.to_thread(body, web, flow)


async def test_a_refusal_and_the_same_request_when_the_service_is_there(sim: SimCluster, web: Web) -> None:
    answer = await asyncio.to_thread(web.get, "later.demo")
    assert answer.reason == "ServiceNotFound"
    flow = await replayed(web)
    assert (flow["response"]["status_code"], flow["comment"].endswith("ServiceNotFound")) == (404, True)
    await sim.add_service(ServiceSpec("demo", "later", (Port(80, "", "web"),), {"app": "pair"}))

    await until(lambda: web.get("later.demo").status == 200)  # a refusal is remembered for half a second
    assert (await replayed(web, 0))["response"]["status_code"] == 200


async def test_a_recording_in_mitmdump(
    sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path
) -> None:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    first, second = tmp_path / "first.mitm", tmp_path / "second.mitm"
    web = await start_web(kubeconfig=kubeconfig, options=["-w", str(first)])
    for path in ("/hostname", "/status?code=418"):
        await asyncio.to_thread(web.get, "pair.demo", path)
    await asyncio.to_thread(web.close)
    status, said = await asyncio.to_thread(
        run_mitmdump, tmp_path, "-p", "0", "--set", "kube_dns_enabled=false", "--set", f"kube_kubeconfig={kubeconfig}",
        "--client-replay", first, "-w", second,
    )  # fmt: skip
    assert status == 0, said
    assert "Traceback" not in said
    with second.open("rb") as file:
        flows = [flow for flow in FlowReader(file).stream() if isinstance(flow, http.HTTPFlow)]
    assert [flow.response and flow.response.status_code for flow in flows] == [200, 418], said
    assert all(re.match(r"pair:8080 · ", flow.comment) for flow in flows)
