"""What networks and pods do to us on any cluster: connections cut or dead without a word, a container that exits.

The faults of connections are made by a relay of the test's own between the tunnel and the API server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest_asyncio
import yaml

from tests.contract.conftest import ClusterUnderTest
from tests.relay import Relay
from tests.tunnel import Answer, Tunnel

BACK_S = 3.0
LIMIT_S = 20.0
BIG = "/bytes?n=40m&rate=8m"


@pytest_asyncio.fixture
async def relay(cluster: ClusterUnderTest) -> AsyncIterator[Relay]:
    server = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    parts = urlsplit(server)
    assert parts.hostname in ("127.0.0.1", "localhost"), "its certificate must do for the relay's address"
    async with Relay("127.0.0.1", parts.port or 443) as relay:
        yield relay


@pytest_asyncio.fixture
async def relayed(cluster: ClusterUnderTest, relay: Relay, tmp_path: Path) -> AsyncIterator[Tunnel]:
    """A tunnel whose connections to the API server go through the relay."""
    kubeconfig = relay.kubeconfig(cluster.kubeconfig, to=tmp_path / "kubeconfig")
    tunnel = await asyncio.to_thread(Tunnel, tmp_path, kubeconfig=kubeconfig)
    yield tunnel
    await asyncio.to_thread(tunnel.close)
    assert "Traceback" not in tunnel.log, tunnel.log


async def get(tunnel: Tunnel, host: str = "echo.demo", path: str = "/hostname") -> Answer:
    return await asyncio.to_thread(tunnel.get, host, path, timeout_s=LIMIT_S)


async def warm_up(tunnel: Tunnel) -> None:
    answers = await asyncio.gather(*(get(tunnel) for _ in range(6)))
    assert [answer.status for answer in answers] == [200] * 6, [answer.text for answer in answers]


async def back(tunnel: Tunnel, *hosts: str) -> None:
    """Asks for each host, again where it fails, as a person would."""
    started = time.monotonic()
    for host in hosts:
        while (answer := await get(tunnel, host)).status != 200:
            assert time.monotonic() - started < BACK_S, (answer.text, answer.stderr)
    assert time.monotonic() - started < BACK_S


async def test_connections_that_died_in_silence(relay: Relay, relayed: Tunnel) -> None:
    await warm_up(relayed)
    relay.fall_silent()
    relay.resume()
    await back(relayed, "echo.demo", "pair.demo", "echo.demo")


async def test_the_api_server_goes_and_comes_back(relay: Relay, relayed: Tunnel) -> None:
    await warm_up(relayed)
    await relay.stop()
    for _ in range(3):
        answer = await get(relayed)
        assert answer.reason == "ClusterUnreachable", answer.text
    await relay.listen()
    await back(relayed, "echo.demo", "pair.demo")


async def test_a_body_whose_connection_is_cut_is_seen_to_be_cut(relay: Relay, relayed: Tunnel) -> None:
    download = asyncio.create_task(get(relayed, path=BIG))
    await asyncio.sleep(1.5)  # some of it has passed
    relay.cut()
    answer = await download
    assert answer.exit_code == 18, "curl: transfer closed with outstanding read data remaining"
    assert 0 < len(answer.body) < 40 << 20
    assert (await get(relayed)).status == 200


async def test_a_container_that_exits_ends_its_own_requests_alone(tunnel: Tunnel) -> None:
    """The pod's other requests end with it, honestly; the other pod's do not notice; both pods are used afterwards."""
    downloads = [asyncio.create_task(get(tunnel, path=BIG)) for _ in range(4)]
    await asyncio.sleep(1.0)
    answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/exit?code=0", "-X", "POST", timeout_s=LIMIT_S)
    assert answer.reason == "UpstreamReset", answer.text
    for _ in range(10):
        # until its readiness probe has failed once, requests still go to the pod whose process is being started again
        assert (await get(tunnel)).reason in (None, "ConnectionRefused", "UpstreamReset")
    finished = await asyncio.gather(*downloads)
    cut = {answer.headers["x-pod"] for answer in finished if answer.exit_code == 18}
    whole = {answer.headers["x-pod"] for answer in finished if answer.exit_code == 0}
    assert len(cut) == 1
    assert len(whole) == 1
    assert not cut & whole
    assert all(len(answer.body) == 40 << 20 for answer in finished if answer.exit_code == 0)
    async with asyncio.timeout(60):  # the container's restart has a backoff of its own
        while (await get(tunnel)).text.strip() not in cut:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.1)
