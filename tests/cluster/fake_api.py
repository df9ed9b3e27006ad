"""An API server of a few dozen lines that does as the test says: it refuses, stalls, cuts, and sends nonsense."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from tests.cluster.certificates import Authority

type Object = dict[str, object]
type Script = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

GROUPS = {"endpointslices": "discovery.k8s.io"}


def status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code)


@dataclass(eq=False)
class Watch:
    """An open watch of a client."""

    resource: str
    namespace: str
    request: web.Request
    lines: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def send(self, kind: str, found: object) -> None:
        self.lines.put_nowait(json.dumps({"type": kind, "object": found}).encode() + b"\n")

    def cut(self) -> None:
        """Break the connection off in the middle."""
        assert self.request.transport is not None
        self.request.transport.abort()


class FakeApi:
    """Objects by resource; what happened, in `requests`; what to do otherwise, in `denied`, `absent` and `script`."""

    def __init__(self, authority: Authority, *, port: int = 0) -> None:
        self._authority = authority
        self.port = port
        self.objects: dict[tuple[str, str], dict[str, Object]] = {}
        self.version = 100
        self.requests: list[str] = []  # "verb resource namespace[/name]"
        self.headers: list[dict[str, str]] = []
        self.denied: set[str] = set()  # "verb resource"
        self.absent: set[str] = {""}
        self.tokens: set[str] | None = None
        self.script: Script | None = None
        self.watches: list[Watch] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.tls: ssl.SSLContext | None = authority.server_context("127.0.0.1", "localhost", "api.test")
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            for watch in list(self.watches):
                watch.lines.put_nowait(None)
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def put(
        self, resource: str, namespace: str, name: str, *, labels: dict[str, str] | None = None, **rest: object
    ) -> None:
        """Create or change an object, and tell the watches."""
        self.version += 1
        known = self.objects.setdefault((resource, namespace), {})
        kind = "MODIFIED" if name in known else "ADDED"
        metadata = {"name": name, "namespace": namespace, "resourceVersion": str(self.version), "labels": labels or {}}
        known[name] = {"metadata": metadata, **rest}
        self._tell(kind, resource, namespace, known[name])

    def delete(self, resource: str, namespace: str, name: str) -> None:
        self.version += 1
        found = self.objects[resource, namespace].pop(name)
        found["metadata"] |= {"resourceVersion": str(self.version)}  # type: ignore[operator]
        self._tell("DELETED", resource, namespace, found)

    def count(self, start: str) -> int:
        return sum(1 for request in self.requests if request.startswith(start))

    def _tell(self, kind: str, resource: str, namespace: str, found: Object) -> None:
        for watch in self.watches:
            if (watch.resource, watch.namespace) == (resource, namespace) and self._selected(watch.request, found):
                watch.send(kind, found)

    @staticmethod
    def _selected(request: web.Request, found: Object) -> bool:
        metadata: dict = found["metadata"]  # type: ignore[assignment]
        status_: dict = found.get("status", {})  # type: ignore[assignment]
        for part in filter(None, request.query.get("fieldSelector", "").split(",")):
            key, _, value = part.partition("=")
            actual = {"metadata.name": metadata["name"], "status.podIP": status_.get("podIP")}[key]
            if actual != value:
                return False
        wanted = [part.partition("=") for part in filter(None, request.query.get("labelSelector", "").split(","))]
        return all(metadata["labels"].get(key) == value for key, _, value in wanted)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        verb, resource, namespace, name = self._parse(request)
        self.requests.append(f"{verb} {resource} {namespace}{'/' + name if name else ''}")
        self.headers.append(dict(request.headers))
        if self.tokens is not None and request.headers.get("Authorization", "")[7:] not in self.tokens:
            return status(401, "Unauthorized", "Unauthorized")
        if self.script is not None and (answer := await self.script(request)) is not None:
            return answer
        group = GROUPS.get(resource, "")
        if f"{verb} {resource}" in self.denied:
            where = f' in the namespace "{namespace}"' if namespace else ""
            what = f'cannot {verb} resource "{resource}" in API group "{group}"{where}'
            return status(403, "Forbidden", f'{resource} is forbidden: User "jane" {what}')
        if resource in self.absent:
            return web.Response(status=404, text="404 page not found\n")
        if verb == "watch":
            return await self._watch(request, resource, namespace)
        known = self.objects.get((resource, namespace), {})
        if verb == "get":
            if name not in known:
                return status(404, "NotFound", f'{resource} "{name}" not found')
            return web.json_response(known[name])
        return self._list(request, [found for found in known.values() if self._selected(request, found)])

    def _list(self, request: web.Request, found: list[Object]) -> web.Response:
        start = int(request.query.get("continue", "0"))
        limit = int(request.query.get("limit", "0")) or len(found)
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": metadata, "items": found[start : start + limit] or None})

    async def _watch(self, request: web.Request, resource: str, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse()
        watch = Watch(resource, namespace, request)
        self.watches.append(watch)
        try:
            await response.prepare(request)
            while (line := await watch.lines.get()) is not None:
                await response.write(line)
        finally:
            self.watches.remove(watch)
        return response

    @staticmethod
    def _parse(request: web.Request) -> tuple[str, str, str, str]:
        parts = request.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[:1] == ["namespaces"] and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        resource, name = (parts[0] if parts else ""), (parts[1] if len(parts) > 1 else "")
        verb = "watch" if request.query.get("watch") else ("get" if name else "list")
        return verb, resource, namespace, name


def add_service(
    api: FakeApi, name: str = "web", namespace: str = "shop", *, address: str = "10.0.0.1", **spec: object
) -> None:
    """A Service with one ready endpoint, in all the three forms that it can be read in."""
    api.objects.setdefault(("namespaces", ""), {})[namespace] = {"metadata": {"name": namespace, "labels": {}}}
    fields: dict = {
        "clusterIP": "10.96.0.1",
        "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
        **spec,
    }
    api.put("services", namespace, name, spec=fields)
    add_endpoint(api, name, namespace, address=address)


def add_endpoint(api: FakeApi, name: str = "web", namespace: str = "shop", *, address: str) -> None:
    """Replace the Service's only endpoint."""
    ref = {"kind": "Pod", "name": f"{name}-0", "namespace": namespace}
    api.put(
        "endpointslices",
        namespace,
        f"{name}-abc",
        labels={"kubernetes.io/service-name": name},
        addressType="IPv4",
        endpoints=[{"addresses": [address], "conditions": {"ready": True}, "targetRef": ref}],
        ports=[{"name": "http", "port": 8080}],
    )
    subset = {"addresses": [{"ip": address, "targetRef": ref}], "ports": [{"name": "http", "port": 8080}]}
    api.put("endpoints", namespace, name, subsets=[subset])
    api.put(
        "pods",
        namespace,
        f"{name}-0",
        labels={"app": name},
        spec={"containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
        status={"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    )
