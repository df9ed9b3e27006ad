"""A real mitmweb on the simulated cluster, and its HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import Tunnel

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore", DeprecationWarning)
    import mitmproxy.addons  # noqa: F401 - here, before the modules that bring it along

PASSWORD = "watching"
XSRF = "5a5a5a5a"  # both in the cookie and in the header


class Web(Tunnel):
    """`mitmweb` with the addon, and what a browser asks of it."""

    def __init__(self, confdir: Path, **arguments: Any) -> None:
        self.web_port = free_web_port()
        options = [
            "--web-port", str(self.web_port), "--no-web-open-browser", "--set", f"web_password={PASSWORD}",
            *arguments.pop("options", ()),
        ]  # fmt: skip
        super().__init__(confdir, program="mitmweb", options=options, **arguments)

    def call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web_port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {PASSWORD}",
                "Content-Type": "application/json",
                "Cookie": f"_mitmproxy_xsrf={XSRF}",
                "X-XSRFToken": XSRF,
            },
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as response:
                text = response.read()
        except urllib.error.HTTPError as e:
            with e:
                raise AssertionError(f"{method} {path}: {e.code} {e.read()[:500]!r}") from e
        return json.loads(text) if text else None

    def command(self, name: str, *arguments: str) -> Any:
        """What a command returns; its error is an AssertionError."""
        answer = self.call("POST", f"/commands/{name}", {"arguments": list(arguments)})
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def table(self, name: str) -> list[dict[str, str]]:
        heading, *rows = self.command(name)
        return [dict(zip(heading, row, strict=True)) for row in rows]

    def flows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/flows")
        return found

    def content(self, flow: dict[str, Any], message: str, view: str) -> Any:
        """What a content view shows of a flow."""
        return self.call("GET", f"/flows/{flow['id']}/{message}/content/{quote(view, safe='')}.json")


def free_web_port() -> int:
    """Below those that the system gives out by itself, so that nobody gets it before mitmweb does."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def until[T](ask: Callable[[], T], *, patience_s: float = 10.0) -> T:
    """What `ask` returns, once it is true."""
    found = await asyncio.to_thread(ask)
    async with asyncio.timeout(patience_s):
        while not found:
            await asyncio.sleep(0.1)
            found = await asyncio.to_thread(ask)
    return found


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture
async def start_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Awaitable[Web]]]:
    """Starts them while the cluster's event loop runs on; ends them with the test."""
    started: list[Tunnel] = []

    async def start(kind: type[Tunnel] = Web, **arguments: Any) -> Tunnel:
        found = await asyncio.to_thread(kind, tmp_path, **arguments)
        started.append(found)
        return found

    yield start  # type: ignore[misc]
    for each in started:
        await asyncio.to_thread(each.close)
        assert "Traceback" not in each.log, each.log


@pytest_asyncio.fixture
async def web(sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path) -> Web:
    return await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"))
