"""The dashboard of a real tunnel, with the simulated cluster behind it, in a real browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.observe.chromium import CHROMIUM, Endpoint, Page, chromium, chromium_process
from tests.tunnel import Answer, Tunnel, curl

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there (Debian: apt-get install chromium)")

ROW = "[...document.querySelectorAll('#services tbody')].find((row) => row.innerText.includes('{}'))"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with chromium_process(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
async def cluster() -> AsyncIterator[SimCluster]:
    async with SimCluster() as running:
        yield running


@pytest.fixture
async def tunnel(tmp_path: Path, cluster: SimCluster) -> AsyncIterator[Tunnel]:
    kubeconfig = cluster.kubeconfig(tmp_path / "config")
    started = await asyncio.to_thread(lambda: Tunnel(tmp_path, kubeconfig=kubeconfig))
    yield started
    await asyncio.to_thread(started.close)
    assert "Traceback" not in started.log, started.log


@pytest.fixture
async def page(endpoint: Endpoint, tunnel: Tunnel) -> AsyncIterator[Page]:
    """Opened at the address that the tunnel logs."""
    address = await asyncio.to_thread(tunnel.wait_for, r"http://\S+/dashboard#token=\S+")
    async with chromium(endpoint) as browser, browser.page() as opened:
        await opened.goto(address[0])
        await opened.until("document.body.dataset.feed === 'live'")
        yield opened
        assert await opened.violations() == []
        assert opened.complaints == []


async def get(tunnel: Tunnel, host: str) -> Answer:
    return await asyncio.to_thread(tunnel.get, host)


async def test_a_service_shows_with_its_first_request_and_turns_with_its_pods(
    page: Page, tunnel: Tunnel, cluster: SimCluster
) -> None:
    await page.until("document.querySelector('h1').textContent === 'No service is in use yet'")
    assert (await get(tunnel, "pair.demo")).status == 200
    await page.until(ROW.format("pair"), timeout_s=2)
    await page.until(f"{ROW.format('pair')}.innerText.includes('1/1')")
    (pod,) = [pod for pod in cluster.pods("demo") if pod.name.startswith("pair")]
    await cluster.set_ready("demo", pod.name, False)
    await page.until(f"{ROW.format('pair')}.innerText.includes('Its only pod is not ready')")
    assert (await get(tunnel, "pair.demo")).status == 503
    await page.until(f"{ROW.format('pair')}.innerText.includes('kubectl')")
    assert await page.text("h1") == "1 of 1 service is failing"
    await cluster.set_ready("demo", pod.name, True)
    await page.until(f"{ROW.format('pair')}.innerText.includes('1/1')")
    await cluster.kill_pod("demo", pod.name)
    await page.until(f"{ROW.format('pair')}.innerText.includes('No pod stands behind it')")
    await page.until(f"{ROW.format('pair')}.innerText.includes('Failing')")


async def test_a_local_port_is_opened_and_closed_and_a_forward_too(page: Page, tunnel: Tunnel) -> None:
    assert (await get(tunnel, "echo.demo")).status == 200
    await page.until(f"{ROW.format('echo')}?.querySelector('[data-f=forward]:not([hidden])')")
    await page.click("#services [data-f=forward]")
    await page.until("document.querySelector('#notice').innerText.includes(' is now on ')")
    found = re.search(r"is now on (\S+:\d+)\.", await page.text("#notice"))
    assert found is not None
    assert (await asyncio.to_thread(curl, f"http://{found[1]}/hostname")).status == 200
    await page.click("[data-nav=forwards]")
    await page.until(f"document.querySelector('#listeners').innerText.includes('{found[1]}')")
    await page.click("#listeners [data-f=close]")
    await page.until("document.querySelector('#listeners').hidden")
    assert (await asyncio.to_thread(curl, f"http://{found[1]}/hostname")).exit_code == 7  # could not connect
    await page.until("document.querySelector('#forwards [data-f=close]')")
    await page.click("#forwards [data-f=close]")
    await page.until("document.querySelector('#notice').innerText.includes('The forward to echo-')")
    await page.click("[data-nav=services]")
    await page.click("#refresh")
    await page.until("document.querySelector('#notice').innerText.includes('read anew')")


async def test_the_end_of_the_tunnel_is_told(page: Page, tunnel: Tunnel) -> None:
    await asyncio.to_thread(tunnel.close)
    await page.until("document.querySelector('#lost').innerText.includes('Disconnected since')")
    page.complaints.clear()  # the browser's own, of connections that nobody takes
