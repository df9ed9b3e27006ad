"""The tunnel's own pages: which path is answered by what. An addon that answers the requests for the tunnel itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http

from kubetunnel.observe.api import Api
from kubetunnel.observe.documents import Documents
from kubetunnel.observe.feed import Feed, FeedClient
from kubetunnel.observe.guard import Guard
from kubetunnel.observe.metrics import Metrics
from kubetunnel.observe.replies import Refused, json_reply, problem_reply, reply, stream_reply
from kubetunnel.proxy.http.own import OwnExchange

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0  # for a listener to take what it was sent
_PUBLIC = ("/health", "/metrics", "/dashboard")
_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml", "json": "application/json", "txt": "text/plain; charset=utf-8",
}  # fmt: skip
_PATHS = ("/health", "/health/status", "/health/metrics", "/metrics", "/dashboard", "/api/v1/events")

type Alive = Callable[[], Awaitable[dict[str, Any]]]


class Pages:
    """Answers.

    Args:
        alive: for /health: a document with `status` "ok" or another word.
    """

    name = "kubetunnel_pages"

    def __init__(
        self, guard: Guard, api: Api, documents: Documents, feed: Feed, metrics: Metrics, alive: Alive
    ) -> None:
        self._guard = guard
        self._api = api
        self._documents = documents
        self._feed = feed
        self._metrics = metrics
        self._alive = alive
        self._listening: WeakKeyDictionary[OwnExchange, FeedClient] = WeakKeyDictionary()

    async def kube_own_request(self, exchange: OwnExchange) -> None:
        """The hook of `KubeOwnRequestHook`. Supervision point: a defect costs one answer."""
        try:
            exchange.response = await self._answer(exchange)
        except Refused as refused:
            exchange.response = problem_reply(refused)
        except Exception:
            logger.exception("Answering %s failed.", exchange.request.path)
            detail = "The tunnel itself failed; its log says more."
            exchange.response = problem_reply(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, detail, reason="InternalError"))

    async def kube_own_chunk(self, exchange: OwnExchange) -> None:
        """The hook of `KubeOwnChunkHook`: the next piece of the event stream."""
        client = self._listening.get(exchange)
        exchange.chunk = None
        if client is None:
            return
        try:
            if not exchange.has_left and await _has_taken(exchange):
                exchange.chunk = await client.chunk()
        except TimeoutError:
            logger.debug("A listener of the event stream takes nothing.")
        finally:
            if exchange.chunk is None:
                self._feed.leave(client)

    async def _answer(self, exchange: OwnExchange) -> http.Response:
        request = exchange.request
        path = request.path.partition("?")[0]
        is_public = path in _PUBLIC or path.startswith("/dashboard/")
        self._guard.check(exchange.client, request, is_public=is_public, is_probe=path == "/health")
        if exchange.is_too_large:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large.", reason="BodyTooLarge")
        if path.startswith("/api/v1/") and path != "/api/v1/events":
            return await self._answer_api(request, path)
        if request.method not in ("GET", "HEAD"):
            if path not in _PATHS:
                self._find_file(path)
            raise _not_allowed(["GET", "HEAD"])
        match path:
            case "/health":
                document = await self._alive()
                ok = document["status"] == "ok"
                if not self._guard.shows_all(exchange.client, request):
                    document = {
                        "status": document["status"]
                    }  # not which cluster, whose kubeconfig, what is wrong there
                return json_reply(document, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)
            case "/health/status":
                return json_reply(self._documents.status())
            case "/health/metrics":
                return json_reply(self._metrics.totals())
            case "/metrics":
                return reply(*await self._metrics.expose(request.headers.get("accept", "")))
            case "/api/v1/events":
                return self._listen(exchange)
            case "/" if "text/html" in request.headers.get("accept", ""):
                return reply(b"", "text/plain", HTTPStatus.FOUND, {"Location": "/dashboard"})
        name, content = self._find_file(path)
        return reply(content, _TYPES[name.rpartition(".")[2]])

    async def _answer_api(self, request: http.Request, path: str) -> http.Response:
        segments = [unquote(segment) for segment in path.removeprefix("/api/v1/").split("/")]
        handler, methods = self._api.find(request.method, segments)
        if handler is not None:
            return await handler(request, segments)
        if methods:
            raise _not_allowed(methods)
        raise self._no_such_path()

    def _listen(self, exchange: OwnExchange) -> http.Response:
        if exchange.request.method == "HEAD":
            return stream_reply("text/event-stream")
        client = self._feed.join()
        if client is None:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "Too many listen to the event stream.", reason="TooManyListeners",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        self._listening[exchange] = client
        exchange.goes_on = True
        exchange.on_change.append(lambda: client.end() if exchange.has_left else None)
        return stream_reply("text/event-stream")

    def _find_file(self, path: str) -> tuple[str, bytes]:
        """A file of the dashboard: its name and content."""
        name = "dashboard.html" if path in ("/dashboard", "/dashboard/") else path.removeprefix("/dashboard/")
        found = path.startswith("/dashboard") and static_files().get(name)
        if not found:
            raise self._no_such_path()
        return name, found

    def _no_such_path(self) -> Refused:
        paths = sorted({*_PATHS, *self._api.paths()})
        return Refused(
            HTTPStatus.NOT_FOUND,
            "This is the tunnel itself, and it has no such page. To reach a Service, name it in the Host header, or "
            "use the tunnel as a proxy.",
            reason="NotAServiceName",
            members={"command": "curl -H 'Host: SERVICE.NAMESPACE' http://…", "paths": paths},
        )


@cache
def static_files() -> dict[str, bytes]:
    """The dashboard's files by their names."""
    return {
        entry.name: entry.read_bytes()
        for entry in files("kubetunnel.observe").joinpath("static").iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }


def api_description() -> dict[str, Any]:
    """The OpenAPI document."""
    found: dict[str, Any] = json.loads(files("kubetunnel.observe").joinpath("openapi.json").read_text())
    return found


def _not_allowed(methods: list[str]) -> Refused:
    allow = ", ".join(methods)
    return Refused(
        HTTPStatus.METHOD_NOT_ALLOWED, f"It takes {allow}.", reason="MethodNotAllowed", headers={"Allow": allow}
    )


async def _has_taken(exchange: OwnExchange) -> bool:
    """Waits until the client took what it was sent; False: it has gone. Raises TimeoutError."""
    addons: Any = ctx.master.addons
    handler = addons.get("proxyserver").connections.get(exchange.client.id)
    io = handler.transports.get(exchange.client) if handler is not None else None
    if io is None or io.writer is None or io.writer.is_closing():
        return False
    async with asyncio.timeout(DRAIN_TIMEOUT_S):
        await io.writer.drain()
        while exchange.is_congested and not exchange.has_left:
            changed = asyncio.Event()
            exchange.on_change.append(changed.set)
            await changed.wait()
            exchange.on_change.remove(changed.set)
    return not exchange.has_left
