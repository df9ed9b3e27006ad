"""The dashboard as it is read: by keyboard, by screen reader, on a narrow screen, with 200 services, and with names
and errors that would like to be markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.observe.chromium import CHROMIUM, Chromium, Endpoint, Page, chromium, chromium_process
from tests.observe.dashboard_server import STATIC, DashboardServer, Json, broken, forward, service

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there (Debian: apt-get install chromium)")

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
VIEWS = ("", "#/forwards", "#/dns", "#/events", "#/service/cluster.local/shop/db", "#/service/cluster.local/shop/gone")
DRAWN = "document.querySelector('#title').textContent !== 'kube-tunnel'"


def axe() -> Path | None:
    """axe-core, where `make axe` has put it."""
    script = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
    return script if script.is_file() else None


def fill(tunnel: DashboardServer, services: list[Json], *, text: str = "") -> None:
    """Something in each view."""
    now = time.time()
    one = {"zone": "cluster.local", "namespace": "shop", "service": "db"}
    event = {
        "at": now,
        "level": "error",
        "text": f"Health checks fail {text}",
        "service": one,
        "pod": None,
        "command": f"kubectl {text}",
    }
    query = {"at": now, "name": f"api.shop{text}", "type": "A", "code": "NXDOMAIN"}
    listener = {
        "id": "1",
        "target": f"svc/api{text}",
        "zone": "cluster.local",
        "namespace": "shop",
        "port": 80,
        "address": "127.0.0.1:39121",
        "asked_by": "user",
        "failure": "",
    }
    counts = {"cached": 1, "forwarded": 0, "dropped": 0, "limited": 0}
    tunnel.state |= {
        "services": services,
        "forwards": [forward("api-1"), forward("db-1", state="broken", reason=text, last_error=f"cut {text}")],
        "listeners": [listener],
        "dns": {
            "answers": [{"type": "A", "code": "NOERROR", "count": 1}],
            "addresses": ["[::1]:53"],
            "queries": [query],
            **counts,
        },
        "events": [event],
    }


def hostile() -> list[Json]:
    error = {"reason": MARKUP, "detail": MARKUP + "x" * 300, "command": f"echo '{MARKUP}'", "at": time.time()}
    ports = [{"port": 80, "name": MARKUP, "protocol": "TCP"}]
    pods = [
        {
            "pod": MARKUP,
            "ready": False,
            "state": MARKUP,
            "streams": 0,
            "health": MARKUP,
            "failing": MARKUP,
            "node": MARKUP,
        }
    ]
    return [
        broken("db", last_error=error, ports=ports, pods=pods),
        service(MARKUP, MARKUP, ports=ports, health=MARKUP),
        service("a" * 63, "n" * 63),
    ]


def many() -> list[Json]:
    return [broken(f"db-{i}") if i % 70 == 3 else service(f"reconciliation-{i}", f"team-{i % 7}") for i in range(200)]


def words(line: str) -> list[str]:
    """What a shell makes of a curl command."""
    script = f"curl() {{ printf '%s\\n' \"$@\"; }}; {line}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10).stdout.splitlines()


async def open_each(page: Page, tunnel: DashboardServer) -> AsyncIterator[str]:
    for view in VIEWS:
        await page.goto("about:blank")
        await page.goto(tunnel.url + view)
        await page.until(DRAWN)
        yield view


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with chromium_process(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
async def browser(endpoint: Endpoint) -> AsyncIterator[Chromium]:
    async with chromium(endpoint) as running:
        yield running


@needs_chromium
async def test_markup_shows_as_text_and_nothing_is_loaded_from_elsewhere(browser: Chromium) -> None:
    async with DashboardServer() as tunnel, browser.page() as page:
        fill(tunnel, hostile(), text=MARKUP)
        seen = 0
        async for view in open_each(page, tunnel):
            for tag in ("img", "main script", "iframe"):
                assert await page.evaluate(f"document.querySelector('{tag}')") is None, view
            seen += (await page.text("body")).count(MARKUP)
            assert await page.violations() == []
        assert seen >= 10
        assert page.complaints == []
        origin = f"http://127.0.0.1:{tunnel.port}/"
        assert [url for url in page.requested if not url.startswith((origin, "about:blank"))] == []


@needs_chromium
@pytest.mark.parametrize(
    ("width", "services"), [(320, hostile), (375, list), (375, many), (1280, hostile), (1280, many)]
)
async def test_nothing_sticks_out(browser: Chromium, width: int, services: Callable[[], list[Json]]) -> None:
    async with DashboardServer() as tunnel, browser.page(width, 800) as page:
        if found := services():
            fill(tunnel, found, text="an error of some length, " * 8)
        async for view in open_each(page, tunnel):
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, view
            cut = await page.evaluate(
                """[...document.querySelectorAll("main *, .top *")].filter((node) => node.offsetParent
                   && !node.closest(".heard, thead, ol") && node.getBoundingClientRect().right > innerWidth + 1)
                   .map((node) => node.outerHTML.slice(0, 120))"""
            )
            assert cut == [], view


@needs_chromium
async def test_200_services_are_updated_without_a_new_element(browser: Chromium) -> None:
    async with DashboardServer(many()) as tunnel, browser.page() as page:
        await page.goto(tunnel.url)
        await page.until("document.querySelectorAll('#services tbody').length === 200")
        assert await page.text("h1") == "3 of 200 services are failing"
        await page.evaluate(
            """window.added = 0;
            new MutationObserver((changes) => { for (const { addedNodes } of changes)
              added += [...addedNodes].filter((node) => node.nodeType === 1).length; })
            .observe(document.body, {childList: true, subtree: true})"""
        )
        for turn in range(1, 6):
            for one in many():
                tunnel.send("service", one | {"requests_per_s": 100.0 + turn, "streams": turn})
            await page.until(
                f"[...document.querySelectorAll('[data-f=rate]')].every((c) => c.textContent === '{100 + turn}')"
            )
        assert await page.evaluate("added") == 0


@needs_chromium
async def test_the_keyboard_goes_through_in_reading_order(browser: Chromium) -> None:
    async with DashboardServer([service("api")]) as tunnel, browser.page() as page:
        await page.goto(tunnel.url)
        await page.until("document.querySelectorAll('#services tbody').length === 1")
        stops: list[str] = []
        for _ in range(40):
            await page.press("Tab")
            stop = await page.evaluate(
                """(() => { const node = document.activeElement;
                  if (node === document.body) return null;
                  const { outlineStyle, outlineWidth } = getComputedStyle(node);
                  if (outlineStyle === "none" || parseFloat(outlineWidth) < 2) throw new Error(node.outerHTML);
                  return node.id || node.dataset.sort || node.dataset.f || node.textContent.trim(); })()"""
            )
            if stop is None or stop in stops:
                break
            stops.append(stop)
        assert stops[:3] == ["Skip to the content", "kube-tunnel", "Services 1"]
        rest = ["pause", "theme", "filter", "refresh", "status", "name", "link", "copy", "forward", "log"]
        assert [stop for stop in stops if stop in rest] == rest
        await page.evaluate("document.querySelector('.skip').focus()")
        await page.press("Enter")
        await page.until("document.activeElement.id === 'content'")
        assert await page.text("h1") == "The one service in use is healthy"


@needs_chromium
async def test_motion_only_where_it_is_wanted(browser: Chromium) -> None:
    async with DashboardServer() as tunnel:
        fill(tunnel, [service("api")])
        for reduced in (True, False):
            async with browser.page(reduced_motion=reduced) as page:
                await page.goto(tunnel.url)
                await page.until(DRAWN)
                moving = await page.evaluate("getComputedStyle(document.querySelector('#events li')).animationName")
                assert moving == ("none" if reduced else "arrive")


@needs_chromium
async def test_no_services_says_what_to_do(browser: Chromium) -> None:
    async with DashboardServer() as tunnel, browser.page() as page:
        tunnel.state["tunnel"]["zones"] = ["prod.local", "cluster.local"]
        await page.goto(tunnel.url)
        await page.until(DRAWN)
        assert await page.text("h1") == "No service is in use yet"
        line = f"curl -x http://127.0.0.1:{tunnel.port} http://my-service.shop.svc.prod.local/"
        assert line in await page.text("#no-services")


@needs_chromium
async def test_lines_for_the_shell_are_quoted(browser: Chromium) -> None:
    async with DashboardServer([service("api")]) as tunnel, browser.page() as page:
        await page.goto(tunnel.url)
        await page.until(DRAWN)
        name = "a'; touch /tmp/x; '"
        facts = json.dumps(service(name))
        line = await page.evaluate(
            f"import('/dashboard/format.js').then((m) => m.tryLine({facts}, {{port: 80, name: 'http'}}))"
        )
        assert words(line)[-1] == f"http://{name}.shop.svc.cluster.local/"


@needs_chromium
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375)])
async def test_axe_finds_nothing_serious(browser: Chromium, scheme: str, width: int) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe-core is not there (make axe)")
    async with DashboardServer() as tunnel, browser.page(width, 800, scheme) as page:
        fill(tunnel, [*hostile(), service("cart", ready=1, error_rate=0.1), service("mail", health="unknown")])
        async for view in open_each(page, tunnel):
            await page.evaluate(script.read_text())
            found = await page.evaluate(
                """axe.run().then(({violations}) => violations.map(({id, impact, nodes}) =>
                   `${impact} ${id}: ${nodes[0].html} ${nodes[0].failureSummary}`))"""
            )
            assert [one for one in found if not one.startswith(("minor", "moderate"))] == [], view


def test_the_stand_in_speaks_as_the_api_is_described() -> None:
    tunnel = DashboardServer()
    fill(tunnel, [service("api"), broken("db"), service("cart", health="degraded")])
    description = json.loads((STATIC.parent / "openapi.json").read_text())
    schema = {"$ref": "#/components/schemas/Snapshot", "components": description["components"]}
    Draft202012Validator(schema).validate(tunnel.state)


def test_the_files_hold_no_inline_code_and_no_foreign_address() -> None:
    files = [file for file in STATIC.iterdir() if file.is_file()]
    assert {file.suffix for file in files} == {".html", ".css", ".js", ".svg"}
    for file in files:
        text = file.read_text()
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in text, (file.name, forbidden)
        addresses = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org", "http://my"}
        assert addresses == set(), file.name
    page = (STATIC / "dashboard.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page) == []


def test_every_file_that_is_asked_for_is_there() -> None:
    names = {file.name for file in STATIC.iterdir() if file.is_file()}
    asked = {
        name
        for file in STATIC.iterdir()
        if file.is_file()
        for name in re.findall(r'"/dashboard/([\w.]+)"', file.read_text())
    }
    assert asked == names - {"dashboard.html"}


def test_every_element_that_a_script_names_is_in_the_page() -> None:
    page = (STATIC / "dashboard.html").read_text()
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        named = set(re.findall(r'\$\("([\w-]+)"\)', text)) | set(re.findall(r'"(t-[\w]+)"', text))
        assert named <= ids, script.name
