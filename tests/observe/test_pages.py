"""The tunnel's own pages, asked by curl at a real tunnel with the simulated cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kubetunnel.observe.pages import api_description
from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import Answer, Tunnel, curl, without_proxies

ECHO = "echo.demo.svc.cluster.local"
OF_THE_SETTINGS = "svc/pair -n demo :80"
HOSTILE = "<img src=x onerror=alert(1)>"


async def nothing(cluster: SimCluster) -> None:
    """The demo is there."""


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    directory = tmp_path_factory.mktemp("tunnel")
    taken = socket.create_server(("127.0.0.1", 0))
    options = ["--set", f"kube_forwards={OF_THE_SETTINGS}"]
    options += ["--set", f"kube_forwards=svc/pair -n demo {taken.getsockname()[1]}:80"]
    with taken, simulated(nothing) as cluster:
        kubeconfig = cluster.kubeconfig(directory / "config")
        with Tunnel(directory, kubeconfig=kubeconfig, options=options) as made:
            yield made
            assert "Traceback" not in made.log, made.log


@pytest.fixture(scope="module")
def token(tunnel: Tunnel) -> str:
    return tunnel.wait_for(r"/dashboard#token=(\S+)")[1]


def ask(tunnel: Tunnel, path: str, *arguments: str) -> Answer:
    return curl(*arguments, tunnel.url + path)


def change(tunnel: Tunnel, token: str, method: str, path: str, body: Any = None) -> Answer:
    arguments = ["-X", method, "-H", f"X-Kube-Tunnel-Token: {token}", "-H", f"Origin: {tunnel.url}"]
    if body is not None:
        arguments += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return ask(tunnel, path, *arguments)


def until[T](found: Callable[[], T | None], timeout_s: float = 8.0) -> T:
    """The first answer that is one."""
    deadline = time.monotonic() + timeout_s
    while (answer := found()) is None:
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return answer


def shown(tunnel: Tunnel, service: str = "echo") -> dict[str, Any] | None:
    answer = ask(tunnel, f"/api/v1/services/cluster.local/demo/{service}")
    return answer.json if answer.status == 200 else None


# -- what there is


def test_it_is_alive(tunnel: Tunnel) -> None:
    answer = ask(tunnel, "/health")
    assert (answer.status, answer.json["status"]) == (200, "ok")


@pytest.mark.parametrize("name", ["localhost", "kube-tunnel.internal", "127.0.0.1", "LOCALHOST:8080", "[::1]"])
def test_the_names(tunnel: Tunnel, name: str) -> None:
    assert tunnel.get(name, "/health").status == 200


def test_a_services_health_is_the_services(tunnel: Tunnel) -> None:
    answer = tunnel.get(ECHO, "/healthz")
    assert answer.status == 200
    assert "status" not in answer.text
    by_name = ["-H", f"Host: {ECHO}"], tunnel.url
    by_proxy = ["-x", tunnel.url], f"http://{ECHO}"
    by_socks = ["--socks5-hostname", tunnel.address], f"http://{ECHO}"
    by_connect = ["-p", "-x", tunnel.url], f"http://{ECHO}"
    for arguments, url in (by_name, by_proxy, by_socks, by_connect):
        for path in ("/health", "/health/status", "/metrics", "/dashboard", "/api/v1/services"):
            answer = curl(*arguments, url + path)
            assert answer.json["path"] == path
            assert answer.json["pod"].startswith("echo-")


def test_a_kept_connection_asks_tunnel_and_service_in_turn(tunnel: Tunnel) -> None:
    ours, theirs = tunnel.url + "/health", tunnel.url + "/hostname"
    answer = curl(ours, "--next", "-H", f"Host: {ECHO}", theirs, "--next", ours)
    assert '"status": "ok"' in answer.text
    assert "echo-" in answer.text


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("path", ["/api/v1/services", "/health/status", "/metrics", "/dashboard"])
def test_both_versions(tunnel: Tunnel, version: str, path: str) -> None:
    answer = ask(tunnel, path, version)
    assert answer.status == 200
    assert answer.http_version == ("2" if "http2" in version else "1.1")
    assert answer.body


def test_in_tls(tunnel: Tunnel) -> None:
    for name in ("localhost", "kube-tunnel.internal"):
        answer = curl("-k", "--resolve", f"{name}:{tunnel.port}:127.0.0.1", f"https://{name}:{tunnel.port}/health")
        assert answer.status == 200, name


def test_as_a_proxy_request(tunnel: Tunnel) -> None:
    assert tunnel.via_proxy(f"http://localhost:{tunnel.port}/health").status == 200
    assert tunnel.via_proxy("http://localhost:1/health").reason == "NotAServiceName"
    assert tunnel.via_proxy("http://kube-tunnel.internal/health").status == 200


def test_what_there_is_not(tunnel: Tunnel) -> None:
    for path in ("/", "/nothing", "/api/v1/nothing", "/api/v1/", "/dashboard/../observe.py", "/dashboard/observe.py"):
        answer = ask(tunnel, path, "--path-as-is")
        assert answer.status == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"/health", "/metrics", "/api/v1/services"} <= set(answer.json["paths"])


def test_a_browser_is_sent_to_the_dashboard(tunnel: Tunnel) -> None:
    answer = ask(tunnel, "/", "-H", "Accept: text/html,*/*")
    assert (answer.status, answer.headers["location"]) == (302, "/dashboard")


@pytest.mark.parametrize("path", ["/health", "/metrics", "/api/v1/services", "/api/v1/events", "/dashboard"])
def test_head_and_other_methods(tunnel: Tunnel, token: str, path: str) -> None:
    answer = ask(tunnel, path, "--head")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    answer = change(tunnel, token, "POST", path, {})
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


def test_every_file_of_the_dashboard(tunnel: Tunnel) -> None:
    for entry in files("kubetunnel.observe").joinpath("static").iterdir():
        if entry.name.endswith((".html", ".css", ".js", ".svg")):
            answer = ask(tunnel, f"/dashboard/{entry.name}")
            assert answer.status == 200, entry.name
            assert answer.body == entry.read_bytes()
            kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
            assert answer.headers["content-type"].startswith(kind[entry.name.rpartition(".")[2]])


@pytest.mark.parametrize("path", ["/health", "/nothing", "/dashboard", "/api/v1/events", "/api/v1/services"])
def test_headers(tunnel: Tunnel, path: str) -> None:
    headers = ask(tunnel, path, "--head").headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


# -- what is refused


@pytest.mark.parametrize(
    "host", ["www.evil.example", "localhost.evil.example", "169.254.169.254", "rebind.127.0.0.1.nip.io"]
)
def test_foreign_hosts_get_no_page(tunnel: Tunnel, host: str) -> None:
    for path in ("/health", "/api/v1/services", "/dashboard"):
        answer = tunnel.get(host, path)
        assert (answer.status, answer.reason) == (400, "NotAServiceName")


def test_foreign_origins(tunnel: Tunnel, token: str) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert ask(tunnel, "/api/v1/services", "-H", f"Origin: {origin}").json["reason"] == "ForeignOrigin"
        answer = ask(
            tunnel, "/api/v1/refresh", "-X", "POST", "-H", f"Origin: {origin}", "-H", f"X-Kube-Tunnel-Token: {token}"
        )
        assert (answer.status, answer.json["reason"]) == (403, "ForeignOrigin")


def test_the_token(tunnel: Tunnel, token: str) -> None:
    for given, reason in (("", "TokenMissing"), ("x", "TokenWrong"), (token[:-1], "TokenWrong")):
        answer = change(tunnel, given, "POST", "/api/v1/refresh", {})
        assert (answer.status, answer.json["reason"]) == (403, reason)
        assert token not in answer.text
    for path in ("/dashboard", "/api/v1/tunnel", "/health/status", "/metrics"):
        assert token not in ask(tunnel, path).text


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-d", "{}"], 415),
        (["-H", "Content-Type: application/json", "-d", "{"], 400),
        (["-H", "Content-Type: application/json", "-d", "[" * 60_000], 400),
        (["-H", "Content-Type: application/json", "-d", "[]"], 422),
        (["-H", "Content-Type: application/json", "-d", r'{"target":"svc/\ud800","ports":["80"]}'], 422),
        (["-H", "Content-Type: application/json", "-d", "{}"], 422),
        (["-H", "Content-Type: application/json", "-d", '{"target":"svc/echo","ports":["80"],"more":1}'], 422),
        (["-H", "Content-Type: application/json", "-d", '{"target":"svc/echo","ports":["99999"]}'], 422),
        (["-H", "Content-Type: application/json", "-d", '{"target":"svc/echo","ports":[true]}'], 422),
        (["-H", "Content-Type: application/json", "-d", '{"target":"x/echo","ports":["80"]}'], 422),
        (["-H", "Content-Type: application/json", "-d", '{"target":"svc/nothing","ports":["80"]}'], 409),
        (["-H", "Content-Type: application/json", "-d", '"' + "x" * 70_000 + '"'], 413),
    ],
)
def test_bodies_that_make_no_sense(tunnel: Tunnel, token: str, arguments: list[str], status: int) -> None:
    guards = ["-X", "POST", "-H", f"X-Kube-Tunnel-Token: {token}", "-H", f"Origin: {tunnel.url}"]
    answer = ask(tunnel, "/api/v1/listeners", *guards, *arguments)
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    jsonschema.validate(answer.json, schema("Problem"))


# -- what it tells


def schema(name: str) -> dict[str, Any]:
    description = api_description()
    return {"$ref": f"#/components/schemas/{name}", "components": description["components"]}


def test_the_description_is_openapi_3_1(tunnel: Tunnel) -> None:
    description = ask(tunnel, "/api/v1/openapi.json").json
    assert description == api_description()
    assert description["openapi"] == "3.1.0"
    assert set(description) >= {"info", "paths", "components"}
    for found in description["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(found)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert referred <= set(description["components"]["schemas"])
    names = [operation["operationId"] for path in description["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)
    for path in description["paths"].values():
        for method, operation in path.items():
            assert method in ("get", "post", "delete")
            assert operation["responses"]
            assert (method == "get") or operation["security"] == [{"token": []}]


def test_every_path_answers_as_it_is_described(tunnel: Tunnel) -> None:
    tunnel.get(ECHO, "/status?code=503")
    until(lambda: shown(tunnel))
    description = api_description()
    for path, methods in description["paths"].items():
        if "get" not in methods or path == "/api/v1/events":
            continue
        concrete = path.format(zone="cluster.local", namespace="demo", service="echo")
        answer = ask(tunnel, concrete)
        described = methods["get"]["responses"][str(answer.status)]["content"]
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in described, path
        if media_type == "application/json":
            jsonschema.validate(
                answer.json, {**described[media_type]["schema"], "components": description["components"]}
            )


def test_every_handler_is_described(tunnel: Tunnel) -> None:
    paths = ask(tunnel, "/nothing").json["paths"]
    described = {re.sub(r"\{\w+\}", "*", path) for path in api_description()["paths"]}
    assert set(paths) - described == {"/dashboard"}


def test_a_service_is_told_of_within_two_seconds(tunnel: Tunnel) -> None:
    assert tunnel.get("pair.demo", "/").status == 200
    started = time.monotonic()
    document = until(lambda: ((found := shown(tunnel, "pair")) and found["total"] and found) or None)
    assert time.monotonic() - started < 5.0, "2 s, and what a loaded machine adds"
    assert (document["ready"], document["total"], document["requests_total"]) == (1, 1, 1)
    assert document["ports"] == [{"port": 80, "name": "", "protocol": "TCP"}]
    assert sum(document["sparkline"]) == 1
    assert document["p50_ms"] > 0
    until(lambda: ((found := shown(tunnel, "pair")) and found["health"] == "healthy") or None)


def test_a_service_without_a_ready_pod(tunnel: Tunnel) -> None:
    assert tunnel.get("unready.demo").status == 503
    document = until(lambda: ((found := shown(tunnel, "unready")) and found["total"] and found) or None)
    assert (document["health"], document["ready"], document["total"]) == ("unhealthy", 0, 1)
    assert document["last_error"]["reason"] == "NoReadyEndpoints"
    assert "kubectl" in document["last_error"]["command"]
    (status,) = [s for s in ask(tunnel, "/health/status").json["services"] if s["service"] == "unready"]
    assert (status["health"], status["healthy"], status["latency_ms"]) == ("unhealthy", False, None)


def test_a_name_that_is_nobodys_is_no_service(tunnel: Tunnel) -> None:
    assert tunnel.get("nothing-here.demo").status == 404
    assert shown(tunnel, "nothing-here") is None
    assert "nothing-here" not in ask(tunnel, "/metrics").text


def test_markup_in_what_a_pod_says_stays_text(tunnel: Tunnel) -> None:
    path = HOSTILE.replace(" ", "%20")
    for answer in (tunnel.get(f"{HOSTILE}.demo"), ask(tunnel, f"/{path}"), ask(tunnel, f"/api/v1/services/a/b/{path}")):
        assert answer.headers["content-type"] == "application/problem+json"
    assert "<" not in ask(tunnel, f"/api/v1/services/a/b/{path}").text
    assert "\\u003cimg" in ask(tunnel, f"/api/v1/services/a/b/{path}").text


def test_bytes_that_are_no_text_are_told_of(tunnel: Tunnel, token: str) -> None:
    with socket.create_connection(("127.0.0.1", tunnel.port), timeout=10) as connection:
        connection.sendall(b"GET /api/v1/services/a/b/\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "NotInUse"
    answered = change(tunnel, token, "POST", "/api/v1/forwards/close", {"namespace": "\ud800", "pod": "x"})
    assert (answered.status, answered.json["reason"]) == (404, "NoForward")


def test_no_page_is_a_flow(tunnel: Tunnel) -> None:
    before = len(tunnel.lines)
    ask(tunnel, "/api/v1/services")
    tunnel.get(ECHO, "/hostname")
    tunnel.wait_for(r"/hostname")
    assert not [line for line in tunnel.lines[before:] if "/api/v1/" in line]


# -- what it does


def test_a_listener_is_opened_used_and_closed(tunnel: Tunnel, token: str) -> None:
    answer = change(
        tunnel, token, "POST", "/api/v1/listeners", {"target": "svc/echo", "namespace": "demo", "ports": [":80"]}
    )
    assert answer.status == 201, answer.text
    (listener,) = answer.json["listeners"]
    jsonschema.validate(listener, schema("Listener"))
    assert "echo-" in curl(f"http://{listener['address']}/hostname").text
    assert listener in ask(tunnel, "/api/v1/listeners").json["listeners"]
    port = listener["address"].rpartition(":")[2]
    body = {"target": "svc/echo", "namespace": "demo", "ports": [f"{port}:80"]}
    assert change(tunnel, token, "POST", "/api/v1/listeners", body).status == 409  # the port is taken
    assert change(tunnel, token, "DELETE", f"/api/v1/listeners/{listener['id']}").status == 200
    assert curl(f"http://{listener['address']}/hostname").status == 0
    assert change(tunnel, token, "DELETE", f"/api/v1/listeners/{listener['id']}").status == 404


def test_a_listener_of_the_settings_is_shown_and_closed_there_alone(tunnel: Tunnel, token: str) -> None:
    def found() -> dict[str, Any] | None:
        listeners = ask(tunnel, "/api/v1/listeners").json["listeners"]
        return next((each for each in listeners if each["asked_by"] == "settings"), None)

    listener = until(found)
    jsonschema.validate(listener, schema("Listener"))
    assert (listener["target"], listener["namespace"]) == ("service/pair", "demo")
    assert curl(f"http://{listener['address']}/hostname").text == "pair\n"
    answer = change(tunnel, token, "DELETE", f"/api/v1/listeners/{listener['id']}")
    assert (answer.status, answer.json["reason"]) == (409, "OfTheSettings")
    assert OF_THE_SETTINGS in answer.json["detail"]
    assert curl(f"http://{listener['address']}/hostname").text == "pair\n"


def test_a_local_port_that_cannot_be_opened_says_why(tunnel: Tunnel) -> None:
    def found() -> dict[str, Any] | None:
        listeners = ask(tunnel, "/api/v1/listeners").json["listeners"]
        return next((each for each in listeners if each["failure"]), None)

    listener = until(found)
    jsonschema.validate(listener, schema("Listener"))
    assert (listener["address"], listener["target"], listener["asked_by"]) == ("", "service/pair", "settings")
    assert "already in use" in listener["failure"]


def test_a_forward_is_closed_and_opened_by_the_next_request(tunnel: Tunnel, token: str) -> None:
    assert tunnel.get("echo.other", "/hostname").status == 200
    forward = until(
        lambda: next((f for f in ask(tunnel, "/api/v1/forwards").json["forwards"] if f["namespace"] == "other"), None)
    )
    answer = change(tunnel, token, "POST", "/api/v1/forwards/close", {"namespace": "other", "pod": forward["pod"]})
    assert (answer.status, answer.json["state"]) == (200, "draining")
    assert tunnel.get("echo.other", "/hostname").status == 200
    assert change(tunnel, token, "POST", "/api/v1/forwards/close", {"namespace": "x", "pod": "y"}).status == 404


def test_refresh(tunnel: Tunnel, token: str) -> None:
    tunnel.get(ECHO)
    until(lambda: shown(tunnel))
    answer = change(tunnel, token, "POST", "/api/v1/refresh", {})
    assert answer.status == 200
    assert answer.json["services"] >= 1
    assert answer.json["failed"] == []


# -- the event stream


@contextlib.contextmanager
def listening(tunnel: Tunnel, *arguments: str) -> Iterator[queue.Queue[tuple[str, Any]]]:
    """curl -N at the event stream, and its messages as they come."""
    command = ["curl", "-q", "-sSN", "--max-time", "60", *arguments, tunnel.url + "/api/v1/events"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_proxies())
    messages: queue.Queue[tuple[str, Any]] = queue.Queue()

    def read() -> None:
        kind = ""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ").strip()
            elif line.startswith("data: "):
                messages.put((kind, json.loads(line.removeprefix("data: "))))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield messages
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def next_of(
    messages: queue.Queue[tuple[str, Any]],
    kind: str,
    fits: Callable[[Any], bool] = lambda data: True,
    timeout_s: float = 8.0,
) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        found, data = messages.get(timeout=max(0.1, deadline - time.monotonic()))
        if found == kind and fits(data):
            return data


@pytest.mark.parametrize(("version", "empty"), [("--http1.1", "zero"), ("--http2-prior-knowledge", "noselector")])
def test_events_as_they_happen(tunnel: Tunnel, version: str, empty: str) -> None:
    with listening(tunnel, version) as messages:
        snapshot = next_of(messages, "snapshot")
        jsonschema.validate(snapshot, schema("Snapshot"))
        tunnel.get("echo.demo", "/status?code=500")
        service = next_of(
            messages, "service", lambda data: data["service"] == "echo" and data["last_error"] is not None
        )
        jsonschema.validate(service, schema("Service"))
        tunnel.get(f"{empty}.demo")
        event = next_of(messages, "event", lambda data: data["text"].startswith("NoReadyEndpoints"))
        jsonschema.validate(event, schema("Event"))
        assert event["service"]["service"] == empty


def test_who_leaves_makes_room(tunnel: Tunnel) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            next_of(stack.enter_context(listening(tunnel)), "snapshot")
        answer = ask(tunnel, "/api/v1/events")
        assert (answer.status, answer.json["reason"]) == (503, "TooManyListeners")
    until(lambda: ask(tunnel, "/api/v1/events", "--max-time", "0.5").status == 200 or None)


# -- the cluster's troubles


async def test_health_turns_when_pods_and_cluster_go(tmp_path: Path) -> None:
    async with SimCluster() as cluster:
        tunnel = await asyncio.to_thread(Tunnel, tmp_path, kubeconfig=cluster.kubeconfig(tmp_path / "config"))
        try:
            assert (await asyncio.to_thread(tunnel.get, "echo.other")).status == 200

            def health() -> str:
                return str(ask(tunnel, "/api/v1/services/cluster.local/other/echo").json.get("health"))

            await asyncio.to_thread(until, lambda: health() == "healthy" or None)
            await cluster.set_ready("other", "echo", False)
            await asyncio.to_thread(until, lambda: health() == "unhealthy" or None)
            assert (await asyncio.to_thread(ask, tunnel, "/health")).status == 200
            echo = (await asyncio.to_thread(ask, tunnel, "/api/v1/services/cluster.local/other/echo")).json
            assert echo["command"] == f"kubectl --kubeconfig {tmp_path / 'config'} -n other get pods -l app=echo"
            with listening(tunnel) as messages:
                assert (await asyncio.to_thread(next_of, messages, "snapshot"))["alive"]["status"] == "ok"
                await cluster.stop_api()
                away = await asyncio.to_thread(next_of, messages, "alive", lambda alive: alive["status"] != "ok", 30.0)
            jsonschema.validate(away, schema("Alive"))
            assert away["reason"] == "ClusterUnreachable"
            await asyncio.to_thread(until, lambda: ask(tunnel, "/health").status == 503 or None, 12.0)
            assert (await asyncio.to_thread(ask, tunnel, "/health")).json["reason"] == "ClusterUnreachable"
            assert (await asyncio.to_thread(ask, tunnel, "/metrics")).status == 200
        finally:
            await asyncio.to_thread(tunnel.close)
        assert "Traceback" not in tunnel.log, tunnel.log
