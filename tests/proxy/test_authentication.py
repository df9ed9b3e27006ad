"""`proxyauth` in the mode `kube`: each way in asks for credentials, and a Service's own Authorization passes."""

from __future__ import annotations

import asyncio
import base64
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bcrypt
import pytest
from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from tests.tunnel import Tunnel, curl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the pyparsing that mitmproxy's filters use
    from mitmproxy.addons.proxyauth import ProxyAuth
    from mitmproxy.test import taddons, tflow

    from kubetunnel.proxy.authentication import Authentication


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def addons() -> Any:
    stock, ours = ProxyAuth(), Authentication()
    with taddons.context() as context:  # type: ignore[no-untyped-call]
        context.master.addons.add(stock, ours)
        context.configure(stock, proxyauth="user:right")
        yield SimpleNamespace(stock=stock, ours=ours, context=context)


def asked(mode: str = "kube", **headers: str) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    flow.request = http.Request.make("GET", "http://api.shop/")
    flow.request.headers.update(headers)
    flow.request.authority = ""
    return flow


@pytest.mark.parametrize(
    "header", ["", "Basic", "Bearer x", basic("user:wrong"), basic("userright"), "Basic ä", "Basic é="]
)
def test_refused(addons: Any, header: str) -> None:
    flow = asked()
    if header:
        flow.request.headers["Proxy-Authorization"] = header
    addons.stock.requestheaders(flow)
    assert flow.response is not None
    assert flow.response.status_code == 407
    assert flow.response.headers["Proxy-Authenticate"].startswith("Basic ")
    assert flow.response.headers["X-Kube-Tunnel-Error"] == flow.response.json()["reason"] == "Unauthenticated"


def test_a_call_is_refused_as_a_call(addons: Any) -> None:
    flow = asked(**{"Content-Type": "application/grpc"})
    flow.request.http_version = "HTTP/2.0"
    addons.stock.requestheaders(flow)
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.headers["grpc-status"]) == (200, "16")


def test_credentials_go_no_further_and_are_not_kept(addons: Any) -> None:
    flow = asked(**{"Proxy-Authorization": basic("user:right"), "Authorization": "Bearer of-the-service"})
    addons.stock.requestheaders(flow)
    assert flow.response is None
    assert "Proxy-Authorization" not in flow.request.headers
    assert flow.request.headers["Authorization"] == "Bearer of-the-service"
    assert "right" not in str(flow.get_state())


def test_other_modes_are_mitmproxys(addons: Any) -> None:
    flow = asked(mode="reverse:http://api.shop")
    addons.stock.requestheaders(flow)
    assert flow.response is not None
    assert flow.response.status_code == 401


def test_a_change_of_the_option_holds_at_once(addons: Any) -> None:
    def refused() -> bool:
        flow = asked(**{"Proxy-Authorization": basic("user:right")})
        addons.stock.requestheaders(flow)
        return flow.response is not None

    assert not refused()
    addons.context.configure(addons.stock, proxyauth="user:other")
    assert refused()
    addons.context.configure(addons.stock, proxyauth=None)
    assert not refused()


def test_own_pages(addons: Any) -> None:
    request = http.Request.make("GET", "http://10.1.2.3:8080/dashboard")
    assert not addons.ours.permits(request)
    request.headers["Authorization"] = basic("user:right")
    assert addons.ours.permits(request)
    request.headers["Authorization"] = basic("user:wrong")
    assert not addons.ours.permits(request)
    addons.context.configure(addons.stock, proxyauth=None)
    assert addons.ours.permits(request)


def dial(addons: Any, client: Client) -> str | None:
    server = Server(address=("api.shop", 80))
    addons.ours.server_connect(ServerConnectionHookData(server, client))
    return server.error


def test_nothing_is_dialled_for_a_stranger(addons: Any) -> None:
    flow = asked(**{"Proxy-Authorization": basic("user:right")})
    assert dial(addons, flow.client_conn)
    addons.stock.requestheaders(flow)
    assert dial(addons, flow.client_conn) is None
    assert dial(addons, asked().client_conn)
    assert dial(addons, asked(mode="regular").client_conn) is None
    addons.context.configure(addons.stock, proxyauth=None)
    assert dial(addons, asked().client_conn) is None


def test_it_puts_things_back(addons: Any) -> None:
    addons.context.master.addons.remove(addons.ours)
    flow = asked()
    addons.stock.requestheaders(flow)
    assert flow.response is not None
    assert flow.response.status_code == 401


@pytest.fixture
async def guarded(sim: Any, start_tunnel: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Tunnel]:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"user:{hashed}\n")
    options = ["--set", f"proxyauth=@{tmp_path}/htpasswd"]
    yield await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)


URL = "http://echo.demo.svc.cluster.local/hostname"
HOST = "echo.demo.svc.cluster.local"


async def test_each_way_in(guarded: Tunnel) -> None:
    """Real clients: with the credentials it is the pod that answers, without them it is not."""
    port = guarded.port
    right, wrong = f"http://user:right@127.0.0.1:{port}", f"http://user:wrong@127.0.0.1:{port}"
    ways: dict[str, Callable[[str], tuple[str, ...]]] = {
        "absolute": lambda proxy: ("-x", proxy, URL),
        "CONNECT": lambda proxy: ("-p", "-x", proxy, URL),
        "CONNECT, TLS": lambda proxy: ("-k", "-x", proxy, URL.replace("http:", "https:")),
        "SOCKS5": lambda proxy: ("-x", proxy.replace("http:", "socks5h:"), URL),
    }
    for way, arguments in ways.items():
        answer = await asyncio.to_thread(curl, *arguments(right))
        assert (answer.status, answer.text[:5]) == (200, "echo-"), way
        answer = await asyncio.to_thread(curl, *arguments(wrong))
        assert answer.status != 200 and answer.connect_status != 200, way
        answer = await asyncio.to_thread(curl, *arguments(f"http://127.0.0.1:{port}"))
        assert answer.status != 200 and answer.connect_status != 200, way
    assert (await asyncio.to_thread(guarded.get, HOST)).status == 407
    header = f"Proxy-Authorization: {basic('user:right')}"
    assert (await asyncio.to_thread(guarded.get, HOST, "/hostname", "-H", header)).status == 200
    assert (await asyncio.to_thread(curl, f"{guarded.url}/health")).json == {"status": "ok"}
    assert "context" in (await asyncio.to_thread(curl, "-u", "user:right", f"{guarded.url}/health")).json
    assert "right" not in guarded.log
