"""A scripted API server on loopback, with TLS of its own, and kubeconfigs that point to it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml

from kubetunnel.cluster.reach import Reach
from tests.cluster.certificates import Authority
from tests.cluster.fake_api import FakeApi


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def api_server(authority: Authority) -> AsyncIterator[FakeApi]:
    async with FakeApi(authority) as api:
        yield api


type WriteKubeconfig = Callable[..., str]


@pytest.fixture
def kubeconfig(tmp_path: Path, authority: Authority, api_server: FakeApi) -> WriteKubeconfig:
    """Write a kubeconfig for the fake API server; arguments replace or add fields of its cluster, user and context."""

    def write(
        *, name: str = "config", cluster: dict | None = None, user: dict | None = None, context: dict | None = None
    ) -> str:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "fake",
                    "cluster": {
                        "server": api_server.url,
                        "certificate-authority-data": base64.b64encode(authority.pem).decode(),
                        **(cluster or {}),
                    },
                }
            ],
            "contexts": [
                {"name": "test", "context": {"cluster": "fake", "user": "me", "namespace": "shop", **(context or {})}}
            ],
            "users": [{"name": "me", "user": {"token": "secret-1"} if user is None else user}],
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document))
        return str(path)

    return write


@pytest.fixture(params=["lazy", "eager"])
async def either_task_factory(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """mitmproxy's loop has eager tasks: what runs under it must be right with and without."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    if request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    yield
    loop.set_task_factory(before)


class Impatient(Reach):
    """Waits for nothing longer than a moment."""

    patience_s = 0.2


async def until(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Wait until something that happens in the background has happened."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the server's state has no event to wait for
            await asyncio.sleep(0.005)
