"""A headless Chromium driven over the DevTools protocol, with everything that a page must not do written down.

The protocol is the browser's own (Debian's package chromium), so no driver and no Node.js is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 30.0

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars", "--no-proxy-server",
    "--remote-debugging-port=0",
)  # fmt: skip
_WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));
"""
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "/": 191}


class Endpoint(NamedTuple):
    """Where a browser is driven."""

    port: int
    path: str


class Page:
    """One tab.

    Attributes:
        complaints: console errors and warnings, uncaught exceptions, failed loads.
        requested: every URL that the page asked for.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded: asyncio.Future[None] | None = None
        self._reading = asyncio.create_task(self._read())

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await reply

    async def begin(self, width: int, height: int, scheme: str, *, reduced_motion: bool) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")
        await self.command("Page.addScriptToEvaluateOnNewDocument", source=_WATCH_POLICY)
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        if reduced_motion:
            features.append({"name": "prefers-reduced-motion", "value": "reduce"})
        await self.command("Emulation.setEmulatedMedia", features=features)
        await self.command("Emulation.setFocusEmulationEnabled", enabled=True)

    async def goto(self, url: str) -> None:
        """Until it is loaded."""
        loaded = self._loaded = asyncio.get_running_loop().create_future()
        answer = await self.command("Page.navigate", url=url)
        if "loaderId" in answer:  # else only the fragment is another
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await loaded

    async def evaluate(self, expression: str) -> Any:
        """What the expression comes to; a promise is awaited."""
        answer = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {json.dumps(answer['exceptionDetails'])[:2000]}")
        return answer["result"].get("value")

    async def until(self, condition: str, timeout_s: float = 10.0) -> None:
        """Waits in the page until the condition is true."""
        came = await self.evaluate(
            f"""new Promise((done) => {{
              const end = performance.now() + {timeout_s * 1000};
              const look = () => {{
                let holds = false;
                try {{ holds = Boolean({condition}); }} catch {{}} // of an element that is still to come
                if (holds || performance.now() > end) done(holds);
                else setTimeout(look, 10);
              }};
              look();
            }})"""
        )
        if not came:
            shown = await self.evaluate("document.body.innerText")
            raise AssertionError(f"not within {timeout_s} s: {condition}\n{self.complaints}\n{shown[:3000]}")

    async def text(self, selector: str) -> str:
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        """A mouse click in its middle, when it is shown; nothing may cover it there."""
        await self.until(f"document.querySelector({json.dumps(selector)}).getClientRects().length")
        x, y = await self.evaluate(
            f"""(() => {{
              const node = document.querySelector({json.dumps(selector)});
              node.scrollIntoView({{block: "center", behavior: "instant"}});
              const box = node.getBoundingClientRect();
              const at = [box.x + box.width / 2, box.y + box.height / 2];
              const hit = document.elementFromPoint(...at);
              if (!node.contains(hit)) throw new Error(`covered by ${{hit?.outerHTML.slice(0, 200)}}`);
              return at;
            }})()"""
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def move_mouse(self, x: int, y: int) -> None:
        await self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def press(self, key: str, *, shift: bool = False) -> None:
        event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
        typed = {"Enter": "\r", " ": " ", "/": "/"}.get(key)
        await self.command("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": typed} if typed else {}))
        await self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    async def type(self, text: str) -> None:
        await self.command("Input.insertText", text=text)

    async def violations(self) -> list[str]:
        """Of the content security policy."""
        return list(await self.evaluate("window.violations"))

    async def aclose(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message)
            if "id" in event:
                reply = self._replies.pop(event["id"])
                if reply.done():
                    continue
                if "error" in event:
                    reply.set_exception(AssertionError(str(event["error"])))
                else:
                    reply.set_result(event["result"])
            else:
                self._note(event["method"], event["params"])

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired" if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(None)
            case "Network.requestWillBeSent":
                self.requested.append(facts["request"]["url"])
            case "Runtime.exceptionThrown":
                details = facts["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning", "assert"):
                self.complaints.append(f"console.{facts['type']}: {facts['args']}")
            case "Log.entryAdded" if facts["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")


class Chromium:
    """The browser; each page has cookies and storage of its own."""

    def __init__(self, port: int, browser: Page) -> None:
        self._port = port
        self._browser = browser

    @contextlib.asynccontextmanager
    async def page(
        self, width: int = 1280, height: int = 800, scheme: str = "light", *, reduced_motion: bool = True
    ) -> AsyncIterator[Page]:
        context = (await self._browser.command("Target.createBrowserContext"))["browserContextId"]
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        await self._browser.command("Browser.grantPermissions", permissions=permissions, browserContextId=context)
        target = await self._browser.command("Target.createTarget", url="about:blank", browserContextId=context)
        page = Page(await _attach(f"ws://127.0.0.1:{self._port}/devtools/page/{target['targetId']}"))
        try:
            await page.begin(width, height, scheme, reduced_motion=reduced_motion)
            yield page
        finally:
            await page.aclose()
            await self._browser.command("Target.disposeBrowserContext", browserContextId=context)


async def _attach(url: str) -> ClientConnection:
    return await connect(url, max_size=None, proxy=None, compression=None)


@contextlib.contextmanager
def chromium_process(profile: Path) -> Iterator[Endpoint]:
    """Runs it with an empty profile."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    port_file = profile / "DevToolsActivePort"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
                assert process.poll() is None, "Chromium ended at once"
                assert time.monotonic() < deadline, "Chromium does not start"
                time.sleep(0.02)  # the file is all that tells
            port, path = port_file.read_text().splitlines()
            yield Endpoint(int(port), path)
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def chromium(endpoint: Endpoint) -> AsyncIterator[Chromium]:
    """The running browser, for one test."""
    browser = Page(await _attach(f"ws://127.0.0.1:{endpoint.port}{endpoint.path}"))
    try:
        yield Chromium(endpoint.port, browser)
    finally:
        await browser.aclose()
