"""Lists and watches over TLS: pages, resourceVersions, bookmarks, 410 Gone, selectors, Tables, errors."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.status import CONTINUE_TOO_OLD, LIST_TOO_OLD
from tests.sim.api import Api

SERVICES = "/api/v1/namespaces/demo/services"
PODS = "/api/v1/namespaces/demo/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
ALL_SERVICES = ["echo", "echo-sts", "external", "noselector", "pair", "unready", "zero"]


def service(name: str, **labels: str) -> ServiceSpec:
    return ServiceSpec("demo", name, (Port(80),), labels=labels)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_pages_make_up_the_list(api: Api, limit: int) -> None:
    names, token, revisions = [], "", set()
    while True:
        _, page = await api.get(SERVICES, limit=str(limit), **({"continue": token} if token else {}))
        assert len(page["items"]) <= limit
        names += [item["metadata"]["name"] for item in page["items"]]
        revisions.add(page["metadata"]["resourceVersion"])
        token = page["metadata"].get("continue", "")
        assert page["metadata"].get("remainingItemCount", 0) == 7 - len(names)
        if not token:
            break
    assert names == ALL_SERVICES
    assert len(revisions) == 1


async def test_pages_across_namespaces(api: Api) -> None:
    _, first = await api.get("/api/v1/services", limit="8")
    _, rest = await api.get("/api/v1/services", **{"continue": first["metadata"]["continue"]})
    found = [(i["metadata"]["namespace"], i["metadata"]["name"]) for i in first["items"] + rest["items"]]
    assert found == [("default", "kubernetes"), *(("demo", name) for name in ALL_SERVICES), ("other", "echo")]


async def test_pages_are_of_one_moment(cluster: SimCluster, api: Api) -> None:
    _, first = await api.get(SERVICES, limit="2")
    await cluster.remove_service("demo", "zero")
    await cluster.add_service(service("nowhere"))
    _, rest = await api.get(SERVICES, **{"continue": first["metadata"]["continue"]})
    assert [item["metadata"]["name"] for item in rest["items"]] == ALL_SERVICES[2:]
    assert await api.names(SERVICES) == ["echo", "echo-sts", "external", "noselector", "nowhere", "pair", "unready"]


async def test_a_page_of_compacted_history_is_gone(cluster: SimCluster, api: Api) -> None:
    _, first = await api.get(SERVICES, limit="2")
    await cluster.add_service(service("aaa"))
    await cluster.add_service(service("nowhere"))
    cluster.compact()
    status, gone = await api.get(SERVICES, **{"continue": first["metadata"]["continue"]})
    assert (status, gone["reason"], gone["message"]) == (410, "Expired", CONTINUE_TOO_OLD)
    inconsistent = await api.names(SERVICES, **{"continue": gone["metadata"]["continue"]})
    assert inconsistent == ["external", "noselector", "nowhere", "pair", "unready", "zero"]


async def test_list_at_a_resource_version(cluster: SimCluster, api: Api) -> None:
    _, before = await api.get(SERVICES)
    revision = before["metadata"]["resourceVersion"]
    await cluster.remove_service("demo", "zero")
    exact = await api.names(SERVICES, resourceVersion=revision, resourceVersionMatch="Exact")
    assert exact == ALL_SERVICES
    assert await api.names(SERVICES, resourceVersion=revision) == ALL_SERVICES[:-1]
    assert await api.names(SERVICES, resourceVersion="0") == ALL_SERVICES[:-1]
    cluster.compact()
    status, gone = await api.get(SERVICES, resourceVersion=revision, resourceVersionMatch="Exact")
    assert (status, gone["reason"], gone["message"]) == (410, "Expired", LIST_TOO_OLD)


@pytest.mark.parametrize(
    ("query", "code", "reason", "text"),
    [
        ({"resourceVersion": "abc"}, 500, None, 'strconv.ParseUint: parsing "abc": invalid syntax'),
        ({"resourceVersion": "99999999"}, 504, "Timeout", "Too large resource version: 99999999, current: "),
        ({"limit": "x"}, 400, "BadRequest", 'strconv.ParseInt: parsing "x": invalid syntax'),
        ({"continue": "abc"}, 400, "BadRequest", "invalid continue token: continue key is not valid"),
        ({"labelSelector": "a in"}, 400, "BadRequest", "unable to parse requirement: found '' expected: '('"),
        ({"fieldSelector": "spec.foo=a"}, 400, "BadRequest", '"spec.foo" is not a known field selector'),
        ({"resourceVersionMatch": "Exact"}, 422, "Invalid", "is forbidden unless resourceVersion is provided"),
        ({"watch": "1", "sendInitialEvents": "true"}, 422, "Invalid", "unless the WatchList feature gate is enabled"),
        ({"watch": "1", "resourceVersion": "x"}, 500, None, 'resourceVersion: Invalid value: "x"'),
    ],
)
async def test_bad_options(api: Api, query: dict[str, str], code: int, reason: str | None, text: str) -> None:
    status, body = await api.get(SERVICES, **query)
    assert (status, body["kind"], body["code"], body.get("reason")) == (code, "Status", code, reason)
    assert text in body["message"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{SERVICES}/nope", 'services "nope" not found'),
        ("/api/v1/namespaces/nope", 'namespaces "nope" not found'),
        (f"{SLICES}/nope", 'endpointslices.discovery.k8s.io "nope" not found'),
        (f"{PODS}/nope/portforward", 'pods "nope" not found'),
        ("/api/v1/foos", "the server could not find the requested resource"),
    ],
)
async def test_not_found(api: Api, path: str, message: str) -> None:
    status, body = await api.get(path)
    assert (status, body["reason"], body["message"]) == (404, "NotFound", message)


async def test_what_is_no_resource(api: Api) -> None:
    assert await api.text("GET", "/apis/foo.bar/v1") == (404, "404 page not found\n")
    assert await api.text("GET", "/metrics") == (404, "404 page not found\n")
    assert await api.text("GET", "/readyz") == (200, "ok")
    status, body = await api.text("DELETE", f"{SERVICES}/echo")
    assert status == 405 and "does not allow this method" in body
    status, _ = await api.text("GET", SERVICES, headers={"Accept": "text/html"})
    assert status == 406
    status, body = await api.text("HEAD", "/version")
    assert (status, body) == (200, "")


async def test_a_server_without_endpoint_slices(cluster: SimCluster, api: Api) -> None:
    cluster.api.answers.disabled_groups = frozenset({"discovery.k8s.io"})
    assert (await api.text("GET", SLICES))[0] == 404
    _, groups = await api.get("/apis")
    assert [group["name"] for group in groups["groups"]] == ["apps", "authorization.k8s.io", "authentication.k8s.io"]


async def test_selectors_over_http(api: Api) -> None:
    found = await api.names(SLICES, labelSelector="kubernetes.io/service-name in (pair,zero)")
    assert [name.rpartition("-")[0] for name in found] == ["pair", "zero"]
    _, pods = await api.get(PODS, fieldSelector="status.phase=Running,metadata.name!=pair", labelSelector="app!=echo")
    assert [pod["metadata"]["name"] for pod in pods["items"]] == ["echo-sts-0", "echo-sts-1", "unready"]
    address = pods["items"][0]["status"]["podIP"]
    assert await api.names("/api/v1/pods", fieldSelector=f"status.podIP={address}") == ["echo-sts-0"]


async def test_table(api: Api) -> None:
    _, table = await api.get(PODS, accept=TABLE, labelSelector="app=pair")
    assert [column["name"] for column in table["columnDefinitions"]][:5] == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
    ]
    assert table["rows"][0]["cells"][:4] == ["pair", "2/2", "Running", 0]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    _, bare = await api.get(f"{PODS}/pair", accept=TABLE, includeObject="None")
    assert bare["rows"][0]["object"] is None


async def test_watch_from_a_list(cluster: SimCluster, api: Api) -> None:
    _, listed = await api.get(SERVICES)
    await cluster.add_service(service("new"))
    async with api.watch(SERVICES, resourceVersion=listed["metadata"]["resourceVersion"]) as watch:
        await cluster.add_service(service("new", app="new"))
        await cluster.remove_service("demo", "new")
        assert await watch.names(3) == [("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "new")]


async def test_watch_from_nothing_shows_what_is_there(api: Api) -> None:
    async with api.watch(SERVICES) as watch:
        assert await watch.names(7) == [("ADDED", name) for name in ALL_SERVICES]


async def test_watch_with_selectors(cluster: SimCluster, api: Api) -> None:
    async with api.watch(SERVICES, labelSelector="team=a", fieldSelector="metadata.name!=other") as watch:
        for spec in (
            service("one"),
            service("one", team="a"),
            service("other", team="a"),
            service("one", team="a", tier="web"),
            service("one", team="b"),
        ):
            await cluster.add_service(spec)
        assert await watch.names(2) == [("ADDED", "one"), ("MODIFIED", "one")]
        kind, last = await watch.next()
        assert (kind, last["metadata"]["labels"]) == ("DELETED", {"team": "a", "tier": "web"})
        assert last["metadata"]["resourceVersion"] == str(cluster.store.revision)


async def test_watch_of_tables_names_the_columns_once(cluster: SimCluster, api: Api) -> None:
    async with api._session.get(SERVICES, params={"watch": "1"}, headers={"Accept": TABLE}) as response:
        lines = [json.loads(await response.content.readline())["object"] for _ in range(7)]
    assert [line["rows"][0]["cells"][0] for line in lines] == ALL_SERVICES
    assert [line["columnDefinitions"] is not None for line in lines] == [True] + [False] * 6


async def test_compacted_watch_is_gone(cluster: SimCluster, api: Api) -> None:
    _, listed = await api.get(SERVICES)
    revision = listed["metadata"]["resourceVersion"]
    await cluster.add_service(service("new"))
    cluster.compact()
    async with api.watch(SERVICES, resourceVersion=revision) as watch:
        kind, status = await watch.next()
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert status["message"] == f"too old resource version: {revision} ({cluster.store.oldest})"
        assert await watch.line() == b""


async def test_an_open_watch_outlives_compaction_and_can_be_expired(cluster: SimCluster, api: Api) -> None:
    async with api.watch(SERVICES, fieldSelector="metadata.name=new") as watch:
        await cluster.add_service(service("new"))
        assert await watch.names(1) == [("ADDED", "new")]
        cluster.compact()
        await cluster.remove_service("demo", "new")
        assert await watch.names(1) == [("DELETED", "new")]
        cluster.expire_watches()
        kind, status = await watch.next()
        assert (kind, status["code"]) == ("ERROR", 410)
        assert await watch.line() == b""


async def test_bookmarks(cluster: SimCluster, api: Api) -> None:
    async with api.watch(SERVICES, resourceVersion=str(cluster.store.revision), allowWatchBookmarks="true") as watch:
        await cluster.add_namespace("elsewhere")  # nothing that this watch shows
        cluster.send_bookmarks()
        kind, item = await watch.next()
        assert (kind, item["kind"], item["apiVersion"]) == ("BOOKMARK", "Service", "v1")
        assert item["metadata"]["resourceVersion"] == str(cluster.store.revision)


async def test_no_bookmarks_for_who_did_not_ask(cluster: SimCluster, api: Api) -> None:
    async with api.watch(SERVICES, resourceVersion=str(cluster.store.revision)) as watch:
        cluster.send_bookmarks()
        await cluster.add_service(service("new"))
        assert await watch.names(1) == [("ADDED", "new")]


async def test_bookmarks_come_by_themselves(cluster: SimCluster, api: Api) -> None:
    cluster.api.answers.bookmark_interval_s = 0.01
    async with api.watch(SERVICES, resourceVersion=str(cluster.store.revision), allowWatchBookmarks="1") as watch:
        assert [(await watch.next())[0] for _ in range(3)] == ["BOOKMARK"] * 3


async def test_a_watch_ends_at_its_timeout_with_a_bookmark(cluster: SimCluster, api: Api) -> None:
    revision = str(cluster.store.revision)
    async with api.watch(SERVICES, resourceVersion=revision, timeoutSeconds="0", allowWatchBookmarks="1") as watch:
        assert (await watch.next())[0] == "BOOKMARK"
        assert await watch.line() == b""
    assert await api.names(SERVICES) == ALL_SERVICES  # on the same connection


async def test_watches_that_are_disturbed(cluster: SimCluster, api: Api) -> None:
    revision = str(cluster.store.revision)
    async with api.watch(SERVICES, resourceVersion=revision) as watch:
        cluster.send_garbage_in_watches(b"{garbage\n")
        assert await watch.line() == b"{garbage\n"
        cluster.cut_watches(orderly=True)
        assert await watch.line() == b""
    async with api.watch(SERVICES, resourceVersion=revision) as watch:
        cluster.cut_watches()
        with pytest.raises(aiohttp.ClientError):
            await watch.line()
    assert await api.names(SERVICES) == ALL_SERVICES


async def test_a_client_that_leaves_ends_its_watch(cluster: SimCluster, api: Api) -> None:
    async with api.watch(SERVICES):
        assert len(cluster.api.answers.watches) == 1
    await cluster.cut_connections()  # waits for what is left of them
    assert not cluster.api.answers.watches


async def test_requests_are_counted(cluster: SimCluster, api: Api) -> None:
    cluster.requests.clear()
    await api.get(f"{SERVICES}/echo")
    await api.get(SERVICES)
    async with api.watch(SERVICES, timeoutSeconds="0"):
        pass
    assert [(request.verb, request.path) for request in cluster.requests] == [
        ("get", f"{SERVICES}/echo"),
        ("list", SERVICES),
        ("watch", SERVICES),
    ]
    assert len({request.connection for request in cluster.requests}) == 1
    assert {request.user for request in cluster.requests} == {"admin"}
    assert (cluster.count_requests("list"), cluster.count_requests(path="/services")) == (1, 3)


async def test_latency(cluster: SimCluster, api: Api) -> None:
    await api.get("/version")
    cluster.api.latency_s = 0.05
    started = asyncio.get_running_loop().time()
    await api.get("/version")
    assert asyncio.get_running_loop().time() - started >= 0.05
