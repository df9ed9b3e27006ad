"""The tunnel as the dashboard sees it, with a state that a test writes: its files, the event stream, the actions.

The documents are those that the API describes (a test holds them to openapi.json), the policy is the real one.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from kubetunnel.observe.feed import HEARTBEAT_S
from kubetunnel.observe.replies import POLICY

STATIC = Path(__file__).resolve().parents[2] / "addons" / "kubetunnel" / "observe" / "static"
TOKEN = "a-token-of-the-test"
STRICTER = f"{POLICY}; require-trusted-types-for 'script'"  # nothing on the page takes markup

type Json = dict[str, Any]


def service(name: str, namespace: str = "shop", **facts: Any) -> Json:
    """A healthy Service with two pods."""
    pods = [
        {
            "pod": f"{name}-{i}",
            "ready": True,
            "state": "ready",
            "streams": 1,
            "health": "healthy",
            "failing": None,
            "node": f"node-{i}",
        }
        for i in (1, 2)
    ]
    return {
        "zone": "cluster.local",
        "namespace": namespace,
        "service": name,
        "address": None,
        "ports": [{"port": 80, "name": "http", "protocol": "TCP"}],
        "health": "healthy",
        "as_of": None,
        "pods": pods,
        "ready": 2,
        "total": 2,
        "streams": 2,
        "requests_total": 1200,
        "requests_per_s": 12.4,
        "error_rate": 0.0,
        "p50_ms": 3.2,
        "p99_ms": 41.0,
        "sparkline": [(7 * i) % 13 for i in range(60)],
        "command": f"kubectl -n {namespace} get pods -l app={name}",
        "last_error": None,
    } | facts


def broken(name: str, namespace: str = "shop", **facts: Any) -> Json:
    """A Service with no ready pod."""
    error = {
        "reason": "NoReadyEndpoints",
        "detail": f"None of the 2 endpoints of {name} in namespace {namespace} is ready.",
        "command": f"kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}",
        "at": time.time() - 4,
    }
    facts = {"ready": 0, "health": "unhealthy", "error_rate": 1.0, "last_error": error} | facts
    pods = [pod | {"ready": False, "health": "unknown", "state": "idle"} for pod in service(name)["pods"]]
    return service(name, namespace, **({"pods": pods} | facts))


def forward(pod: str, namespace: str = "shop", **facts: Any) -> Json:
    return {
        "zone": "cluster.local",
        "namespace": namespace,
        "pod": pod,
        "state": "ready",
        "reason": "an upstream is open",
        "since": time.time() - 754,
        "protocol": "SPDY/3.1+portforward.k8s.io",
        "upstreams": 2,
        "streams": 0,
        "streams_opened": 812,
        "bytes_sent": 91_221,
        "bytes_received": 18_312_331,
        "dials": 3,
        "retries": 0,
        "redials": 1,
        "last_error": "",
        "last_error_at": None,
    } | facts


class DashboardServer:
    """Serves on a free port of loopback.

    Attributes:
        state: what a snapshot says.
        asked: (method, path, body) of the actions that were let in.
        answer: what the next actions are answered: status and body.
        hangs: True: it gives no sign of life.
    """

    def __init__(self, services: list[Json] | None = None) -> None:
        self.state: Json = {
            "alive": {"status": "ok", "context": "kind-dev"},
            "services": services or [],
            "forwards": [],
            "listeners": [],
            "dns": None,
            "events": [],
            "tunnel": {
                "version": "0.1.0",
                "started_at": time.time(),
                "context": "kind-dev",
                "namespace": "shop",
                "zones": ["cluster.local"],
            },
        }
        self.asked: list[tuple[str, str, Any]] = []
        self.answer: tuple[int, Json] = 200, {}
        self.hangs = False  # True: no sign of life
        self.port = 0
        self._was_asked = asyncio.Event()
        self.streams_opened = 0
        self._streams: set[asyncio.Queue[tuple[str, Json | None] | None]] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dashboard"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens, on the same port as before if it did."""
        app = web.Application()
        app.router.add_get("/dashboard", self._static)
        app.router.add_get("/dashboard/{name}", self._static)
        app.router.add_get("/api/v1/events", self._events)
        app.router.add_route("*", "/api/v1/{path:.+}", self._action)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Ends all connections."""
        for stream in self._streams:
            stream.put_nowait(None)
        if self._runner is not None:
            await self._runner.cleanup()

    async def actions(self, count: int) -> list[tuple[str, str, Any]]:
        """Waits for so many, and returns `asked`."""
        async with asyncio.timeout(10):
            while len(self.asked) < count:
                self._was_asked.clear()
                await self._was_asked.wait()
        return self.asked

    def send(self, kind: str, data: Json | None) -> None:
        """An event to every page that looks."""
        for stream in self._streams:
            stream.put_nowait((kind, data))

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "dashboard.html")
        file = STATIC / name
        if not file.is_file():
            raise web.HTTPNotFound
        headers = {
            "Content-Security-Policy": STRICTER,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return web.Response(body=file.read_bytes(), content_type=kind, charset="utf-8", headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        stream: asyncio.Queue[tuple[str, Json | None] | None] = asyncio.Queue()
        stream.put_nowait(("snapshot", self.state))
        self._streams.add(stream)
        self.streams_opened += 1
        try:
            while (event := await self._next(stream)) is not None:
                await response.write(f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n".encode())
        except ConnectionError:
            pass  # the page went
        finally:
            self._streams.discard(stream)
        return response

    async def _next(self, stream: asyncio.Queue[tuple[str, Json | None] | None]) -> tuple[str, Json | None] | None:
        """What was sent; where that is nothing, a sign of life, unless the tunnel is to hang."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    return await stream.get()
            except TimeoutError:
                if not self.hangs:
                    return "alive", self.state["alive"]

    async def _action(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Kube-Tunnel-Token") != TOKEN:
            return web.json_response({"title": "Forbidden", "detail": "The token is not this tunnel's."}, status=403)
        if request.headers.get("Origin") not in (None, f"http://127.0.0.1:{self.port}"):
            return web.json_response({"title": "Forbidden", "detail": "Another origin."}, status=403)
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.method, request.path, body))
        self._was_asked.set()
        status, answer = self.answer
        return web.json_response(answer, status=status)
