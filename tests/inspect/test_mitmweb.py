"""What a user of mitmweb finds: where each flow went, in its comment, its content view, by filters and commands."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.rbac import Rule
from tests.inspect.conftest import Web, until
from tests.proxy.loopback import received, socks5
from tests.tunnel import Tunnel, curl

ECHO = "echo.demo.svc.cluster.local"


async def asked(web: Web, host: str = ECHO, path: str = "/hostname") -> dict[str, Any]:
    """The flow of one request."""
    await asyncio.to_thread(web.get, host, path)
    found: dict[str, Any] = (await asyncio.to_thread(web.flows))[-1]
    return found


async def shown(web: Web, flow: dict[str, Any], message: str = "response") -> str:
    """The content view, once the labels are in."""

    def look() -> str:
        text: str = web.content(flow, message, "Kubernetes")["text"]
        return text if "labels:" in text else ""

    return await until(look)


async def test_a_flow_tells_service_pod_port_and_zone(web: Web) -> None:
    first = await asked(web)
    assert first["request"]["host"] == ECHO
    pod, zone, took = first["comment"].split(" · ")
    assert (pod.startswith("echo-"), pod.endswith(":8080"), zone) == (True, True, "zone-a")
    assert float(took.removesuffix(" ms")) > 0
    assert not first["marked"]


async def test_refused_ones_are_marked_and_found(web: Web) -> None:
    await asked(web)
    refused = await asked(web, "nothere.demo")
    assert (refused["marked"], refused["comment"]) == ("⛔", "ServiceNotFound")
    cut = await asked(web, ECHO, "/abort")
    assert cut["marked"] == "⛔"
    assert cut["comment"].startswith("echo-")
    assert cut["comment"].endswith("UpstreamReset")
    for filters, count in (("~comment ServiceNotFound", 1), ("~marked", 2), ("~comment :8080", 2), ("~d echo.demo", 2)):
        await asyncio.to_thread(web.command, "view.filter.set", filters)
        assert await asyncio.to_thread(web.command, "view.properties.length") == count, filters


async def test_the_content_view(web: Web) -> None:
    flow = await asked(web)
    text = await shown(web, flow)
    pod = flow["comment"].partition(":")[0]
    for line in (
        f"service: {ECHO}:80",
        f"pod: demo/{pod}",
        "node: node1",
        "zone: zone-a",
        "  app: echo",
        "  retries: 0",
    ):
        assert line in text.splitlines(), text
    assert "protocol: SPDY/3.1+portforward.k8s.io" in text
    assert (await shown(web, flow, "request")) == text
    refused = await asked(web, "nothere.demo")
    answer = await asyncio.to_thread(web.content, refused, "response", "Kubernetes")
    assert answer["text"] == "service: nothere.demo.svc.cluster.local:80\ncontext: sim\nrefused: ServiceNotFound\n"
    body = await asyncio.to_thread(web.content, flow, "response", "auto")
    assert body["text"] == f"{pod}\n", "never in the place of the body"


@pytest.mark.parametrize(
    ("host", "service", "reason"),
    [
        ("echo.demo:81", f"{ECHO}:81", "PortNotExposed"),
        ("unready.demo", "unready.demo.svc.cluster.local:80", "NoReadyEndpoints"),
        ("external.demo", "external.demo.svc.cluster.local:80", "NotForwardable"),
    ],
)
async def test_a_refused_one_tells_where_it_was_to_go(web: Web, host: str, service: str, reason: str) -> None:
    flow = await asked(web, host)
    assert (flow["marked"], flow["comment"]) == ("⛔", reason)
    assert f"{flow['request']['host']}:{flow['request']['port']}" == service
    text = (await asyncio.to_thread(web.content, flow, "response", "Kubernetes"))["text"]
    assert text == f"service: {service}\ncontext: sim\nrefused: {reason}\n"


async def test_a_raw_connection(web: Web) -> None:
    def talk() -> None:
        with socks5(web.port, ECHO, 7) as connection:
            connection.sendall(b"hello\n")
            assert received(connection, 6) == b"hello\n"

    await asyncio.to_thread(talk)
    flow = (await asyncio.to_thread(web.flows))[-1]
    assert flow["type"] == "tcp"
    await until(lambda: web.flows()[-1]["comment"].endswith("6b up, 6b down"))

    def views() -> list[str]:
        found = [each["text"] for each in web.content(flow, "messages", "Kubernetes")]
        return found if "labels:" in found[0] else []

    first, *others = await until(views)
    assert f"service: {ECHO}:7\n" in first
    assert others == ["hello\n"], "told once, then the messages themselves"


async def test_a_user_who_may_not_get_pods_has_all_but_the_labels(
    sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path
) -> None:
    sim.user(
        "narrow",
        [
            Rule(verbs=("get", "list", "watch"), resources=("services", "endpointslices")),
            Rule(verbs=("get", "create"), resources=("pods/portforward",)),
        ],
    )
    web = await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig", user="narrow"))
    flow = await asked(web)
    assert flow["comment"].startswith("echo-")
    found = await until(lambda: web.content(flow, "response", "Kubernetes")["text"])
    assert "node: node1" in found
    assert "labels" not in found


async def test_commands_tell_what_is_in_use(web: Web) -> None:
    assert await asyncio.to_thread(web.table, "kube.forwards") == []
    flow = await asked(web)
    pod = flow["comment"].partition(":")[0]
    (service,) = await asyncio.to_thread(web.table, "kube.services")
    assert (service["service"], service["ready"]) == (ECHO, "2/2")
    assert "80 (http)" in service["ports"]
    assert pod in service["pods"]
    (forward,) = await asyncio.to_thread(web.table, "kube.forwards")
    assert (forward["forward"], forward["state"]) == (f"demo/{pod}", "ready")
    health = {row["what"]: row["health"] for row in await asyncio.to_thread(web.table, "kube.health")}
    assert health.pop(ECHO) in ("unknown", "healthy")  # it is checked soon
    assert health == {"cluster cluster.local": "open", f"forward demo/{pod}": "ready"}


async def test_a_local_forward_is_opened_and_closed(web: Web) -> None:
    opened = await asyncio.to_thread(web.command, "kube.forward.open", "svc/echo", "-n", "demo", ":80")
    assert "opening" in opened

    def listening() -> str:
        rows = web.table("kube.forwards")
        state = next((row["state"] for row in rows if row["forward"] == "svc/echo -n demo :80"), "")
        return state.removeprefix("listens on ") if state.startswith("listens on ") else ""

    address = await until(listening)
    assert address.startswith("127.0.0.1:")
    again = await asyncio.to_thread(web.command, "kube.forward.open", "svc/echo -n demo :80")
    assert again.endswith(f"listens on {address}")
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert "closed" in await asyncio.to_thread(web.command, "kube.forward.close", address)
    await until(lambda: not any("svc/echo" in row["forward"] for row in web.table("kube.forwards")))
    await asyncio.to_thread(web.wait_for, f"no longer on {address}")


async def test_a_forward_to_a_pod_is_closed_and_comes_again(web: Web) -> None:
    flow = await asked(web)
    name = f"demo/{flow['comment'].partition(':')[0]}"
    assert "closed" in await asyncio.to_thread(web.command, "kube.forward.close", name)
    await asyncio.to_thread(web.wait_for, f"Forward to {name} (draining|closed)")
    answers = [(await asyncio.to_thread(web.get, ECHO)).status for _ in range(6)]
    assert answers == [200] * 6


async def test_commands_in_mitmdump(
    sim: SimCluster, start_web: Callable[..., Awaitable[Tunnel]], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mitmproxy import ctx\n"
        "def response(flow):\n"
        "    for name in ('kube.services', 'kube.forwards', 'kube.health'):\n"
        "        print('TABLE', name, ctx.master.commands.call(name))\n"
        "    print('SAID', ctx.master.commands.execute('kube.forward.open svc/pair -n demo :80'))\n"
        "    print('SAID', ctx.master.commands.execute('kube.forward.close svc/pair -n demo :80'))\n"
    )
    dump = await start_web(Tunnel, kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"), options=["-s", str(script)])
    assert (await asyncio.to_thread(dump.get, ECHO)).status == 200
    for text in (
        rf"TABLE kube.services .*{ECHO}.*2/2",
        r"TABLE kube.forwards .*demo/echo-.*ready",
        rf"TABLE kube.health .*{ECHO}.*2 of 2 pods ready",
        r"SAID svc/pair -n demo :80: opening\.",
        r"SAID svc/pair -n demo :80: closed\.",
    ):
        await asyncio.to_thread(dump.wait_for, text)


async def test_mistakes_in_commands(web: Web) -> None:
    for command, words, says in (
        ("kube.forward.open", ("svc/",), "'svc/' is not KIND/NAME"),
        ("kube.forward.open", ("gateway/api", "80"), "'gateway' is none of svc, pod"),
        ("kube.forward.open", ("svc/api", "-n"), "-n wants a namespace"),
        ("kube.forward.open", (), "Give a target"),
        ("kube.forward.close", ("demo/nobody",), "There is no forward 'demo/nobody'. There are: none."),
    ):
        with pytest.raises(AssertionError, match=says):
            await asyncio.to_thread(web.command, command, *words)


@pytest.mark.parametrize("port", ["http", "18080"])
async def test_a_forward_that_cannot_be_opened_says_why(web: Web, port: str) -> None:
    entry = f"svc/nothere -n demo {port}"
    await asyncio.to_thread(web.command, "kube.forward.open", entry)

    def failure() -> str:
        return "".join(row["last error"] for row in web.table("kube.forwards") if row["state"] == "not open yet")

    told = await until(failure)
    assert "nothere" in told
    await asyncio.to_thread(web.wait_for, rf"The forward '{entry}' cannot be opened yet, and is tried again: .*nothere")
    again = await asyncio.to_thread(web.command, "kube.forward.open", entry)
    assert again == f"{entry}: not open yet, and tried again now: {told}"
    assert "closed" in await asyncio.to_thread(web.command, "kube.forward.close", entry)
    await until(lambda: not web.table("kube.forwards"))


async def test_without_a_cluster_that_is_said(start_web: Callable[..., Awaitable[Web]], tmp_path: Path) -> None:
    web = await start_web(kubeconfig=tmp_path / "nothere")
    await asyncio.to_thread(web.command, "kube.forward.open", "svc/echo -n demo 80")

    def failure() -> str:
        return "".join(row["last error"] for row in web.table("kube.forwards"))

    assert await until(failure) == "There is no cluster yet; the log says why."
    assert str(tmp_path / "nothere") in web.log
    assert await asyncio.to_thread(web.table, "kube.services") == []
    columns = await asyncio.to_thread(web.call, "GET", "/options")
    assert "comment" in columns["web_columns"]["value"]


async def test_the_users_columns_stay(start_web: Callable[..., Awaitable[Web]], tmp_path: Path) -> None:
    web = await start_web(kubeconfig=tmp_path / "nothere", options=["--set", "web_columns=path,status"])
    columns = await asyncio.to_thread(web.call, "GET", "/options")
    assert "comment" not in columns["web_columns"]["value"]


async def test_older_flows_are_not_kept(
    sim: SimCluster, start_web: Callable[..., Awaitable[Web]], tmp_path: Path
) -> None:
    limits = ["--set", "kube_inspect_keep_flows=3"]
    web = await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"), options=limits)
    for number in range(6):
        await asyncio.to_thread(web.get, ECHO, f"/bytes?n={number}")
    paths = [flow["request"]["path"] for flow in await asyncio.to_thread(web.flows)]
    assert paths == ["/bytes?n=3", "/bytes?n=4", "/bytes?n=5"]


async def test_a_recording_tells_the_same_to_mitmproxy_without_the_addon(
    sim: SimCluster, start_web: Callable[..., Awaitable[Tunnel]], tmp_path: Path
) -> None:
    path = tmp_path / "recorded.mitm"
    options = ["-w", str(path)]
    web = await start_web(kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    assert isinstance(web, Web)
    await shown(web, await asked(web, "pair.demo"))
    await asked(web, "pair.demo")  # its labels are known at once, so they are in the recording
    await asked(web, "pair.demo:81")
    for port in (81, 9999):
        through = "--socks5-hostname", f"127.0.0.1:{web.port}"
        assert (await asyncio.to_thread(curl, *through, f"http://echo.demo:{port}/")).exit_code
    await asyncio.to_thread(web.close)
    stock = tmp_path / "stock.py"
    told = "print('METADATA', flow.comment, flow.metadata['kube'])"
    stock.write_text(f"def response(flow):\n    {told}\n\n\ndef tcp_error(flow):\n    {told}\n")
    done = await asyncio.to_thread(
        subprocess.run,
        [
            Path(sys.executable).parent / "mitmdump", "-n", "-r", path, "-s", stock,
            "--set", f"confdir={tmp_path / 'other'}",
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("METADATA")]
    assert len(lines) == 5, done.stdout + done.stderr
    assert "'labels': {'app': 'pair'" in lines[1]
    assert "'node': 'node1'" in lines[1]
    for line, service, port, reason in (
        (lines[2], "pair", 81, "PortNotExposed"),
        (lines[3], "echo", 81, "PortNotExposed"),
        (lines[4], "echo", 9999, "ConnectionRefused"),
    ):
        kube = {"service": f"{service}.demo.svc.cluster.local", "port": port, "context": "sim", "reason": reason}
        assert line.startswith(f"METADATA {reason} {{")
        assert ast.literal_eval(line.partition(f"{reason} ")[2]) == kube
