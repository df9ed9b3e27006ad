"""mitmweb's page in a real browser, as its user sees the flows: Service, comment, mark, filter, content view."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.inspect.conftest import PASSWORD, Web
from tests.observe.chromium import CHROMIUM, Page, chromium, chromium_process

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there (Debian: apt-get install chromium)")

ECHO = "echo.demo.svc.cluster.local"
ROWS = "[...document.querySelectorAll('.flow-table tbody tr[class]')]"
SHOWN = f"{ROWS}.map((row) => row.innerText)"
PATIENCE_S = 20.0


def click(selector: str, text: str) -> str:
    """Clicks on the first that begins so; whether there was one."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        f".some((node) => node.innerText.trim().startsWith({json.dumps(text)}) && (node.click(), true))"
    )


@pytest.fixture
async def page(web: Web, tmp_path: Path) -> AsyncIterator[Page]:
    """On the list of flows, after one request that went well and one that was refused."""
    assert (await asyncio.to_thread(web.get, ECHO)).status == 200
    assert (await asyncio.to_thread(web.get, "nothere.demo")).status == 404
    with chromium_process(tmp_path / "profile") as endpoint:
        async with chromium(endpoint) as browser, browser.page(1600, 900) as opened:
            await opened.goto(f"http://127.0.0.1:{web.web_port}/?token={PASSWORD}")
            yield opened


async def test_the_list_the_filter_and_the_content_view(page: Page) -> None:
    await page.until(f"{ROWS}.length === 2", PATIENCE_S)
    went, refused = await page.evaluate(SHOWN)
    assert ECHO in went
    assert ":8080 · zone-a · " in went
    assert "ServiceNotFound" in refused
    assert "⛔" in refused
    await page.click(".filter-input input")
    await page.type("~comment zone-a")
    await page.until(f"{ROWS}.length === 1 && {ROWS}[0].innerText.includes('{ECHO}')", PATIENCE_S)
    await page.evaluate(f"{ROWS}[0].click()")
    await page.until(click("nav a", "Response"), PATIENCE_S)
    await page.until(click(".flow-detail .btn", "View:"), PATIENCE_S)
    await page.until(click("li a", "kubernetes"), PATIENCE_S)
    detail = "document.querySelector('.flow-detail').innerText"
    await page.until(f"{detail}.includes('pod: demo/echo-') && {detail}.includes('app: echo')", PATIENCE_S)
