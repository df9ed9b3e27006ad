"""The dashboard in a real browser: what changes in the tunnel changes on the page, and what a user does is done."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.observe.chromium import CHROMIUM, Chromium, Endpoint, Page, chromium, chromium_process
from tests.observe.dashboard_server import TOKEN, DashboardServer, broken, forward, service

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there (Debian: apt-get install chromium)")

ROWS = "[...document.querySelectorAll('#services tbody')]"
NAMES = "[...document.querySelectorAll('#services tbody .name a')].map((a) => a.textContent)"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with chromium_process(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
async def browser(endpoint: Endpoint) -> AsyncIterator[Chromium]:
    async with chromium(endpoint) as running:
        yield running


@pytest.fixture
async def tunnel() -> AsyncIterator[DashboardServer]:
    async with DashboardServer([service("api"), service("cart", "store")]) as running:
        yield running


@pytest.fixture
async def page(browser: Chromium, tunnel: DashboardServer) -> AsyncIterator[Page]:
    """On the services of `tunnel`. A page that complains fails its test."""
    async with browser.page() as opened:
        await opened.goto(f"{tunnel.url}#token={TOKEN}")
        await opened.until(f"{ROWS}.length === 2")
        yield opened
        assert await opened.violations() == []
        assert opened.complaints == []


async def shows_rows(page: Page, *names: str) -> None:
    await page.until(f"JSON.stringify({NAMES}) === {json.dumps(json.dumps(names, separators=(',', ':')))}")


async def test_a_new_service_shows_without_a_reload(page: Page, tunnel: DashboardServer) -> None:
    await page.evaluate("window.same = true")
    tunnel.send("service", service("pay", requests_per_s=3.4))
    await page.until(f"{ROWS}.length === 3", timeout_s=2)
    assert await page.evaluate("window.same") is True
    assert await page.text("[data-count=services]") == "3"


async def test_a_row_is_updated_in_place(page: Page, tunnel: DashboardServer) -> None:
    await page.evaluate(f"window.row = {ROWS}[0]; row.mark = 1")
    tunnel.send("service", service("api", requests_per_s=987.6, p99_ms=4321.0, error_rate=0.034))
    await page.until("row.innerText.includes('988')")
    shown = await page.evaluate("row.innerText")
    assert "4,321" in shown
    assert "3.4 %" in shown
    assert await page.evaluate(f"{ROWS}[0].mark") == 1


async def test_a_service_that_breaks_comes_first_and_says_why(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service", broken("cart", "store"))
    await shows_rows(page, "cart", "api")
    assert await page.text("h1") == "1 of 2 services is failing"
    assert await page.evaluate("document.title") == "(1) kube-tunnel"
    row = await page.text("#services tbody")
    assert "Failing" in row
    assert "None of 2 pods is ready." in row
    assert "None of the 2 endpoints of cart" in row
    assert "kubectl -n store get endpointslices" in row
    assert await page.text("#announce") == "1 of 2 services is failing"
    tunnel.send("service", service("cart", "store"))
    await page.until("document.querySelector('h1').textContent === 'All 2 services are healthy'")
    assert await page.evaluate("document.querySelector('#services .problem:not([hidden])')") is None


async def test_the_gravest_fault_is_told_first(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service", service("cart", "store", ready=1, health="degraded", error_rate=0.6))
    await shows_rows(page, "cart", "api")
    assert "60\N{NO-BREAK SPACE}% of requests fail." in await page.text("#services .problem")
    tunnel.send("service", service("cart", "store", ready=1, health="degraded", error_rate=0.01))
    await page.until("document.querySelector('h1').textContent === '1 of 2 services is degraded'")
    assert "1 of 2 pods is not ready." in await page.text("#services .problem")
    nothing = {"sparkline": [0] * 60, "error_rate": 0.0, "p50_ms": None, "p99_ms": None}
    tunnel.send("service", service("cart", "store", pods=[], ready=0, total=0, health="unhealthy", **nothing))
    await page.until("document.querySelector('#services .problem').innerText.includes('No pod stands behind it.')")
    assert await page.text("#services [data-f=errors]") == "\u2013"


async def test_the_remedy_is_of_the_fault_that_is_told(page: Page, tunnel: DashboardServer) -> None:
    """Not of what a client was told last, which may be about something else, and over."""
    old = {"reason": "ClusterUnreachable", "detail": "No answer.", "command": "cluster-info", "at": time.time() - 90}
    cart = service("cart", "store", health="degraded", last_error=old)
    cart["pods"][1]["failing"] = "port 9999: Nothing listens there."
    tunnel.send("service", cart)
    await shows_rows(page, "cart", "api")
    row = await page.text("#services .problem")
    assert "Health checks of a port fail. cart-2, port 9999: Nothing listens there." in row
    assert "kubectl -n store get pods -l app=cart" in row
    assert "No answer" not in row
    tunnel.send("service", broken("cart", "store", last_error=old, error_rate=0.0))
    await page.until("document.querySelector('#services .problem').innerText.includes('None of 2 pods is ready.')")
    assert "No answer" not in await page.text("#services .problem")
    tunnel.send("service", service("cart", "store", error_rate=0.6, last_error=old))
    await page.until("document.querySelector('#services .problem').innerText.includes('No answer. 1 min ago')")
    assert "cluster-info" in await page.text("#services .problem")


async def test_pods_that_nobody_watches_are_told_as_of_then(page: Page, tunnel: DashboardServer) -> None:
    """They are no fault of now, nor are they counted."""
    tunnel.send(
        "service", broken("cart", "store", as_of=time.time() - 750, health="unknown", error_rate=0.0, last_error=None)
    )
    await page.until("document.querySelector('h1').textContent === 'None of 2 services shows a fault'")
    await shows_rows(page, "api", "cart")
    row = await page.text("#services tbody:last-child")
    assert "Unchecked" in row
    assert "0/2" not in row
    assert "2 of 2 pods ready" in await page.text("#lead")
    title = await page.evaluate("document.querySelector('#services tbody:last-child [data-f=pods]').title")
    assert title == "Not watched: 0 of 2 were ready 12 min ago"
    await page.click("#services tbody:last-child .name a")
    await page.until("document.querySelector('#s-as-of').innerText.includes('how they were 12 min ago')")
    tunnel.send("service", service("cart", "store"))
    await page.until("document.querySelector('#s-as-of').hidden")


async def test_a_service_that_is_gone_goes(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service_gone", {"zone": "cluster.local", "namespace": "shop", "service": "api"})
    await shows_rows(page, "cart")


async def test_forwards_dns_and_events_are_live_too(page: Page, tunnel: DashboardServer) -> None:
    await page.click("[data-nav=forwards]")
    await page.until("!document.querySelector('#no-forwards').hidden")
    went = "the API server went away"
    tunnel.send("forward", forward("api-1", state="broken", reason=went, last_error=went, last_error_at=time.time()))
    await page.until(f"document.querySelector('#forwards').innerText.split({went!r}).length === 2")  # told once
    tunnel.send("forward", forward("api-1", bytes_received=3 * 1024 * 1024))
    await page.until("document.querySelector('#forwards').innerText.includes('3.0 MiB')")
    tunnel.send("forward_gone", {"zone": "cluster.local", "namespace": "shop", "pod": "api-1"})
    await page.until("document.querySelector('#forwards').hidden")
    await page.click("[data-nav=dns]")
    await page.until("document.querySelector('#no-dns').innerText.includes('kube-tunnel netsetup dns')")
    query = {"at": time.time(), "name": "api.shop.svc.cluster.local", "type": "A", "code": "NXDOMAIN"}
    answers = [{"type": "A", "code": "NXDOMAIN", "count": 1234}]
    tunnel.send("dns", {"answers": answers, "cached": 1, "addresses": ["127.0.0.1:5353"], "queries": [query]})
    await page.until("document.querySelector('#queries').innerText.includes('NXDOMAIN')")
    assert await page.text("#d-answers") == "1,234"
    happened = {"at": time.time(), "level": "error", "text": "Health checks fail", "command": "kubectl get pod"}
    tunnel.send("event", happened)
    await page.until("document.querySelector('#events').innerText.includes('Health checks fail')")
    assert "kubectl get pod" not in await page.text("#events")
    await page.click("#events [data-f=copy]")
    await page.until("document.querySelector('#events [data-f=copy]').innerText === 'Copied'")
    assert await page.evaluate("navigator.clipboard.readText()") == "kubectl get pod"
    await page.click("[data-nav=events]")
    await page.until("document.querySelector('#events').innerText.includes('kubectl get pod')")


async def test_the_filter_looks_at_names_pods_and_errors(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service", broken("db"))
    await page.until(f"{ROWS}.length === 3")
    await page.press("/")
    assert await page.evaluate("document.activeElement.id") == "filter"
    await page.type("STORE")
    await shows_rows(page, "cart")
    assert await page.text("#found") == "1 of 3"
    await page.evaluate("filter.select()")
    await page.type("api-2")
    await shows_rows(page, "api")
    await page.evaluate("filter.select()")
    await page.type("endpoints ready")
    await shows_rows(page, "db")
    await page.evaluate("filter.select()")
    await page.type("nothing like it")
    await page.until("!document.querySelector('#none-found').hidden")
    await page.click("#clear-filter")
    await shows_rows(page, "db", "api", "cart")


async def test_the_tallies_show_only_those_of_a_status(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service", broken("db"))
    tunnel.send("service", service("mail", health="unknown"))
    await page.until(f"{ROWS}.length === 4")
    await page.click(".tally[data-tone=bad]")
    await shows_rows(page, "db")
    assert await page.evaluate("document.querySelector('.tally[data-tone=bad]').ariaPressed") == "true"
    await page.click(".tally[data-tone=bad]")
    await shows_rows(page, "db", "api", "cart", "mail")


async def test_columns_sort(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("service", service("cart", "store", p99_ms=9000.0))
    await page.until(f"{ROWS}[1].innerText.includes('9,000')")
    await page.click("[data-sort=p99]")
    await shows_rows(page, "cart", "api")
    assert await page.evaluate("document.querySelector('[data-sort=p99]').closest('th').ariaSort") == "descending"
    await page.click("[data-sort=name]")
    await shows_rows(page, "api", "cart")


async def test_rows_stand_still_under_the_pointer_and_the_focus(page: Page, tunnel: DashboardServer) -> None:
    await page.evaluate("document.querySelectorAll('#services tbody .name a')[1].focus()")
    tunnel.send("service", broken("cart", "store"))
    await page.until(f"{ROWS}[1].innerText.includes('Failing')")
    assert await page.evaluate(NAMES) == ["api", "cart"]
    assert await page.evaluate("document.activeElement.textContent") == "cart"
    await page.evaluate("document.activeElement.blur()")
    await shows_rows(page, "cart", "api")
    x, y = await page.evaluate(f"(({{x, y}}) => [x + 20, y + 20])({ROWS}[1].getBoundingClientRect())")
    await page.move_mouse(x, y)
    tunnel.send("service", service("cart", "store"))
    await page.until(f"{ROWS}[0].innerText.includes('Healthy')")
    assert await page.evaluate(NAMES) == ["cart", "api"]
    await page.move_mouse(1, 1)
    await shows_rows(page, "api", "cart")


async def test_paused_updates_wait(page: Page, tunnel: DashboardServer) -> None:
    await page.click("#pause")
    assert await page.text("#feed-text") == "Paused"
    # the state goes on behind it
    tunnel.send("service", service("pay"))
    await page.evaluate("new Promise((done) => setTimeout(done, 500))")
    assert await page.evaluate(NAMES) == ["api", "cart"]
    await page.click("#pause")
    await shows_rows(page, "api", "cart", "pay")


async def test_a_lost_connection_is_told_of_and_taken_up_again(page: Page, tunnel: DashboardServer) -> None:
    assert await page.text("#feed-text") == "Live"
    await tunnel.stop()
    await page.until("!document.querySelector('#lost').hidden")
    assert await page.text("#feed-text") == "Disconnected"
    assert "Disconnected since " in await page.text("#lost")
    assert await page.evaluate(NAMES) == ["api", "cart"]
    tunnel.state["services"].append(service("pay"))
    await tunnel.start()
    await page.click("#reconnect")
    await page.until("document.querySelector('#lost').hidden")
    await shows_rows(page, "api", "cart", "pay")
    assert await page.text("#feed-text") == "Live"
    # the browser itself writes down that nobody listened
    assert all("ERR_" in complaint for complaint in page.complaints)
    page.complaints.clear()


async def test_it_comes_back_by_itself(page: Page, tunnel: DashboardServer) -> None:
    before = tunnel.streams_opened
    await tunnel.stop()
    await page.until("!document.querySelector('#lost').hidden")
    await tunnel.start()
    await page.until("document.body.dataset.feed === 'live'")
    assert tunnel.streams_opened > before
    page.complaints.clear()


async def test_a_tunnel_that_hangs_is_told_of(page: Page, tunnel: DashboardServer) -> None:
    """Its connection stays open; nothing but the silence tells."""
    await page.until("document.body.dataset.feed === 'live'")
    tunnel.hangs = True
    quick = "window.setTimeout = ((wait) => (done, ms) => wait(done, ms > 15_000 ? 100 : ms))(setTimeout)"
    await page.evaluate(quick)  # only the patience with a silent tunnel is so long
    tunnel.send("alive", {"status": "ok"})
    await page.until("document.body.dataset.feed === 'lost'")
    assert "Disconnected since" in await page.text("#lost")


async def test_a_cluster_that_is_away_is_told_above_all(page: Page, tunnel: DashboardServer) -> None:
    away = {"status": "unreachable", "reason": "ClusterUnreachable", "detail": f"No answer. {MARKUP}"}
    tunnel.send("alive", away | {"command": "kubectl cluster-info"})
    await page.until("!document.querySelector('#away').hidden")
    assert await page.text("#away p") == f"Requests cannot reach the cluster. No answer. {MARKUP}"
    await page.click("#away-copy")
    await page.until("document.querySelector('#away-copy').innerText === 'Copied'")
    tunnel.send("alive", away | {"command": None})
    await page.until("document.querySelector('#away-remedy').hidden")
    tunnel.send("alive", {"status": "ok", "context": "kind-dev"})
    await page.until("document.querySelector('#away').hidden")


async def test_the_token_leaves_the_address_and_goes_with_actions(page: Page, tunnel: DashboardServer) -> None:
    assert "token" not in await page.evaluate("location.href")
    listener = {"id": "7", "target": "svc/api", "namespace": "shop", "port": 80, "address": "127.0.0.1:39121"}
    listener |= {"zone": "cluster.local", "asked_by": "user", "failure": ""}
    tunnel.answer = 200, {"listeners": [listener]}
    await page.click("#services [data-f=forward]")
    method, path, body = (await tunnel.actions(1))[0]
    assert (method, path) == ("POST", "/api/v1/listeners")
    assert body == {"target": "svc/api", "namespace": "shop", "zone": "cluster.local", "ports": ["80"]}
    await page.until("document.querySelector('#notice').innerText.includes('127.0.0.1:39121')")
    tunnel.send("listener", listener)
    await page.click("[data-nav=forwards]")
    await page.until("document.querySelector('#listeners').innerText.includes('127.0.0.1:39121')")
    await page.click("#listeners [data-f=close]")
    assert (await tunnel.actions(2))[1][:2] == ("DELETE", "/api/v1/listeners/7")
    tunnel.send("listener", listener | {"asked_by": "settings"})
    await page.until("document.querySelector('#listeners').innerText.includes('from the settings')")
    assert await page.evaluate("document.querySelector('#listeners [data-f=close]').hidden") is True
    tunnel.send("listener", listener | {"address": "", "failure": f"Port 80 is taken. {MARKUP}"})
    await page.until("document.querySelector('#listeners').innerText.includes('not open')")
    assert f"Port 80 is taken. {MARKUP}" in await page.text("#listeners")
    assert await page.evaluate("document.querySelector('#listeners [data-f=copy]').hidden") is True
    assert all(TOKEN not in url for url in page.requested)


async def test_a_forward_is_closed(page: Page, tunnel: DashboardServer) -> None:
    tunnel.send("forward", forward("api-1", streams=3))
    await page.click("[data-nav=forwards]")
    await page.until("document.querySelectorAll('#forwards tbody').length === 1")
    tunnel.answer = 200, {"namespace": "shop", "pod": "api-1", "state": "draining", "streams": 3}
    await page.click("#forwards [data-f=close]")
    wanted = {"zone": "cluster.local", "namespace": "shop", "pod": "api-1"}
    assert (await tunnel.actions(1))[0] == ("POST", "/api/v1/forwards/close", wanted)
    await page.until("document.querySelector('#notice').innerText.includes('when its 3 open streams end')")
    tunnel.send("forward", forward("api-1", streams=3, state="draining", reason="asked for"))
    await page.until("document.querySelector('#forwards').innerText.includes('asked for')")
    assert await page.evaluate("document.querySelector('#forwards [data-f=close]').hidden") is True


async def test_a_failed_action_is_told_as_text(page: Page, tunnel: DashboardServer) -> None:
    detail = f"Port 5432 is taken {MARKUP}"
    tunnel.answer = 409, {"title": "Taken", "detail": detail, "command": "ss -ltnp"}
    await page.click("#services [data-f=forward]")
    await page.until(f"document.querySelector('#notice').innerText.includes({json.dumps(detail)})")
    assert await page.text("#notice-command") == "ss -ltnp"
    assert await page.evaluate("document.querySelector('#notice img')") is None
    assert all("409" in complaint for complaint in page.complaints)
    page.complaints.clear()


async def test_a_refresh_that_failed_is_no_success(page: Page, tunnel: DashboardServer) -> None:
    tunnel.answer = 200, {"services": 2, "failed": ["No answer. See: kubectl cluster-info"]}
    await page.click("#refresh")
    await page.until("document.querySelector('#notice').dataset.tone === 'bad'")
    assert await page.text("#notice-text") == "1 of 2 services could not be read. No answer."
    assert await page.text("#notice-command") == "kubectl cluster-info"


async def test_without_a_token_it_is_asked_for(browser: Chromium, tunnel: DashboardServer) -> None:
    async with browser.page() as page:
        await page.goto(tunnel.url)
        await page.until(f"{ROWS}.length === 2")
        await page.click("#refresh")
        await page.until("document.querySelector('#token-dialog').open")
        await page.press("Escape")
        await page.until("!document.querySelector('#token-dialog').open")
        await page.click("#refresh")
        await page.until("document.activeElement.id === 'token'")
        tunnel.answer = 200, {"services": 2, "failed": []}
        await page.type("of-an-earlier-start")
        await page.press("Enter")
        await page.until("document.querySelector('#token-why').textContent.includes('not this tunnel')")
        assert tunnel.asked == []
        await page.type(f"http://localhost:8080/dashboard#token={TOKEN}")
        await page.press("Enter")
        assert (await tunnel.actions(1))[0] == ("POST", "/api/v1/refresh", {})
        await page.until("document.querySelector('#notice').innerText.includes('2 services read anew')")
        assert await page.violations() == []


@pytest.mark.parametrize("secure", [True, False])
async def test_the_remedy_and_the_curl_line_are_copied(page: Page, tunnel: DashboardServer, secure: bool) -> None:
    await page.evaluate("window.clipboard = navigator.clipboard")
    if not secure:  # as at http://10.8.0.2
        await page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    await page.click("#services [data-f=copy]")
    await page.until("document.querySelector('#services [data-f=copy]').innerText === 'Copied'")
    line = f"curl -x http://127.0.0.1:{tunnel.port} http://api.shop.svc.cluster.local/"
    assert await page.evaluate("clipboard.readText()") == line
    tunnel.send("service", broken("api"))
    await page.until("!document.querySelector('#services .problem').hidden")
    await page.click("#services [data-f=copyCommand]")
    await page.until("document.querySelector('#services [data-f=copyCommand]').innerText === 'Copied'")
    assert str(await page.evaluate("clipboard.readText()")).endswith("kubernetes.io/service-name=api")


async def test_a_page_for_one_service(page: Page, tunnel: DashboardServer) -> None:
    ports = [
        {"port": 443, "name": "https", "protocol": "TCP"},
        {"port": 50051, "name": "grpc", "protocol": "TCP"},
        {"port": 5432, "name": "postgres", "protocol": "TCP"},
        {"port": 53, "name": "dns", "protocol": "UDP"},
    ]
    tunnel.send("service", broken("cart", "store", ports=ports))
    tunnel.send("forward", forward("cart-1", "store", streams=0))
    await shows_rows(page, "cart", "api")
    await page.click("#services .name a")
    await page.until("document.querySelector('h1').textContent === 'cart'")
    assert await page.evaluate("document.activeElement.id") == "title"
    assert await page.evaluate("document.title") == "(1) cart · kube-tunnel"
    here = f"127.0.0.1:{tunnel.port}"
    assert await page.evaluate(
        "[...document.querySelectorAll('#ports code:not([hidden])')].map((c) => c.textContent)"
    ) == [
        f"curl -k -x http://{here} https://cart.store.svc.cluster.local/",
        f"grpcurl -plaintext -authority cart.store.svc.cluster.local:50051 {here} list",
        "kube-tunnel forward -n store svc/cart 5432",
    ]
    assert "A port-forward carries TCP alone." in await page.text("#ports")
    assert "NoReadyEndpoints" in await page.text("#s-fault")
    tunnel.answer = 200, {"listeners": [{"id": "1", "address": "127.0.0.1:6000"}]}
    await page.evaluate("document.querySelector('#ports tr:nth-child(3) input').focus()")
    await page.type("6000")
    await page.press("Enter")
    assert (await tunnel.actions(1))[0][2]["ports"] == ["6000:5432"]
    await page.click("#pods [data-f=close]")
    assert (await tunnel.actions(2))[1][2] == {"zone": "cluster.local", "namespace": "store", "pod": "cart-1"}
    tunnel.send("service", service("cart", "store"))
    await page.until("document.querySelector('#s-status').textContent === 'Healthy'")
    tunnel.send("service_gone", {"zone": "cluster.local", "namespace": "store", "service": "cart"})
    await page.until("!document.querySelector('#no-such-service').hidden")


async def test_the_page_of_a_service_without_pods_and_ports(page: Page, tunnel: DashboardServer) -> None:
    command = "kubectl --context kind-dev -n store get service cart"
    tunnel.send("service", service("cart", "store", pods=[], ready=0, total=0, ports=[], command=command))
    await page.evaluate("location.hash = '#/service/cluster.local/store/cart'")
    await page.until("!document.querySelector('#no-pods').hidden")
    assert await page.text("#pods-command") == command
    assert await page.evaluate("document.querySelector('#ports').hidden")


async def test_a_theme_is_kept(page: Page, tunnel: DashboardServer) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)
    await page.click("#theme")
    await page.click("#theme")
    assert await page.text("#theme") == "Theme: dark"
    assert await page.evaluate(ground) != light
    await page.goto(f"{tunnel.url}?again")
    await page.until(f"{ROWS}.length === 2")
    assert await page.text("#theme") == "Theme: dark"


async def test_the_page_of_a_service_tells_which_check_fails(page: Page, tunnel: DashboardServer) -> None:
    sick = service("api")["pods"][0] | {"health": "unhealthy", "failing": f"port 80: HTTP status 500 {MARKUP}"}
    tunnel.send("service", service("api", health="degraded", pods=[sick, service("api")["pods"][1]]))
    await page.until("document.querySelector('h1').textContent === '1 of 2 services is degraded'")
    await page.click("#services .name a")
    await page.until("document.querySelector('#s-reasons').innerText === 'Health checks fail on 1 of 2 pods.'")
    why = "[...document.querySelectorAll('#pods .why')].map((node) => node.hidden ? null : node.innerText)"
    assert await page.evaluate(why) == [f"Checks of port 80: HTTP status 500 {MARKUP}", None]
