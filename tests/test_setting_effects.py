"""A table: each setting, a value that is not its default, and what differs with it. No setting is without a row.

Each value goes the whole way: as an option of mitmproxy into the addon, which wires its parts; these are looked at.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from click.testing import CliRunner
from google.protobuf import descriptor_pb2
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore")
    from mitmproxy.addons.dumper import Dumper
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.addons.termlog import TermLog
    from mitmproxy.addons.view import View
    from mitmproxy.test import taddons, tflow

from kubetunnel.cli import main as cli
from kubetunnel.cli import virtual
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError, NotForwardable, UpstreamReset
from kubetunnel.core.health import parse_check
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import Settings, every_setting
from kubetunnel.core.spoken import Spoken
from kubetunnel.forward import attempts
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.local_ports import LocalPort, LocalPorts
from kubetunnel.naming_plan import plan_naming
from kubetunnel.observe.traffic import ServiceKey
from kubetunnel.proxy.limits import http_policy
from kubetunnel.proxy.routing import Destination, OutsideName
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from kubetunnel.proxy.web_pages import WebPages
from kubetunnel.setting_values import option_value
from kubetunnel.sim.cluster import SimCluster
from tests.inspect import shop_proto
from tests.inspect.test_kept_flows import exchange
from tests.observe.test_health_checks import Checked
from tests.proxy.http_playbook import Playbook, stream_bodies
from tests.proxy.test_http_writing import FullTransport

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore")
    from kubetunnel.app import KubeTunnel
    from kubetunnel.options import PREFIX, add_options
    from kubetunnel.proxy.mode import KubeMode, KubeServerInstance

ECHO = ServiceKey("cluster.local", "demo", "echo")
REQUEST = b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@dataclass
class World:
    """A tunnel as the addon wires it, and what is around it. It listens nowhere."""

    tunnel: KubeTunnel
    options: Options
    sim: SimCluster
    directory: Path
    patch: pytest.MonkeyPatch

    @property
    def settings(self) -> Settings:
        return self.tunnel.settings

    @property
    def book(self) -> Playbook:
        return Playbook(policy=http_policy(self.settings))

    async def echo(self, forwards: PodStreams | None = None) -> Destination:
        """Service demo/echo at its port 7, with two pods."""
        router = self.tunnel.router
        name = await router.parse("echo.demo")
        found = await router.find(name, PortRequest(7, explicit=True, scheme=""))
        return replace(found, session=replace(found.session, forwards=forwards)) if forwards else found


class _Loader(Loader):
    def __init__(self, options: Options) -> None:
        self.options = options

    def add_option(self, *arguments: Any) -> None:
        self.options.add_option(*arguments)


@asynccontextmanager
async def world(
    sim: SimCluster, directory: Path, patch: pytest.MonkeyPatch, given: dict[str, Any]
) -> AsyncIterator[World]:
    """The tunnel with these settings, by their paths; without any, to the simulated cluster."""
    patch.setenv("XDG_STATE_HOME", str(directory))
    by_path = {setting.path: setting for setting in every_setting()}
    values = {"cluster.kubeconfig": str(sim.kubeconfig(directory / "kubeconfig"))} | given
    tunnel = KubeTunnel()
    with taddons.context(TermLog(), Dumper(), Proxyserver()) as context:
        add_options(_Loader(context.options))
        context.options.update(
            **{by_path[path].option: option_value(by_path[path], value) for path, value in values.items()}
        )
        tunnel.configure({name for name in context.options.keys() if name.startswith(PREFIX)})  # noqa: SIM118
        try:
            yield World(tunnel, context.options, sim, directory, patch)
        finally:
            await tunnel._end()
            for name in ("termlog", "errorcheck"):
                if (addon := context.master.addons.get(name)) is not None:
                    addon.logger.uninstall()


# what is looked at


def plan(attribute: str) -> Callable[[World], Any]:
    """Of the plan that `naming.py` makes true."""
    return lambda world: getattr(plan_naming(world.settings, None, lambda ours: ()), attribute)


def asked_of_netsetup(attribute: str) -> Callable[[World], str]:
    return lambda world: str(getattr(virtual._wanted(world.settings, 8080, None, None), attribute))


async def context_and_namespace(world: World) -> tuple[str, str]:
    access = (await world.tunnel.clusters.first.session()).access
    return access.context, access.namespace


async def context_and_file(world: World) -> str:
    access = (await world.tunnel.clusters.first.session()).access
    return f"{access.context} of {access.files[0].name}"


async def where_an_alias_leads(world: World) -> tuple[str, int] | None:
    router = world.tunnel.router
    with pytest.raises(NotForwardable) as refused:
        await router.find(await router.parse("external.demo"), PortRequest(80, explicit=True, scheme="http"))
    return refused.value.address if isinstance(refused.value, OutsideName) else None


async def kind_of_streams(world: World) -> str:
    return type((await world.tunnel.clusters.first.session()).forwards).__name__


def ports_to_try(world: World) -> tuple[int, ...]:
    listener = cast("KubeServerInstance", KubeServerInstance.make("kube", Proxyserver()))
    return listener._ports(None)


def a_line_of_the_log(world: World) -> str:
    handler = cast("Any", world.options and world.tunnel and _termlog()).logger
    line = handler.format(logging.LogRecord("x", logging.INFO, "", 0, "told", (), None))
    return "JSON" if line.startswith("{") and json.loads(line)["message"] == "told" else "text"


def _termlog() -> Any:
    from mitmproxy import ctx

    return ctx.master.addons.get("termlog")


class Failing:
    """Port-forwards that all fail."""

    def __init__(self) -> None:
        self.opened = 0

    def open_streams(self, namespace: str, pod: str) -> int:
        return 0

    async def open(self, pod_port: PodPort, protocol_factory: Any, *, shared: bool = False) -> Any:
        self.opened += 1
        raise UpstreamReset("The connection was cut.")


async def attempts_and_longest_delay(world: World) -> tuple[int, float]:
    forwards, delays = Failing(), [0.0]
    destination = await world.echo(cast("PodStreams", forwards))

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)

    world.tunnel.router._rng.seed(1)
    world.patch.setattr(attempts.asyncio, "sleep", sleep)
    with world.patch.context() as patched:
        patched.setattr(world.tunnel.router, "find", lambda *a, **k: _is(destination))
        with pytest.raises(KubeTunnelError):
            await world.tunnel.router.open(destination)
    world.patch.undo()
    return forwards.opened, max(delays)


async def _is(value: Any) -> Any:
    return value


async def number_of_attempts(world: World) -> int:
    return (await attempts_and_longest_delay(world))[0]


async def waits_a_second(world: World) -> bool:
    return (await attempts_and_longest_delay(world))[1] > 1


def spoken_for(*, client_http2: bool) -> Callable[[World], Awaitable[str]]:
    async def observe(world: World) -> str:
        destination = replace(await world.echo(), spoken=Spoken(tls=False))
        return world.tunnel.router.negotiable_http_version(destination, client_http2=client_http2).name

    return observe


def what_a_page_is_told(world: World) -> str:
    flow = tflow.tflow()
    flow.client_conn.proxy_mode, flow.server_conn.address = KubeMode.parse("kube"), None
    flow.request.headers["Host"], flow.request.headers["Accept-Language"] = "web.shop.example", "en"
    try:
        WebPages(world.tunnel.router, VirtualDestinations()).check(flow)
    except KubeTunnelError as e:
        return e.reason
    return "nothing"


def port_by_header(world: World) -> int | None:
    flow = tflow.tflow()
    flow.request.headers["X-Forwarded-Port"] = "8443"
    gate: Any = next(addon for addon in world.tunnel.addons if getattr(addon, "name", "") == "kubetunnel_gate")
    port: int | None = gate._requested(flow)[1].number
    return port


def answer_of_a_silent_pod(world: World) -> bytes:
    book = world.book
    book.from_client(REQUEST)
    book.pass_time(2)
    return book.to_client()[:12]


def answer_of_a_pod_that_stops(world: World) -> bytes:
    book = world.book
    book.from_client(REQUEST)
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    book.pass_time(2)
    return book.to_client()[:12]


def answer_of_a_silent_grpc_server(world: World) -> str | None:
    book = Playbook(h2_client=True, h2_upstream=True, policy=http_policy(world.settings), requestheaders=stream_bodies)
    peer = book.h2_client()
    call = peer.request("/s/m", ("content-type", "application/grpc"), method="POST", body=b"12345")
    book.h2_server().flush()
    book.pass_time(2)
    peer.flush()
    return peer.fields(call)["grpc-status"] if peer.status(call) else None


def is_closed_when_idle(world: World) -> bool:
    book = world.book
    book.from_client(REQUEST)
    book.from_upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    book.pass_time(2)
    return bool(book.closed)


class Stuck(Failing):
    """Port-forwards that open, and take nothing."""

    async def open(self, pod_port: PodPort, protocol_factory: Any, *, shared: bool = False) -> Any:
        protocol = protocol_factory()
        self.transport = FullTransport(protocol, left=1000, takes=0)
        protocol.connection_made(self.transport)
        protocol.pause_writing()
        return self.transport, protocol


async def a_pod_that_takes_nothing(world: World) -> str:
    forwards = Stuck()
    upstream = await world.tunnel.router.open(await world.echo(cast("PodStreams", forwards)))
    draining = asyncio.create_task(upstream.writer.drain())
    done, _ = await asyncio.wait([draining], timeout=0.3 if world.settings.http.write_timeout_s > 1 else 10)
    if done:
        return type(draining.exception()).__name__
    draining.cancel()
    upstream.writer.transport.abort()
    await asyncio.wait([draining])
    return "is waited for"


async def upstreams_that_stay(world: World) -> int:
    """Of two idle ones to a Service, and one to another."""
    connections, closed = world.tunnel.ending._connections, []
    for service in ("api", "api", "web"):
        server = Server(address=(service, 80))
        server.state = ConnectionState.OPEN
        connections.opened(server, service, lambda: closed.append(1))
        connections.idle(server)
    return 3 - len(closed)


async def a_second_connection(world: World) -> str:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.tunnel.ending._connections.room("api", 0.01))
        try:
            await stack.enter_async_context(world.tunnel.ending._connections.room("api", 0.01))
        except KubeTunnelError as e:
            return e.reason
    return "opened"


def flows_kept(world: World) -> int:
    """Of three, each with a body of a mebibyte."""
    kept, view = world.tunnel.inspection.kept, View()
    with taddons.context(view):
        kept.watch(view)
        for _ in range(3):
            exchange(view, kept, bytes(1 << 20))
        return len(kept)


def why_grpc_fields_have_no_names(world: World) -> bool:
    flow = tflow.tflow()
    flow.request.path = "/shop.Orders/Get"
    return "grpc.reflection is off" in world.tunnel.inspection.descriptors.why_unknown(flow)


def knows_a_method(world: World) -> bool:
    flow = tflow.tflow()
    flow.request.path = "/shop.Orders/Place"
    return world.tunnel.inspection.descriptors.method(flow) is not None


async def health(world: World, port: int, *, rounds: int, interval_s: float = 40.0, check: str = "tcp") -> Checked:
    """Checks by the addon's policy, one look each `interval_s` of a clock that is ours."""
    checked = Checked(Path(str(world.settings.cluster.kubeconfig)))
    checked.check = parse_check(check)
    checked.policy = replace(world.tunnel.observe._checks._policy(), idle_timeout_s=1e6)
    checked.traffic.of(ECHO).use(port, checked.now_s)
    checked.health.look()
    for _ in range(rounds):
        checked.now_s += interval_s
        checked.health.look()
        await asyncio.gather(*checked.health._checking.values())
    return checked


async def number_of_checks(world: World) -> int:
    """In twenty seconds after the first one."""
    checked = await health(world, 9999, rounds=5, interval_s=5.0)
    records = checked.health.records(ECHO)
    await checked.aclose()
    return max((record.checks for record in records.values()), default=0)


async def what_a_silent_port_is_told(world: World) -> set[str]:
    checked = await health(world, 9007, rounds=1, check="http:/")
    records = checked.health.records(ECHO)
    await checked.aclose()
    return {record.detail for record in records.values()}


async def state_after_two_failures(world: World) -> set[str]:
    checked = await health(world, 9999, rounds=2)
    records = checked.health.records(ECHO)
    await checked.aclose()
    return {record.state for record in records.values()}


async def unhealthy_pods_are_avoided(world: World) -> bool:
    checked = await health(world, 9999, rounds=3)
    session = await checked.clusters.first.session()
    avoided = [checked.health.is_unhealthy(session.forwards, pod) for pod in checked.health.records(ECHO)]
    await checked.aclose()
    return all(avoided)


def sets_the_network_up(world: World) -> bool:
    asked: list[Settings] = []

    def instead(settings: Settings, port: int, run: object) -> int:
        asked.append(settings)
        return 0

    world.patch.setattr(virtual, "run_with_network", instead)
    world.patch.setattr(cli, "run_mitmproxy", lambda program, arguments: 0)
    flag = ["--virtual"] if world.settings.network.virtual else []
    CliRunner(env={"KUBECONFIG": "/some/kubeconfig"}).invoke(cli.main, flag)
    return bool(asked)


async def hosts_that_listen(world: World) -> list[str]:
    ports = world.tunnel.local_ports
    entries = world.settings.forwards or ("svc/echo -n demo :80",)
    ports.configure(entries, address=ports._made_for[0], retry=world.settings.retry)
    await opened(ports)
    return [address.rpartition(":")[0] for port in ports.ports() for address in port.addresses]


async def opened(ports: LocalPorts) -> list[LocalPort]:
    await ports.apply()
    async with asyncio.timeout(20):
        while any(port.listener is None for port in ports.ports()):  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.02)
    return ports.ports()


async def listeners(world: World) -> int:
    found = await opened(world.tunnel.local_ports)
    for port in found:
        for address in port.addresses:
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10).close()
    return len(found)


async def speaks_tls(world: World) -> bool:
    return (await world.echo()).spoken.tls


type Observe = Callable[[World], Any]


@dataclass(frozen=True)
class Row:
    """With `value`, `observe` gives `after`; with the default `before`."""

    value: Any
    observe: Observe
    before: Any
    after: Any


def descriptors(directory: Path) -> Sequence[str]:
    path = directory / "shop.pb"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=shop_proto.files()).SerializeToString())
    return [str(path)]


def other_kubeconfig(directory: Path) -> str:
    path = directory / "other"
    path.write_text((directory / "kubeconfig").read_text())
    return str(path)


EFFECTS: dict[str, Row] = {
    "proxy.port": Row(18080, ports_to_try, (80, 8080), (18080,)),
    "log.level": Row(
        "warn", lambda world: (world.options.termlog_verbosity, world.options.flow_detail), ("info", 1), ("warn", 0)
    ),
    "log.format": Row("json", a_line_of_the_log, "text", "JSON"),
    "cluster.kubeconfig": Row(other_kubeconfig, context_and_file, "sim of kubeconfig", "sim of other"),
    "cluster.context": Row("more", context_and_namespace, ("sim", "demo"), ("more", "other")),
    "cluster.namespace": Row("other", context_and_namespace, ("sim", "demo"), ("sim", "other")),
    "cluster.zone": Row(
        "prod.example", lambda world: world.tunnel.router.owns("api.shop.svc.prod.example"), False, True
    ),
    "cluster.dial": Row("direct", kind_of_streams, "PortForwards", "DirectConnections"),
    "cluster.demo": Row(True, lambda world: world.tunnel.demo is not None, False, True),
    "retry.max": Row(0, number_of_attempts, 3, 1),
    "retry.delay": Row("10s", waits_a_second, False, True),
    "http.force_http2": Row(True, spoken_for(client_http2=False), "HTTP1", "HTTP2"),
    "http.disable_fallback": Row(True, spoken_for(client_http2=True), "NEGOTIATED", "HTTP2"),
    "http.hosts": Row(["*.shop.example"], what_a_page_is_told, "NotAServiceName", "nothing"),
    "http.trust_port_headers": Row(True, port_by_header, 80, 8443),
    "http.read_timeout": Row("2s", answer_of_a_pod_that_stops, b"", b"HTTP/1.1 504"),
    "http.write_timeout": Row("10ms", a_pod_that_takes_nothing, "is waited for", "StreamFailed"),
    "http.response_header_timeout": Row("2s", answer_of_a_silent_pod, b"", b"HTTP/1.1 504"),
    "grpc.timeout": Row("2s", answer_of_a_silent_grpc_server, None, "4"),
    "grpc.reflection": Row(False, why_grpc_fields_have_no_names, False, True),
    "grpc.descriptors": Row(descriptors, knows_a_method, False, True),
    "inspect.keep_flows": Row(2, flows_kept, 3, 2),
    "inspect.keep_bytes": Row(1_100_000, flows_kept, 3, 1),
    "pool.max_connections_per_service": Row(1, a_second_connection, "opened", "Timeout"),
    "pool.max_idle": Row(1, upstreams_that_stay, 3, 1),
    "pool.max_idle_per_service": Row(1, upstreams_that_stay, 3, 2),
    "pool.idle_timeout": Row("2s", is_closed_when_idle, False, True),
    "health.enabled": Row(False, number_of_checks, 1, 0),
    "health.interval": Row("4s", number_of_checks, 1, 5),
    "health.timeout": Row("100ms", what_a_silent_port_is_told, {"no answer within 2 s"}, {"no answer within 0.1 s"}),
    "health.max_failures": Row(2, state_after_two_failures, {"unknown"}, {"unhealthy"}),
    "health.skip": Row(True, unhealthy_pods_are_avoided, True, False),
    "dns.enabled": Row(False, plan("dns"), ("127.0.0.1", 5353), None),
    "dns.ip": Row("127.0.0.9", plan("dns"), ("127.0.0.1", 5353), ("127.0.0.9", 5353)),
    "dns.port": Row(5300, plan("dns"), ("127.0.0.1", 5353), ("127.0.0.1", 5300)),
    "dns.tcp": Row(False, plan("tcp"), True, False),
    "dns.answer": Row("shared", lambda world: str(plan("shared")(world)), "None", "127.0.0.1"),
    "dns.ttl": Row("7s", plan("ttl_s"), 5, 7),
    "network.virtual": Row(True, sets_the_network_up, False, True),
    "network.loopback": Row(True, plan("loopback"), False, True),
    "network.ip_ranges": Row(
        ["10.9.9.0/24"], lambda world: str(plan("ranges")(world)[0]), "10.8.0.0/24", "10.9.9.0/24"
    ),
    "network.search": Row("shop", asked_of_netsetup("search"), "None", "shop"),
    "network.dns_interface.ip": Row("10.8.0.5", asked_of_netsetup("dns_ip"), "None", "10.8.0.5"),
    "network.dns_interface.name": Row("kd", asked_of_netsetup("dns_link"), "kube-dns0", "kd"),
    "network.proxy_interface.ip": Row("10.8.0.6", asked_of_netsetup("proxy_ip"), "None", "10.8.0.6"),
    "network.proxy_interface.name": Row("kp", asked_of_netsetup("proxy_link"), "kube-proxy0", "kp"),
    "forward.ip": Row("127.0.0.2", hosts_that_listen, ["127.0.0.1"], ["127.0.0.2"]),
    "forwards": Row(["svc/echo -n demo :80"], listeners, 0, 1),
    "services": Row(["echo.demo app_protocol=https"], speaks_tls, False, True),
    "zones": Row({"prod.local": "sim"}, plan("zones"), ("cluster.local",), ("cluster.local", "prod.local")),
    "external_names": Row("direct", where_an_alias_leads, None, ("example.invalid", 80)),
}


def test_no_setting_is_without_a_row() -> None:
    assert set(EFFECTS) == {setting.path for setting in every_setting()}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", EFFECTS)
async def test_a_setting_changes_what_is_seen(
    path: str, sim: SimCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = EFFECTS[path]
    kubeconfig = json.loads(sim.kubeconfig(tmp_path / "kubeconfig").read_text())
    (more,) = kubeconfig["contexts"]
    kubeconfig["contexts"].append({"name": "more", "context": {**more["context"], "namespace": "other"}})
    seen = []
    for given in ({}, {path: row.value(tmp_path) if callable(row.value) else row.value}):
        async with world(sim, tmp_path, monkeypatch, dict(given)) as made:
            (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
            found = row.observe(made)
            seen.append(await found if asyncio.iscoroutine(found) else found)
    assert row.before != row.after
    assert seen == [row.before, row.after]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_changed_limit_reaches_clients_that_are_connected(
    sim: SimCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(sim, tmp_path, monkeypatch, {}) as made:
        gate: Any = next(addon for addon in made.tunnel.addons if getattr(addon, "name", "") == "kubetunnel_gate")
        client = made.book
        connected = gate._http_layer(Context(client.client, client.layer.context.options))
        before = connected.policy
        assert connected.policy is before
        made.options.update(kube_read_timeout="2s", kube_write_timeout="3s")
        made.tunnel.configure({"kube_read_timeout", "kube_write_timeout"})
        after = connected.policy
        limits = [(policy.exchange.read_timeout_s, policy.exchange.write_timeout_s) for policy in (before, after)]
        assert limits == [(30.0, 30.0), (2.0, 3.0)]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_log_setting_that_is_taken_back_leaves_what_the_user_gave_mitmproxy(
    sim: SimCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> tuple[str, int]:
        return made.options.termlog_verbosity, made.options.flow_detail

    def change(**options: Any) -> None:
        made.options.update(**options)
        made.tunnel.configure(set(options))

    async with world(sim, tmp_path, monkeypatch, {}) as made:
        made.options.update(termlog_verbosity="warn", flow_detail=3)
        change(kube_log_level="info")
        assert seen() == ("info", 3)
        change(kube_log_level="quiet")
        assert seen() == ("error", 0)
        change(kube_log_format="json", kube_log_level="debug")
        assert seen() == ("debug", 0)
        change(kube_log_level="")
        assert seen() == ("warn", 0)
        change(kube_log_format="text")
        assert seen() == ("warn", 3)
