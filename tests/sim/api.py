"""A plain client of the simulated API server, on aiohttp: nothing of ours between the test and the bytes."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp

from kubetunnel.sim.cluster import SimCluster

type Json = dict[str, Any]

TIMEOUT_S = 10.0


class Watching:
    """The events of an open watch, one at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def line(self) -> bytes:
        """The next line as it came; b"" at the end."""
        return await self._response.content.readline()

    async def next(self) -> tuple[str, Json]:
        """The type and the object of the next event."""
        event = json.loads(await self.line())
        return event["type"], event["object"]

    async def names(self, count: int) -> list[tuple[str, str]]:
        """The types and names of the next `count` events."""
        events = [await self.next() for _ in range(count)]
        return [(kind, item["metadata"]["name"]) for kind, item in events]


class Api:
    """Requests as one user; `token` None is anonymous."""

    def __init__(self, cluster: SimCluster, token: str | None) -> None:
        context = ssl.create_default_context(cadata=cluster.certificate_authority_pem)
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._session = aiohttp.ClientSession(
            cluster.server,
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, accept: str = "application/json", **query: str) -> tuple[int, Json]:
        """Status and JSON body."""
        async with self._session.get(path, params=query, headers={"Accept": accept}) as response:
            return response.status, await response.json()

    async def text(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """Status and body of any request."""
        async with self._session.request(method, path, **options) as response:
            return response.status, await response.text()

    async def names(self, path: str, **query: str) -> list[str]:
        """The names in a list."""
        status, body = await self.get(path, **query)
        assert status == 200, body
        return [item["metadata"]["name"] for item in body["items"]]

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[Watching]:
        """An open watch."""
        async with self._session.get(path, params={"watch": "1", **query}) as response:
            assert response.status == 200, await response.text()
            yield Watching(response)
