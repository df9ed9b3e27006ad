from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kubetunnel.cluster import credentials, exec_plugin
from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError, Timeout, Unauthenticated
from kubetunnel.forward.pool import PortForwards
from tests.cluster.certificates import Authority
from tests.cluster.conftest import Impatient, WriteKubeconfig, until
from tests.cluster.fake_api import FakeApi, add_service

V1 = "client.authentication.k8s.io/v1"

type Plugin = Callable[..., dict]


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and waits for its parent does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """A user with an exec plugin: a Python script that runs `body`, then prints an ExecCredential of `status`."""

    def write(body: str = "", *, status: dict | None = None, version: str = V1, **config: object) -> dict:
        script = tmp_path / "get-token"
        answer = {"apiVersion": version, "kind": "ExecCredential", "status": status or {"token": "secret-1"}}
        lines = [
            f"#!{sys.executable}",
            "import json, os, pathlib, sys, time",
            f"here = pathlib.Path({str(tmp_path)!r})",
            "runs = here / 'runs'",
            "runs.write_text(runs.read_text() + 'x' if runs.exists() else 'x')",
            f"answer = {answer!r}",
            body,
            "print(json.dumps(answer))",
        ]
        script.write_text("\n".join(lines))
        script.chmod(0o755)
        return {"exec": {"apiVersion": version, "command": str(script), "interactiveMode": "IfAvailable", **config}}

    return write


def runs(tmp_path: Path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize("version", [V1, "client.authentication.k8s.io/v1beta1"])
async def test_the_contract(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, version: str, api_server: FakeApi
) -> None:
    body = (
        "(here / 'seen').write_text(json.dumps({'info': json.loads(os.environ['KUBERNETES_EXEC_INFO']),"
        " 'args': sys.argv[1:], 'region': os.environ['REGION'], 'stdin': sys.stdin.read()}))"
    )
    user = plugin(
        body,
        version=version,
        args=["token", "$HOME; id"],
        env=[{"name": "REGION", "value": "eu"}],
        provideClusterInfo=True,
    )
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}
    access = await load_access(
        kubeconfig=kubeconfig(user=user, cluster={"extensions": [extension], "tls-server-name": "api.test"})
    )
    assert (await access.headers())["Authorization"] == "Bearer secret-1"
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["args"] == ["token", "$HOME; id"], "no shell"
    assert (seen["region"], seen["stdin"]) == ("eu", "")
    assert (seen["info"]["apiVersion"], seen["info"]["kind"]) == (version, "ExecCredential")
    cluster = seen["info"]["spec"]["cluster"]
    assert seen["info"]["spec"]["interactive"] is False
    assert (cluster["server"], cluster["config"], cluster["tls-server-name"]) == (
        api_server.url,
        {"audience": "a"},
        "api.test",
    )
    assert base64.b64decode(cluster["certificate-authority-data"]).startswith(b"-----BEGIN")
    await access.aclose()


async def test_one_run_serves_all_until_it_expires(kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path) -> None:
    access = await load_access(kubeconfig=kubeconfig(user=plugin()))
    await asyncio.gather(*(access.headers() for _ in range(10)))
    assert runs(tmp_path) == 1
    await access.aclose()


async def test_what_has_expired_when_it_comes_is_used_once(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    """As by kubectl: by the API server's clock it may be good still."""
    status = {"token": "short", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    access = await load_access(kubeconfig=kubeconfig(user=plugin(status=status)))
    assert (await access.headers())["Authorization"] == "Bearer short"
    assert runs(tmp_path) == 1
    assert (await access.headers())["Authorization"] == "Bearer short"
    assert runs(tmp_path) == 2
    await access.aclose()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "sys.stderr.write('\\nlogin expired\\nsecond line\\n'); sys.exit(3)",
            "get-token failed with exit code 3: login",
        ),
        ("sys.exit(1)", "get-token failed with exit code 1, and said nothing"),
        ("print('hush'); sys.exit(0)", "get-token printed no ExecCredential"),
        ("answer['status'] = {'token': 7}", "printed no ExecCredential: Expected `str`, got `int`"),
        ("answer['status'] = {}", "gave neither a token nor a client certificate"),
        ("answer['status'] = None", "gave neither a token"),
        ("answer['status'] = {'clientKeyData': 'hush'}", "a client certificate or a key without the other"),
        (
            "answer['apiVersion'] = 'client.authentication.k8s.io/v1alpha1'",
            "answered client.authentication.k8s.io/v1alp",
        ),
        ("answer['kind'] = 'Status'", "and client.authentication.k8s.io/v1 ExecCredential was asked for"),
    ],
)
async def test_a_failing_plugin_is_told_by_name(
    kubeconfig: WriteKubeconfig, plugin: Plugin, body: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    access = await load_access(kubeconfig=kubeconfig(user=plugin(body)))
    with pytest.raises(Unauthenticated, match=says.replace(".", r"\.")) as refused:
        await access.headers()
    assert "second line" not in str(refused.value)
    assert "hush" not in str(refused.value) + caplog.text
    await access.aclose()


async def test_a_plugin_that_is_not_there_gives_the_hint(kubeconfig: WriteKubeconfig) -> None:
    config = {"apiVersion": V1, "command": "kube-tunnel-no-such-plugin", "installHint": "\nGet it at the shop.\nmore"}
    access = await load_access(kubeconfig=kubeconfig(user={"exec": config}))
    with pytest.raises(Unauthenticated, match=r"no-such-plugin is not installed .*exec\)\. Get it at the shop\.$"):
        await access.headers()


async def test_a_plugin_that_needs_a_terminal_is_not_run(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    access = await load_access(kubeconfig=kubeconfig(user=plugin(interactiveMode="Always")))
    with pytest.raises(Unauthenticated, match="needs a terminal"):
        await access.headers()
    assert runs(tmp_path) == 0


async def test_a_failure_is_remembered_for_a_burst_only(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "FAILURE_MEMORY_S", 30.0)
    access = await load_access(kubeconfig=kubeconfig(user=plugin("if not (here / 'in').exists(): sys.exit(1)")))
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await access.headers()
    assert runs(tmp_path) == 1
    (tmp_path / "in").touch()
    monkeypatch.setattr(credentials, "FAILURE_MEMORY_S", 0.0)
    assert (await access.headers())["Authorization"] == "Bearer secret-1"


async def test_who_will_not_wait_for_a_slow_plugin_is_refused_and_later_requests_profit(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    user = plugin("while not (here / 'go').exists(): time.sleep(0.01)")
    access = await load_access(kubeconfig=kubeconfig(user=user), plugin_patience_s=0.2)
    with pytest.raises(Unauthenticated, match="get-token is still at work"):
        await access.headers()
    (tmp_path / "go").touch()
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(Unauthenticated):
                assert (await access.headers())["Authorization"] == "Bearer secret-1"
                break
    assert runs(tmp_path) == 1


async def test_requests_wait_for_a_slow_plugin_which_runs_once_and_is_told_of(
    kubeconfig: WriteKubeconfig,
    plugin: Plugin,
    tmp_path: Path,
    api_server: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As kubectl does: what the API server is given no time for does not end before the plugin does."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(credentials, "TELL_AFTER_S", 0.1)
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig(user=plugin("while not (here / 'go').exists(): time.sleep(0.01)")))
    access.reach = Impatient()  # 0.2 s of patience with the API server
    discovery, forwards = Discovery(access), PortForwards(access, open_timeout_s=0.2)
    waiting = [asyncio.create_task(discovery.service("shop", "web")) for _ in range(3)]
    target = PodPort("shop", "web-0", 80, "")
    opening = asyncio.create_task(forwards.open(target, asyncio.Protocol))
    await until(lambda: "get-token of context" in caplog.text)
    done, _ = await asyncio.wait({*waiting, opening}, timeout=0.6)
    assert not done
    (tmp_path / "go").touch()
    states = await asyncio.gather(*waiting)
    assert [state.service.name for state in states] == ["web"] * 3
    with pytest.raises(KubeTunnelError) as failed:
        await opening  # the fake has no port-forwards, but was asked for one
    assert not isinstance(failed.value, Unauthenticated | Timeout)
    assert runs(tmp_path) == 1
    assert "gave credentials after" in caplog.text
    await forwards.aclose()
    await discovery.aclose()
    await access.aclose()


async def test_a_slow_failure_is_told_to_the_next_request(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "FAILURE_MEMORY_S", 0.0)
    user = plugin("while not (here / 'go').exists(): time.sleep(0.01)\nsys.exit('login expired')")
    access = await load_access(kubeconfig=kubeconfig(user=user), plugin_patience_s=0.1)
    with pytest.raises(Unauthenticated, match="still at work"):
        await access.headers()
    (tmp_path / "go").touch()
    assert access._issued is not None
    await until(lambda: access._issued.run is None)
    with pytest.raises(Unauthenticated, match="login expired"):
        await access.headers()
    await access.aclose()


async def test_a_hanging_plugin_and_its_children_are_killed(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(here / 'pids.tmp').write_text(f'{os.getpid()} {child.pid}'); (here / 'pids.tmp').rename(here / 'pids')\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(credentials, "RUN_TIMEOUT_S", 0.7)
    access = await load_access(kubeconfig=kubeconfig(user=plugin(body)))
    with pytest.raises(Unauthenticated, match=r"did not end within 0\.7 s"):
        await access.headers()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    await until(lambda: not any(alive(pid) for pid in pids))
    await access.aclose()


@pytest.mark.parametrize(
    ("stream", "says"), [("stdout", "printed no ExecCredential: more than 1 MiB"), ("stderr", "exit code -9: yyyy")]
)
async def test_a_plugin_that_prints_without_end_is_killed(
    kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, stream: str, says: str
) -> None:
    body = f"(here / 'pid').write_text(str(os.getpid()))\nwhile True: sys.{stream}.write('y' * 65536)"
    access = await load_access(kubeconfig=kubeconfig(user=plugin(body)))
    async with asyncio.timeout(10):
        with pytest.raises(Unauthenticated, match=says):
            await access.headers()
    assert not alive(int((tmp_path / "pid").read_text()))
    await access.aclose()


async def test_a_plugin_that_prints_on_is_ended_in_time(
    kubeconfig: WriteKubeconfig, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "RUN_TIMEOUT_S", 0.7)
    monkeypatch.setattr(exec_plugin, "_read", lambda process, stream: asyncio.Event().wait())  # the pipe is full
    access = await load_access(kubeconfig=kubeconfig(user=plugin("while True: print('y' * 65536)")))
    async with asyncio.timeout(10):
        with pytest.raises(Unauthenticated, match=r"did not end within 0\.7 s"):
            await access.headers()
    await access.aclose()


def test_who_waits_is_told_how_a_run_ended_and_not_that_it_is_on() -> None:
    assert credentials.PATIENCE_S > credentials.RUN_TIMEOUT_S


async def test_aclose_ends_a_running_plugin(kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    user = plugin("(here / 'tmp').write_text(str(os.getpid())); (here / 'tmp').rename(here / 'pid'); time.sleep(60)")
    access = await load_access(kubeconfig=kubeconfig(user=user))
    await until((tmp_path / "pid").exists)
    await access.aclose()
    pid = int((tmp_path / "pid").read_text())
    assert not alive(pid)
    assert asyncio.all_tasks() <= before


async def test_a_401_runs_the_plugin_again_once(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    add_service(api_server)
    body = "answer['status'] = {'token': 'token-' + str(len(runs.read_text()))}"
    access = await load_access(kubeconfig=kubeconfig(user=plugin(body)))
    await access.headers()
    api_server.tokens = {"token-2"}
    discovery = Discovery(access)
    state = await discovery.service("shop", "web")
    assert state.service.name == "web"
    assert runs(tmp_path) == 2
    await discovery.aclose()
    api_server.tokens = set()
    discovery = Discovery(access)
    with pytest.raises(Unauthenticated, match="refused the renewed credentials too"):
        await discovery.service("shop", "web")
    await discovery.aclose()
    await access.aclose()


async def test_a_plugins_client_certificate_is_shown_and_changed(
    authority: Authority, kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    for number in (1, 2):
        certificate, key = authority.issue(f"jane-{number}")
        status = {"clientCertificateData": certificate.decode(), "clientKeyData": key.decode()}
        (tmp_path / f"status-{number}").write_text(json.dumps(status))
    body = "answer['status'] = json.loads((here / f'status-{len(runs.read_text())}').read_text())"
    server = FakeApi(authority)
    server.tls = authority.server_context("127.0.0.1", client_certificates=ssl.CERT_REQUIRED)
    async with server:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": server.url}, user=plugin(body)))
        transport, _ = await access.connect(asyncio.Protocol)
        transport.abort()
        first = await access.tls()
        await access.renew("")
        assert await access.tls() is not first, "pooled connections with the old certificate are not used again"
        transport, _ = await access.connect(asyncio.Protocol)
        transport.abort()


async def test_watches_run_the_plugin_once_for_refused_credentials(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, plugin: Plugin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_service(api_server)
    access = await load_access(kubeconfig=kubeconfig(user=plugin()))
    discovery = Discovery(access)
    await discovery.service("shop", "web")
    await until(lambda: len(api_server.watches) == 2)
    api_server.tokens = set()
    for watch in list(api_server.watches):
        watch.cut()
    await until(lambda: caplog.text.count("rests until it is used") == 2)
    assert runs(tmp_path) == 2, "once at the start, once for what was refused"
    asked = len(api_server.requests)
    await discovery.service("shop", "web")
    await until(lambda: len(api_server.requests) >= asked + 4)
    assert runs(tmp_path) == 2, "the same token, which was renewed for already"
    api_server.tokens = None
    async with asyncio.timeout(15.0):
        while len(api_server.watches) < 2:
            await discovery.service("shop", "web")
            await asyncio.sleep(0.05)
    await discovery.aclose()
    await access.aclose()


async def test_a_fault_of_our_own_is_told_and_logged(
    kubeconfig: WriteKubeconfig, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(credentials, "run_exec_plugin", broken)
    access = await load_access(kubeconfig=kubeconfig(user=plugin()))
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="get-token failed in the tunnel itself; see its log"):
            await access.headers()
    assert "a bug" in caplog.text
    await access.aclose()


async def test_a_token_that_is_no_header_is_refused_without_being_shown(
    kubeconfig: WriteKubeconfig, plugin: Plugin
) -> None:
    access = await load_access(kubeconfig=kubeconfig(user=plugin(status={"token": "hush\nhush"})))
    with pytest.raises(Unauthenticated, match="gave a token with a control character") as refused:
        await access.headers()
    assert "hush" not in str(refused.value)
    await access.aclose()
