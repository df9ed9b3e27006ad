from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from kubetunnel.cluster import api as api_module
from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.answers import GoneError, NotKubernetesError
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import Named
from kubetunnel.cluster.resource import ENDPOINT_SLICES, SERVICES, Query
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, KubeTunnelError
from tests.cluster.conftest import WriteKubeconfig
from tests.cluster.fake_api import FakeApi, status

ALL = Query(SERVICES, Named, "shop")


@pytest.fixture
async def api(api_server: FakeApi, kubeconfig: WriteKubeconfig) -> AsyncIterator[ApiServer]:
    api = ApiServer(await load_access(kubeconfig=kubeconfig()))
    yield api
    await api.aclose()


def names(listing: api_module.Listing[Named] | None) -> list[str]:
    assert listing is not None
    return [item.metadata.name for item in listing.items]


async def test_a_long_list_comes_in_pages(api_server: FakeApi, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    for name in "abcde":
        api_server.put("services", "shop", name)
    listing = await api.list_objects(ALL)
    assert names(listing) == list("abcde")
    assert api_server.count("list services") == 3
    assert listing is not None
    assert listing.resource_version == str(api_server.version)


async def test_a_continue_token_that_is_gone_lists_anew(
    api_server: FakeApi, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    for name in "abc":
        api_server.put("services", "shop", name)

    async def gone(request: web.Request) -> web.StreamResponse | None:
        return status(410, "Expired", "too old") if "continue" in request.query else None

    api_server.script = gone
    assert names(await api.list_objects(ALL)) == list("abc")
    assert api_server.count("list services") == 3

    async def always_gone(request: web.Request) -> web.StreamResponse:
        return status(410, "Expired", "too old")

    api_server.script = always_gone
    with pytest.raises(NotKubernetesError):
        await api.list_objects(ALL)


async def test_get_and_absence(api_server: FakeApi, api: ApiServer) -> None:
    api_server.put("services", "shop", "web")
    found = await api.get_object(Query(SERVICES, Named, "shop", "web"))
    assert found is not None
    assert found.metadata.name == "web"
    assert await api.get_object(Query(SERVICES, Named, "shop", "gone")) is None
    api_server.absent = {"endpointslices"}
    assert await api.list_objects(Query(ENDPOINT_SLICES, Named, "shop")) is None


async def test_forbidden_names_verb_resource_namespace_and_user(api_server: FakeApi, api: ApiServer) -> None:
    api_server.denied = {"list endpointslices"}
    with pytest.raises(Forbidden) as refused:
        await api.list_objects(Query(ENDPOINT_SLICES, Named, "shop"))
    assert refused.value.detail == "User jane may not list endpointslices.discovery.k8s.io in namespace shop."
    assert refused.value.command is not None
    assert refused.value.command.endswith("auth can-i list endpointslices.discovery.k8s.io -n shop")

    async def empty(request: web.Request) -> web.Response:
        return web.Response(status=403)

    api_server.script = empty
    with pytest.raises(Forbidden, match="The user of context test may not list services in namespace shop"):
        await api.list_objects(ALL)


@pytest.mark.parametrize(("code", "headers"), [(429, {"Retry-After": "0"}), (503, {}), (500, {}), (429, {})])
async def test_overload_is_tried_again_a_little(
    api_server: FakeApi, api: ApiServer, code: int, headers: dict[str, str]
) -> None:
    refusals = 2

    async def overloaded(request: web.Request) -> web.StreamResponse | None:
        nonlocal refusals
        refusals -= 1
        return web.Response(status=code, headers=headers) if refusals >= 0 else None

    api_server.script = overloaded
    assert names(await api.list_objects(ALL)) == []
    refusals = 99
    async with asyncio.timeout(10):
        with pytest.raises(ClusterUnreachable, match=f"answered {code} to list services"):
            await api.list_objects(ALL)
    assert refusals == 99 - 3


async def test_a_long_retry_after_is_not_waited_for(api_server: FakeApi, api: ApiServer) -> None:
    async def overloaded(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "30"})

    api_server.script = overloaded
    with pytest.raises(ClusterUnreachable, match=r"answered 429 .* asks to wait 30 s"):
        await api.list_objects(ALL)
    assert len(api_server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b"<html>log in here</html>", b"", b"[]", b'{"metadata": {}, "items": [{"metadata": 3}]}', b"\xff\xfe", b"{}"],
)
async def test_garbage_is_no_kubernetes(api_server: FakeApi, api: ApiServer, body: bytes) -> None:
    async def garbage(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    api_server.script = garbage
    with pytest.raises(NotKubernetesError, match="answers unlike a Kubernetes API server"):
        await api.list_objects(ALL)


async def test_a_redirect_is_not_followed(api_server: FakeApi, api: ApiServer) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "https://127.0.0.1:1/login"})

    api_server.script = redirect
    with pytest.raises(ClusterUnreachable, match="answered 302"):
        await api.list_objects(ALL)


async def test_an_answer_that_is_cut_is_asked_for_again(api_server: FakeApi, api: ApiServer) -> None:
    cuts = 1

    async def cut(request: web.Request) -> web.StreamResponse | None:
        nonlocal cuts
        cuts -= 1
        if cuts < 0:
            return None
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"metadata"')
        assert request.transport is not None
        request.transport.abort()
        return response

    api_server.script = cut
    assert names(await api.list_objects(ALL)) == []
    cuts = 99
    with pytest.raises(ClusterUnreachable, match=r"broke off: its answer was not complete\. See"):
        await api.list_objects(ALL)


async def test_requests_at_a_time_are_bounded(api_server: FakeApi, api: ApiServer) -> None:
    enough = asyncio.Event()

    async def wait(request: web.Request) -> None:
        if api_server.in_flight == api_module.CONCURRENT_REQUESTS:
            enough.set()
        await enough.wait()

    api_server.script = wait
    await asyncio.gather(*(api.list_objects(ALL) for _ in range(2 * api_module.CONCURRENT_REQUESTS)))
    assert api_server.most_in_flight == api_module.CONCURRENT_REQUESTS


async def test_an_events_bytes_may_come_in_any_pieces(api_server: FakeApi, api: ApiServer) -> None:
    event = b'{"type": "ADDED", "object": {"metadata": {"name": "web", "resourceVersion": "7"}}}\n'

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(event), 7):
            await response.write((event + event)[at : at + 7])
        await response.write((event + event)[len(event) // 7 * 7 + 7 :] + b"\n\n")
        return response

    api_server.script = drip
    async with api.watch(ALL, "5") as events:
        found = [(event.type, event.object, event.resource_version) async for event in events]
    assert [(kind, version) for kind, _, version in found] == [("ADDED", "7")] * 2


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}\n', GoneError),
        (b'{"type": "ERROR", "object": {"code": 500}}\n', GoneError),
        (b"\x00\xff\n", NotKubernetesError),
        (b'{"type": "NEWS", "object": {"metadata": {"name": "web"}}}\n', NotKubernetesError),
        (b'{"type": "ADDED", "object": {"metadata": {}}}\n', NotKubernetesError),
        (b'{"type": "ADDED", "object": 7}\n', NotKubernetesError),
        (b"x" * 3000, NotKubernetesError),
    ],
)
async def test_what_breaks_a_watch(
    api_server: FakeApi, api: ApiServer, line: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "MAX_EVENT_BYTES", 2000)

    async def say(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(line)
        return response

    api_server.script = say
    with pytest.raises(error):
        async with api.watch(ALL, "5") as events:
            async for _ in events:
                pass


@pytest.mark.parametrize(
    ("code", "error"),
    [(403, Forbidden), (410, GoneError), (504, GoneError), (404, GoneError), (429, ClusterUnreachable)],
)
async def test_a_watch_that_is_refused(
    api_server: FakeApi, api: ApiServer, code: int, error: type[KubeTunnelError]
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return status(code, "Reason", "words")

    api_server.script = refuse
    with pytest.raises(error):
        async with api.watch(ALL, "5"):
            pass


async def test_an_answer_without_end_is_left(
    api_server: FakeApi, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetunnel.cluster.http_client.MAX_ANSWER_BYTES", 1 << 20)
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(64):
                await response.write(bytes(1 << 16))
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            left.set()

    api_server.script = endless
    async with asyncio.timeout(5.0):
        with pytest.raises(NotKubernetesError, match="has more than 1 MiB"):
            await api.list_objects(ALL)
        await left.wait()
