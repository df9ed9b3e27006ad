from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import ServiceObject
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.resource import SERVICES, Query
from kubetunnel.cluster.rights import Rights
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.errors import (
    ClusterUnreachable,
    Forbidden,
    NamespaceNotFound,
    ServiceNotFound,
    Timeout,
    Unauthenticated,
)
from tests.cluster.conftest import Impatient, WriteKubeconfig, until
from tests.cluster.fake_api import FakeApi, add_endpoint, add_service, status

pytestmark = pytest.mark.usefixtures("either_task_factory")


@pytest.fixture
async def discovery(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> AsyncIterator[Discovery]:
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access)
    yield discovery
    await discovery.aclose()
    await access.aclose()


def addresses(state: ServiceState) -> list[str]:
    return [endpoint.address for part in state.slices for endpoint in part.endpoints]


async def watched(api: FakeApi, count: int = 2) -> None:
    await until(lambda: len(api.watches) == count)


async def test_the_first_lookup_is_one_round_trip_deep_and_the_next_are_memory(
    api_server: FakeApi, discovery: Discovery
) -> None:
    add_service(api_server)
    both = asyncio.Event()

    async def answer_when_both_are_asked(request: web.Request) -> None:
        if api_server.in_flight == 2:
            both.set()
        await both.wait()

    api_server.script = answer_when_both_are_asked
    state = await discovery.service("shop", "web")
    api_server.script = None
    assert addresses(state) == ["10.0.0.1"]
    assert state.service.ports[0].port == 80
    assert sorted(api_server.requests[:2]) == ["list endpointslices shop", "list services shop"]
    await watched(api_server)
    for _ in range(3):
        assert await discovery.service("shop", "web") == state
    assert len(api_server.requests) == 4


async def test_concurrent_first_lookups_share_one_opening(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    states = await asyncio.gather(*(discovery.service("shop", "web") for _ in range(20)))
    assert all(state == states[0] for state in states)
    assert api_server.count("list") == 2


async def test_changes_arrive_by_watch_and_are_told(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    told: list[tuple[str, str, ServiceState | None]] = []

    def broken(*change: object) -> None:
        raise ValueError("a subscriber's mistake")

    discovery.subscribe(broken)
    end = discovery.subscribe(lambda *change: told.append(change))
    first = await discovery.service("shop", "web")
    assert told == [("shop", "web", first)], "who keeps count of the pods has to know the first ones"
    await watched(api_server)
    add_endpoint(api_server, address="10.0.0.2")
    await until(lambda: len(told) == 2)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.2"]
    api_server.delete("services", "shop", "web")
    await until(lambda: len(told) == 3)
    assert told[-1] == ("shop", "web", None)
    with pytest.raises(ServiceNotFound):
        await discovery.service("shop", "web")
    end()
    add_service(api_server, address="10.0.0.3")
    await until(lambda: discovery._followed["shop", "web"].last is not None)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.3"]
    assert len(told) == 3


async def test_what_does_not_concern_routing_is_no_change(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    told: list[object] = []
    discovery.subscribe(lambda *change: told.append(change))
    await discovery.service("shop", "web")
    told.clear()
    await watched(api_server)
    add_endpoint(api_server, address="10.0.0.1")  # a new resourceVersion only
    add_endpoint(api_server, address="10.0.0.2")
    await until(lambda: bool(told))
    assert len(told) == 1


def stop_clock(discovery: Discovery, patch: pytest.MonkeyPatch) -> None:
    """What it remembers for a moment it remembers until the patch is undone."""
    now_s = discovery._clock()
    patch.setattr(discovery, "_clock", lambda: now_s)


async def test_a_missing_service_suggests_and_works_once_it_is_there(
    api_server: FakeApi, discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_service(api_server, "frontend")
    stop_clock(discovery, monkeypatch)
    with pytest.raises(ServiceNotFound, match=r"Did you mean frontend\?") as refused:
        await discovery.service("shop", "frontent")
    assert refused.value.command is not None
    assert refused.value.command.endswith("-n shop get svc")
    asked = len(api_server.requests)
    with pytest.raises(ServiceNotFound):
        await discovery.service("shop", "frontent")
    assert len(api_server.requests) == asked, "a burst costs one lookup"
    monkeypatch.undo()
    assert not api_server.watches, "nothing is watched for a name that is not there"
    add_service(api_server, "frontent")
    async with asyncio.timeout(10):
        while True:
            try:
                state = await discovery.service("shop", "frontent")
                break
            except ServiceNotFound:
                await asyncio.sleep(0.05)
    assert state.service.name == "frontent"


async def test_a_missing_namespace_is_told_from_a_missing_service(api_server: FakeApi, discovery: Discovery) -> None:
    with pytest.raises(NamespaceNotFound, match="no namespace nowhere in context test"):
        await discovery.service("nowhere", "web")
    api_server.denied = {"get namespaces"}
    with pytest.raises(ServiceNotFound, match="could not be checked"):
        await discovery.service("elsewhere", "web")


@pytest.mark.parametrize(
    ("denied", "absent", "source"),
    [
        (set(), {"endpointslices"}, "endpoints"),
        ({"list endpointslices"}, set(), "endpoints"),
        ({"list endpointslices", "list endpoints"}, set(), "endpoints"),
        ({"list endpointslices", "list endpoints", "get endpoints"}, set(), "pods"),
    ],
)
async def test_endpoints_fall_back_by_missing_right(
    api_server: FakeApi, discovery: Discovery, denied: set[str], absent: set[str], source: str
) -> None:
    add_service(api_server)
    add_service(api_server, "second", address="10.0.0.9")
    api_server.denied, api_server.absent = denied, absent
    state = await discovery.service("shop", "web")
    assert addresses(state) == ["10.0.0.1"]
    (endpoint,) = state.slices[0].endpoints
    assert (endpoint.pod, endpoint.ready) == ("web-0", True)
    assert state.slices[0].ports[0].port == 8080
    api_server.requests.clear()
    assert addresses(await discovery.service("shop", "second")) == ["10.0.0.9"]
    assert api_server.count("list endpointslices") == 0, "what was refused is not asked first again"
    assert any(request.split()[1] == source for request in api_server.requests)


async def test_forbidden_names_the_first_missing_right_when_all_is_refused(
    api_server: FakeApi, discovery: Discovery
) -> None:
    add_service(api_server)
    api_server.denied = {"list endpointslices", "list endpoints", "get endpoints", "list pods"}
    with pytest.raises(Forbidden, match=r"jane may not list endpointslices.discovery.k8s.io in namespace shop") as no:
        await discovery.service("shop", "web")
    assert no.value.command is not None
    assert no.value.command.endswith("auth can-i list endpointslices.discovery.k8s.io -n shop")
    discovery._remembered.clear()
    api_server.denied = {"list endpointslices", "list endpoints", "get endpoints"}
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"], "a granted right works at once"


async def test_a_service_that_may_not_be_read_is_forbidden(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    api_server.denied = {"list services", "get services"}
    with pytest.raises(Forbidden, match="jane may not list services in namespace shop"):
        await discovery.service("shop", "web")


@pytest.mark.parametrize(
    "denied",
    [
        {"watch services", "watch endpointslices"},
        {"list services", "list endpointslices", "list endpoints", "watch services"},
    ],
)
async def test_without_the_right_to_watch_it_is_fetched_per_use(
    api_server: FakeApi, discovery: Discovery, denied: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetunnel.cluster.reflector.FRESH_S", 0.0)
    add_service(api_server)
    api_server.denied = denied
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    followed = discovery._followed["shop", "web"]
    assert followed._task is not None
    await asyncio.wait({followed._task})
    assert not api_server.watches
    add_endpoint(api_server, address="10.0.0.2")
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.2"]
    await api_server.stop()
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.2"], "the last known state"
    await api_server.start()
    api_server.delete("services", "shop", "web")
    with pytest.raises(ServiceNotFound):
        await discovery.service("shop", "web")


async def test_per_use_fetches_are_bounded(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    api_server.denied = {"watch services", "watch endpointslices"}
    await discovery.service("shop", "web")
    followed = discovery._followed["shop", "web"]
    assert followed._task is not None
    await asyncio.wait({followed._task})
    api_server.requests.clear()
    await asyncio.gather(*(discovery.service("shop", "web") for _ in range(10)))
    assert api_server.count("list") == 0


async def test_a_fallback_is_left_when_its_time_is_over(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    api_server.denied = {"list endpointslices"}
    await discovery.service("shop", "web")
    api_server.denied = set()
    assert not discovery._followed["shop", "web"].outlived_fallback
    discovery._rights.memory_s = 0.0
    discovery._rights.forget()
    api_server.requests.clear()
    await discovery.service("shop", "web")
    assert api_server.count("list endpointslices") == 1
    assert not discovery._followed["shop", "web"].outlived_fallback


async def test_the_last_known_state_outlives_the_api_server(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    await api_server.stop()
    await until(lambda: not discovery._followed["shop", "web"]._services.connected)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    with pytest.raises(ClusterUnreachable, match="context test cannot be reached: Connection refused"):
        await discovery.service("shop", "web", fresh=True)
    with pytest.raises(ClusterUnreachable):
        await discovery.service("shop", "unknown")
    api_server.put("endpointslices", "shop", "web-abc", labels={"kubernetes.io/service-name": "web"}, endpoints=None)
    await api_server.start()
    await until(lambda: len(api_server.watches) == 2)
    # the fake forgets what happened meanwhile, as a real one answers 410
    for watch in api_server.watches:
        watch.send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await until(lambda: addresses(discovery._followed["shop", "web"].last) == [])


@pytest.mark.parametrize("how", ["http", "event", "garbage", "cut", "wrong-shape"])
async def test_a_broken_watch_is_resumed_or_listed_again(api_server: FakeApi, discovery: Discovery, how: str) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    lists = api_server.count("list")
    first = True

    async def gone(request: web.Request) -> web.StreamResponse | None:
        nonlocal first
        if request.query.get("watch") and "endpointslices" in request.path and first and how == "http":
            first = False
            return status(410, "Expired", "too old resource version")
        return None

    api_server.script = gone
    (watch,) = [w for w in api_server.watches if w.resource == "endpointslices"]
    match how:
        case "http":
            watch.lines.put_nowait(None)
        case "event":
            watch.send("ERROR", {"kind": "Status", "code": 410})
        case "garbage":
            watch.lines.put_nowait(b'{"type": "ADDED", "object": {"metad\n')
        case "wrong-shape":
            watch.lines.put_nowait(b'{"type": "ADDED", "object": {"metadata": {"name": "x"}, "endpoints": 7}}\n')
        case "cut":
            watch.cut()
    await until(lambda: len([w for w in api_server.watches if w is not watch]) == 2)
    assert api_server.count("list") == lists + (0 if how == "cut" else 1)
    add_endpoint(api_server, address="10.0.0.7")
    await until(lambda: addresses(discovery._followed["shop", "web"].last) == ["10.0.0.7"])


async def test_a_bookmark_moves_the_version_that_a_watch_resumes_from(
    api_server: FakeApi, discovery: Discovery
) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    (watch,) = [w for w in api_server.watches if w.resource == "services"]
    watch.send("BOOKMARK", {"metadata": {"resourceVersion": "4711"}})
    watch.lines.put_nowait(None)
    await until(lambda: any(w.resource == "services" and w is not watch for w in api_server.watches))
    (watch,) = [w for w in api_server.watches if w.resource == "services"]
    assert watch.request.query["resourceVersion"] == "4711"
    assert watch.request.query["allowWatchBookmarks"] == "true"


async def test_a_silent_watch_counts_as_dead(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access, api=ApiServer(access, watch_timeout_s=0.1, watch_grace_s=0.1))
    add_service(api_server)
    await discovery.service("shop", "web")
    await until(lambda: api_server.count("watch") >= 4)
    await discovery.aclose()


async def test_idle_services_are_let_go(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access, idle_timeout_s=0.5)
    add_service(api_server)
    add_service(api_server, "busy")
    await discovery.service("shop", "web")
    await discovery.service("shop", "busy")
    await until(lambda: api_server.count("watch") == 4)

    def web_is_gone() -> bool:
        discovery._followed["shop", "busy"].used_at = asyncio.get_running_loop().time()
        return ("shop", "web") not in discovery._followed

    await until(web_is_gone)
    await watched(api_server, 2)
    await until(lambda: not discovery._followed)
    await watched(api_server, 0)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    await discovery.aclose()


async def test_a_right_that_is_taken_away_leads_to_the_next_source(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    await discovery.service("shop", "web")
    await watched(api_server)
    api_server.denied = {"list endpointslices", "watch endpointslices"}
    (watch,) = [w for w in api_server.watches if w.resource == "endpointslices"]
    watch.send("ERROR", {"kind": "Status", "code": 410})
    await until(lambda: discovery._followed["shop", "web"].ended)
    add_endpoint(api_server, address="10.0.0.5")
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.5"]
    assert api_server.count("list endpoints shop") == 1


async def test_pods_of_another_selector_are_looked_up_anew(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    api_server.denied = {"list endpointslices", "list endpoints", "get endpoints"}
    await discovery.service("shop", "web")
    await watched(api_server)
    add_service(api_server, "other", address="10.0.0.8")
    api_server.put("services", "shop", "web", spec={"selector": {"app": "other"}, "ports": [{"port": 80}]})
    await until(lambda: discovery._followed["shop", "web"].ended)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.8"]


async def test_expired_credentials_are_refused_and_then_renewed(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access)
    api_server.tokens = {"secret-2"}
    with pytest.raises(Unauthenticated, match="refused the credentials of user 'me'") as no:
        await discovery.service("shop", "web")
    assert "secret" not in str(no.value)
    kubeconfig(user={"token": "secret-2"})
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    await discovery.aclose()


async def test_a_pod_is_found_by_its_address(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server, address="10.0.0.6")
    api_server.put("pods", "shop", "old", spec={}, status={"phase": "Succeeded", "podIP": "10.0.0.6"})
    assert await discovery.pod("shop", "10.0.0.6") == Endpoint("10.0.0.6", pod="web-0")
    await discovery.pod("shop", "10.0.0.6")
    assert api_server.count("list pods") == 1
    with pytest.raises(ServiceNotFound, match=r"No Pod of namespace shop has the address 10\.0\.0\.77"):
        await discovery.pod("shop", "10.0.0.77")
    api_server.denied = {"list pods"}
    with pytest.raises(Forbidden, match="jane may not list pods in namespace shop"):
        await discovery.pod("shop", "10.0.0.78")


async def test_an_external_name_needs_no_endpoints(api_server: FakeApi, discovery: Discovery) -> None:
    api_server.denied = {"list endpointslices", "list endpoints", "get endpoints", "list pods"}
    api_server.put("services", "shop", "out", spec={"type": "ExternalName", "externalName": "example.invalid"})
    state = await discovery.service("shop", "out")
    assert (state.service.type, state.service.external_name, state.slices) == ("ExternalName", "example.invalid", ())


@pytest.mark.parametrize("stage", ["connect", "head", "body", "fall-back", "not-found"])
async def test_a_cancelled_first_lookup_leaves_the_next_working(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig, stage: str
) -> None:
    """The last caller gone, the shared lookup goes on by itself; the next caller joins it or starts another."""
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access)
    add_service(api_server)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse | None:
        _, resource, *_ = api_server._parse(request)
        if stage == "fall-back" and resource == "endpointslices":
            return status(403, "Forbidden", "no")
        if (
            stage == "not-found"
            and resource == "services"
            and request.query.get("fieldSelector")
            and not go_on.is_set()
        ):
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        holds = {"head": "services", "fall-back": "endpoints", "not-found": "namespaces", "body": "services"}
        if resource != holds.get(stage) or go_on.is_set():
            return None
        if stage == "body":
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"metadata": {"resourceVersion": "9"}, "items": [')
            reached.set()
            await go_on.wait()
            body = api_server.objects["services", "shop"]["web"]
            await response.write(web.json_response(body).text.encode() + b"]}")
            return response
        reached.set()
        await go_on.wait()
        return None

    api_server.script = hold
    lookup = asyncio.create_task(discovery.service("shop", "web"))
    if stage != "connect":
        await reached.wait()
    lookup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lookup
    go_on.set()
    async with asyncio.timeout(3.0):
        while True:
            try:
                assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
                break
            except ServiceNotFound:
                assert stage == "not-found"
                await asyncio.sleep(0.05)
    await discovery.aclose()


async def test_one_cancelled_waiter_does_not_take_the_others_along(api_server: FakeApi, discovery: Discovery) -> None:
    add_service(api_server)
    lookups = [asyncio.create_task(discovery.service("shop", "web")) for _ in range(3)]
    await asyncio.sleep(0)
    lookups[0].cancel()
    outcomes = await asyncio.gather(*lookups, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert all(isinstance(outcome, ServiceState) for outcome in outcomes[1:])


@pytest.mark.parametrize("stage", ["opening", "watching", "retrying"])
async def test_nothing_is_left_after_aclose(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig, stage: str
) -> None:
    before = asyncio.all_tasks()
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access)
    add_service(api_server)
    if stage == "opening":
        stalled = asyncio.Event()

        async def stall(request: web.Request) -> None:
            stalled.set()
            await asyncio.Event().wait()

        api_server.script = stall
        lookup = asyncio.create_task(discovery.service("shop", "web"))
        await stalled.wait()
        await discovery.aclose()
        with pytest.raises(ClusterUnreachable, match="closing"):
            await lookup
    else:
        await discovery.service("shop", "web")
        await watched(api_server)
        if stage == "retrying":
            await api_server.stop()
            await until(lambda: not discovery._followed["shop", "web"]._services.connected)
        await discovery.aclose()
    await access.aclose()
    with pytest.raises(ClusterUnreachable, match="closing"):
        await discovery.service("shop", "web")
    await api_server.stop()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_stalled_api_server_is_a_timeout(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    api = ApiServer(access, answer_timeout_s=0.2)
    discovery = Discovery(access, patience_s=5.0, api=api)
    access.reach = Impatient()

    async def stall(request: web.Request) -> None:
        await asyncio.Event().wait()

    api_server.script = stall
    with pytest.raises(Timeout, match=r"said nothing for 0\.2 s"):
        await discovery.service("shop", "web")
    api_server.script = None
    api._http._answer_timeout_s = 5.0
    add_service(api_server)
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    await discovery.aclose()


async def test_an_api_server_that_became_slow_is_waited_for_by_the_next_request(
    api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    api = ApiServer(access, answer_timeout_s=0.1)
    access.reach = Impatient()

    async def think(request: web.Request) -> None:
        await asyncio.sleep(0.5)

    add_service(api_server)
    query = Query(SERVICES, ServiceObject, "shop", "web")
    api_server.script = think
    with pytest.raises(Timeout, match=r"said nothing for 0\.2 s"):
        await api.get_object(query)
    assert await api.get_object(query) is not None
    await api.aclose()
    await access.aclose()


async def test_refused_credentials_let_a_watch_rest_until_it_is_used(
    either_task_factory: None,
    api_server: FakeApi,
    kubeconfig: WriteKubeconfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kubetunnel.cluster.reflector.RECONNECT", Backoff(base_s=0.01, cap_s=0.01))
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access)
    await discovery.service("shop", "web")
    await watched(api_server)
    api_server.tokens = set()
    for watch in list(api_server.watches):
        watch.cut()
    await until(lambda: caplog.text.count("rests until it is used") == 2)
    asked = len(api_server.requests)
    await asyncio.sleep(0.3)
    assert len(api_server.requests) == asked, "nobody asked for anything"
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    await until(lambda: len(api_server.requests) >= asked + 2)
    await asyncio.sleep(0.3)
    assert len(api_server.requests) <= asked + 4, "one attempt each"
    kubeconfig(user={"token": "secret-2"})
    api_server.tokens = {"secret-2"}
    await discovery.service("shop", "web")
    await watched(api_server)
    await discovery.aclose()


async def test_a_slow_api_server_refuses_in_time_and_the_next_request_profits(
    api_server: FakeApi, discovery: Discovery
) -> None:
    add_service(api_server)
    answering = asyncio.Event()

    async def slow(request: web.Request) -> None:
        await answering.wait()

    api_server.script = slow
    discovery._access.reach.succeeded(0.01)  # a server nearby
    discovery._access.reach.answered(0.01)
    with pytest.raises(Timeout, match=r"has not answered after 1\.8 s; it is still being asked"):
        await discovery.service("shop", "web")
    answering.set()
    await until(lambda: ("shop", "web") in discovery._followed)
    api_server.script = None
    before = api_server.count("list")
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    assert api_server.count("list") == before


async def test_a_stuck_lookup_is_overtaken_by_the_next(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access, patience_s=0.2)

    async def stuck(request: web.Request) -> None:
        await asyncio.Event().wait()

    api_server.script = stuck
    with pytest.raises(Timeout):
        await discovery.service("shop", "web")
    api_server.script = None
    assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    await discovery.aclose()


async def test_a_refusal_that_came_too_late_is_told_to_the_next_and_only_to_him(
    either_task_factory: None, api_server: FakeApi, kubeconfig: WriteKubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig())
    discovery = Discovery(access, patience_s=0.2)
    stop_clock(discovery, monkeypatch)
    answering = asyncio.Event()

    async def slow(request: web.Request) -> None:
        await answering.wait()

    api_server.script = slow
    api_server.denied = {"list services", "get services"}
    with pytest.raises(Timeout):
        await discovery.service("shop", "web")
    answering.set()
    await until(lambda: not discovery._openings._tasks)
    asked = len(api_server.requests)
    with pytest.raises(Forbidden):
        await discovery.service("shop", "web")
    assert len(api_server.requests) == asked
    monkeypatch.undo()
    api_server.denied = set()
    async with asyncio.timeout(10):  # a refusal is remembered for a moment
        while not discovery._followed:
            try:
                await discovery.service("shop", "web")
            except Forbidden:
                await asyncio.sleep(0.05)
    await discovery.aclose()


async def test_a_fetch_per_use_that_hangs_leaves_the_last_known_state(
    api_server: FakeApi, discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetunnel.cluster.reflector.FRESH_S", 0.0)
    add_service(api_server)
    api_server.denied = {"watch services", "watch endpointslices"}
    await discovery.service("shop", "web")
    followed = discovery._followed["shop", "web"]
    assert followed._task is not None
    await asyncio.wait({followed._task})
    stuck = asyncio.Event()

    async def hang(request: web.Request) -> None:
        stuck.set()
        await asyncio.Event().wait()

    api_server.script = hang
    discovery._access.reach = Impatient()
    async with asyncio.timeout(10):
        assert addresses(await discovery.service("shop", "web")) == ["10.0.0.1"]
    assert stuck.is_set()


def test_what_was_refused_is_remembered_within_bounds() -> None:
    rights = Rights(lambda: 0.0)
    for number in range(5000):
        rights.refuse(f"ns-{number}", SERVICES, "list")
    assert len(rights._until) == 1024
    assert not rights.allows("ns-4999", SERVICES, "list")
    assert rights.allows("ns-0", SERVICES, "list")
