"""What the simulated API server answers to a request that is allowed: discovery documents, health, get, list, watch,
reviews (Kubernetes API reference, 1.33). Nothing is changed through it: `SimCluster`'s switches change the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kubetunnel.sim import protobuf, resources
from kubetunnel.sim.connection import TEXT_TYPE, Connection, Request
from kubetunnel.sim.listing import list_page
from kubetunnel.sim.listoptions import RequestInfo, parse_list_options
from kubetunnel.sim.pods import Json
from kubetunnel.sim.rbac import User
from kubetunnel.sim.resources import Resource
from kubetunnel.sim.reviews import review
from kubetunnel.sim.status import bad_request, method_not_allowed, no_such_resource, not_acceptable, not_found
from kubetunnel.sim.store import Store
from kubetunnel.sim.tables import table
from kubetunnel.sim.watch import BOOKMARK_INTERVAL_S, Watch

HEALTH_PATHS = ("/healthz", "/livez", "/readyz")
_NOT_FOUND = b"404 page not found\n"


class Answers:
    """Answers out of `store`. The attributes without underscore are switches of the tests."""

    def __init__(self, store: Store) -> None:
        self.bookmark_interval_s = BOOKMARK_INTERVAL_S
        self.disabled_groups: frozenset[str] = frozenset()  # {"discovery.k8s.io"}: a server without EndpointSlices
        self.watches: dict[Watch, Connection] = {}
        self._store = store

    async def answer(self, connection: Connection, request: Request, info: RequestInfo, user: User) -> None:
        """Write the answer; raises StatusError where it is a failure."""
        if not info.resource:
            await self._answer_path(connection, info.path)
            return
        if info.group in self.disabled_groups or not self._group_exists(info):
            await connection.respond(404, _NOT_FOUND, TEXT_TYPE)
            return
        resource = resources.BY_NAME.get((info.group, info.resource))
        if resource is None or info.subresource:
            raise no_such_resource()
        if info.verb not in resource.verbs:
            raise method_not_allowed()
        accept = request.headers.get("accept", "*/*")
        if not any(kind in accept for kind in ("application/json", "application/*", "*/*")):
            raise not_acceptable()
        if info.verb == "create":
            await connection.respond_json(201, _review(resource, request, user))
        elif info.verb == "get":
            await connection.respond_json(200, self._get(resource, info, request))
        elif info.verb == "list":
            await connection.respond_json(200, self._list(resource, info, request))
        else:
            await self._watch(connection, resource, info, request)

    @staticmethod
    def _group_exists(info: RequestInfo) -> bool:
        return info.version == "v1" and (not info.group or info.group in resources.GROUPS)

    async def _answer_path(self, connection: Connection, path: str) -> None:
        path = path.rstrip("/") or "/"
        if path.startswith(HEALTH_PATHS):
            await connection.respond(200, b"ok", TEXT_TYPE)
        elif (document := self._document(path)) is not None:
            await connection.respond_json(200, document)
        else:
            await connection.respond(404, _NOT_FOUND, TEXT_TYPE)

    def _document(self, path: str) -> Json | None:
        groups = [name for name in resources.GROUPS if name not in self.disabled_groups]
        documents: dict[str, Callable[[], Json]] = {
            "/version": lambda: resources.VERSION,
            "/api": resources.core_versions,
            "/api/v1": lambda: resources.resource_list(""),
            "/apis": lambda: resources.group_list(groups),
        }
        if path in documents:
            return documents[path]()
        name, _, version = path.removeprefix("/apis/").partition("/")
        if not path.startswith("/apis/") or name not in groups or version not in ("", "v1"):
            return None
        return resources.resource_list(name) if version else resources.group(name)

    def _get(self, resource: Resource, info: RequestInfo, request: Request) -> Json:
        namespace = info.namespace if resource.namespaced else ""
        item = self._store.get(resource.name, namespace, info.name)
        if item is None:
            raise not_found(resource.name, resource.group, info.name)
        if _wants_table(request):
            return _table(resource, [item], {"resourceVersion": item["metadata"]["resourceVersion"]}, request)
        return item

    def _list(self, resource: Resource, info: RequestInfo, request: Request) -> Json:
        options = parse_list_options(request.query, resource, watch=False)
        items, metadata = list_page(self._store, resource, info.namespace, options)
        if _wants_table(request):
            return _table(resource, items, metadata, request)
        # the items of a list say neither kind nor apiVersion
        bare = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": bare}

    async def _watch(self, connection: Connection, resource: Resource, info: RequestInfo, request: Request) -> None:
        options = parse_list_options(request.query, resource, watch=True)
        encode = _rows(resource, request) if _wants_table(request) else _as_it_is
        watch = Watch(self._store, resource, info.namespace, options, encode)
        self.watches[watch] = connection
        try:
            await watch.run(connection, self.bookmark_interval_s)
        finally:
            del self.watches[watch]


def _review(resource: Resource, request: Request, user: User) -> Json:
    try:
        if request.headers.get("content-type", "").startswith(protobuf.CONTENT_TYPE):
            posted = protobuf.decode_review(request.body)
        else:
            posted = msgspec.json.decode(request.body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError) as e:
        raise bad_request(f"the object provided is unrecognized: {e}") from e
    return review(resource.name, posted, user)


def _wants_table(request: Request) -> bool:
    return "as=Table" in request.headers.get("accept", "")


def _table(resource: Resource, items: list[Json], metadata: Json, request: Request, *, columns: bool = True) -> Json:
    return table(resource, items, metadata, include=request.query.get("includeObject", ""), columns=columns)


def _rows(resource: Resource, request: Request) -> Callable[[Json], Json]:
    """Objects of a watch as Tables of one row; only the first says the columns."""
    first = True

    def encode(item: Json) -> Json:
        nonlocal first
        columns, first = first, False
        metadata = {"resourceVersion": item["metadata"]["resourceVersion"]}
        return _table(resource, [item], metadata, request, columns=columns)

    return encode


def _as_it_is(item: Json) -> Json:
    return item
