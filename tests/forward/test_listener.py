"""Local listeners on the simulated cluster: whatever speaks, whoever ends, one connection never costs another."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.workloads import Reachable, Workloads
from kubetunnel.core.catalog import Endpoint, PodPort
from kubetunnel.core.endpoints import Target
from kubetunnel.core.errors import NoReadyEndpoints, PodGone, ServiceNotFound
from kubetunnel.core.local_forward import Kind, ObjectRef, PortPair
from kubetunnel.forward import attempts, spdy_upstream
from kubetunnel.forward.departed import ClientSockets
from kubetunnel.forward.direct import DirectConnections
from kubetunnel.forward.listener import LocalForwards, LocalListener
from kubetunnel.forward.local_connection import LocalConnection
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.stream import Bytes, ForwardStream
from kubetunnel.forward.upstream import Upstream
from kubetunnel.sim.cluster import SimCluster
from tests.forward.test_streams import until

ECHO, BANNER, RESET, FLOOD, MUTE, REFUSED = 7, 9001, 9002, 9004, 9007, 9999
MIB = 1 << 20


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest.fixture
async def forwards(sim: SimCluster, tmp_path: Path) -> AsyncIterator[LocalForwards]:
    access = await load_access(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig")))
    discovery, streams = Discovery(access), PortForwards(access)
    workloads = Workloads(access, discovery)
    opened = LocalForwards(workloads, streams, retry_delay_s=0.01)
    yield opened
    await opened.aclose(drain_s=0)
    await workloads.aclose()
    await streams.aclose()
    await discovery.aclose()
    await access.aclose()


@pytest.fixture(autouse=True)
def _a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy_upstream, "ERROR_GRACE_S", 5.0)  # the text may come that much after the data's end


async def listen(forwards: LocalForwards, port: int | str, name: str = "echo") -> LocalListener:
    ref = ObjectRef(Kind.SERVICE, "demo", name)
    return (await forwards.open(ref, [PortPair(0, port)]))[0]


async def connect(listener: LocalListener, which: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*listener.addresses[which])


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def expect_reset(listener: LocalListener) -> None:
    reader, writer = await connect(listener)
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def hostname(listener: LocalListener) -> str:
    reader, writer = await connect(listener)
    writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    await close(writer)
    return answer.split()[-1].decode()


async def test_ipv4_and_ipv6_on_the_same_port(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    assert [host for host, _ in listener.addresses] == ["127.0.0.1", "::1"]
    assert len({port for _, port in listener.addresses}) == 1
    for which in (0, 1):
        reader, writer = await connect(listener, which)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        await close(writer)


async def test_connections_are_spread_over_the_ready_pods(sim: SimCluster, forwards: LocalForwards) -> None:
    listener = await listen(forwards, BANNER)
    opened = [await connect(listener) for _ in range(6)]
    names = Counter([(await reader.readline()).split()[1].decode() for reader, _ in opened])
    assert sorted(names.values()) == [3, 3]
    assert set(names) == {pod.name for pod in sim.pods("demo", app="echo")}
    for _, writer in opened:
        await close(writer)


async def test_a_rollout_costs_no_new_connection(sim: SimCluster, forwards: LocalForwards) -> None:
    listener = await listen(forwards, "http")
    assert listener.port == 80
    before = await hostname(listener)
    await sim.roll_deployment("demo", "echo")
    assert await hostname(listener) not in ("", before)


async def test_bytes_pass_both_ways_unchanged(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    reader, writer = await connect(listener)
    sent = bytes(range(256)) * (8 * MIB // 256)

    async def send() -> None:
        writer.write(sent)
        await writer.drain()

    sending = asyncio.create_task(send())
    async with asyncio.timeout(30):
        assert await reader.readexactly(len(sent)) == sent
    await sending
    await close(writer)


async def test_a_client_that_only_finished_sending_gets_all_that_comes(forwards: LocalForwards) -> None:
    listener = await listen(forwards, "http")
    reader, writer = await connect(listener)
    writer.write(b"GET /bytes?n=4m HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert len(answer.partition(b"\r\n\r\n")[2]) == 4 * MIB
    await close(writer)


async def test_a_refused_port_is_a_reset_and_one_log_line(
    forwards: LocalForwards, caplog: pytest.LogCaptureFixture
) -> None:
    echo, refused = await listen(forwards, ECHO), await listen(forwards, REFUSED)
    reader, writer = await connect(echo)
    caplog.clear()
    await expect_reset(refused)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "Nothing listens on port 9999" in warnings[0]
    assert "See: kubectl " in warnings[0]
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    await close(writer)


async def test_the_same_failure_is_told_once_until_a_pod_answers(
    sim: SimCluster, forwards: LocalForwards, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return caplog.text.count("was reset: The pod reset the connection to demo/pair:8080")

    caplog.set_level(logging.INFO)
    listener = await listen(forwards, 80, "pair")
    for times in (1, 2):
        sim.faults.set("demo/pair", 8080, reset=True)
        for _ in range(3):
            await expect_reset(listener)
        assert told() == times
        sim.faults.clear()
        assert await hostname(listener) == "pair"


async def test_another_pod_is_tried_where_one_refuses(sim: SimCluster, forwards: LocalForwards) -> None:
    sim.faults.set(str(sim.pods("demo", app="echo")[0]), 9000, refuse=True)
    listener = await listen(forwards, ECHO)
    for number in range(6):
        reader, writer = await connect(listener)
        writer.write(b"kept %d" % number)
        async with asyncio.timeout(10):
            assert await reader.readexactly(6) == b"kept %d" % number
        await close(writer)


async def test_where_the_pod_is_gone_the_cluster_is_asked_anew(
    forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[PodPort] = []
    asked: list[bool] = []
    open_, reachable = PortForwards.open, Workloads.reachable

    async def gone_once(self: PortForwards, target: PodPort, *arguments: Any, **named: Any) -> Any:
        if not gone:
            gone.append(target)
            raise PodGone("There is no such pod any more.")
        return await open_(self, target, *arguments, **named)

    async def noted(self: Workloads, ref: ObjectRef, port: int | str, *, fresh: bool = False) -> Reachable:
        asked.append(fresh)
        return await reachable(self, ref, port, fresh=fresh)

    listener = await listen(forwards, 80, "pair")
    monkeypatch.setattr(PortForwards, "open", gone_once)
    monkeypatch.setattr(Workloads, "reachable", noted)
    assert await hostname(listener) == "pair"
    assert gone
    assert asked == [False, True]


async def test_a_pod_that_refused_is_not_tried_first_again(
    sim: SimCluster, forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def echoed() -> bool:
        reader, writer = await connect(listener)
        writer.write(b"kept")
        async with asyncio.timeout(10):
            answer = await reader.readexactly(4)
        await close(writer)
        return answer == b"kept"

    monkeypatch.setattr(attempts, "FAILED_MEMORY_S", 600.0)  # a slow machine
    caplog.set_level(logging.INFO)
    refusing = sim.pods("demo", app="echo")[0]
    sim.faults.set(str(refusing), 9000, refuse=True)
    listener = await listen(forwards, ECHO)
    async with asyncio.timeout(30):
        while "Trying again" not in caplog.text:  # until it was chosen
            assert await echoed()
    for _ in range(8):
        assert await echoed()
    assert caplog.text.count(f"Nothing listens on port 9000 of pod {refusing}. Trying again.") == 1


async def test_nothing_is_sent_twice_once_the_pod_has_spoken(sim: SimCluster, forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    reader, writer = await connect(listener)
    writer.write(b"once")
    assert await reader.readexactly(4) == b"once"
    for pod in sim.pods("demo", app="echo"):
        sim.faults.set(str(pod), 9000, reset=True)
    writer.write(b"more")
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_a_reset_by_the_pod_costs_that_connection_alone(forwards: LocalForwards) -> None:
    echo, resets = await listen(forwards, ECHO), await listen(forwards, RESET)
    reader, writer = await connect(echo)
    writer.write(b"a")
    await reader.readexactly(1)
    for _ in range(3):
        await expect_reset(resets)
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"
    await close(writer)


async def test_a_client_that_stops_reading_stalls_nobody_and_is_bounded(forwards: LocalForwards) -> None:
    flood, echo = await listen(forwards, FLOOD), await listen(forwards, ECHO)
    stalled = socket.socket()
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, flood.addresses[0])
    await loop.sock_recv(stalled, 1)
    connection = next(iter(flood._connections.values()))
    assert connection._pod is not None
    await until(lambda: not connection._pod.transport.is_reading())
    assert connection.transport is not None
    assert connection.transport.get_write_buffer_size() < 2 * MIB
    reader, writer = await connect(echo)
    writer.write(b"quick")
    async with asyncio.timeout(5):
        assert await reader.readexactly(5) == b"quick"
    await close(writer)
    stalled.close()
    await until(lambda: not flood._connections)


async def test_a_pod_that_reads_nothing_stops_its_client(
    forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetunnel.forward.local_connection.STALLED_S", 0.2)
    listener = await listen(forwards, MUTE)
    _, writer = await connect(listener)
    writer.write(bytes(64 * MIB))
    connection = await first_connection(listener)
    await until(lambda: connection._stalled_timer is not None)
    assert connection.transport is not None
    assert not connection.transport.is_reading()
    writer.transport.abort()
    await until(lambda: not listener._connections)


async def test_a_client_that_left_without_a_word_frees_its_stream(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    for _ in range(3):
        reader, writer = await connect(listener)
        writer.write(b"x")
        await reader.readexactly(1)
        await close(writer)
    await until(lambda: not listener._connections)


async def test_a_client_that_half_closed_first_is_found_later(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    reader, writer = await connect(listener)
    writer.write(b"x")
    await reader.readexactly(1)
    writer.write_eof()
    connection = await first_connection(listener)
    await until(lambda: connection.finished and connection._look_timer is not None)
    assert listener._connections
    await close(writer)
    await until(lambda: not listener._connections)


async def test_the_same_port_or_a_free_one(forwards: LocalForwards, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ref = ObjectRef(Kind.SERVICE, "demo", "echo")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", REFUSED))
        taken.listen()
        (listener,) = await forwards.open(ref, [PortPair(None, REFUSED)])
        (_, port) = listener.addresses[0]
        assert port != REFUSED
        assert f"requested {REFUSED} -> 127.0.0.1:{port}" in caplog.text
        with pytest.raises(OSError, match="in use") as refused:
            await forwards.open(ref, [PortPair(0, ECHO), PortPair(REFUSED, ECHO)])
        assert refused.value.errno == errno.EADDRINUSE
    assert forwards.listeners == (listener,)


async def test_what_cannot_work_is_refused_at_the_start_or_to_each_connection(forwards: LocalForwards) -> None:
    with pytest.raises(ServiceNotFound):
        await listen(forwards, 80, "nope")
    with pytest.raises(NoReadyEndpoints):
        await listen(forwards, 80, "unready")
    ref = ObjectRef(Kind.SERVICE, "demo", "unready")
    (listener,) = await forwards.open(ref, [PortPair(0, 80)], check=False)
    await expect_reset(listener)


async def test_an_opening_that_is_cancelled_leaves_no_socket(
    forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving: list[asyncio.Server] = []
    start_serving = asyncio.Server.start_serving

    async def stuck(server: asyncio.Server) -> None:
        await start_serving(server)
        serving.append(server)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.base_events.Server, "start_serving", stuck)
    opening = asyncio.create_task(listen(forwards, ECHO))
    await until(lambda: bool(serving))
    address = serving[0].sockets[0].getsockname()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


async def test_closing_lets_running_connections_end(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    address = listener.addresses[0]
    reader, writer = await connect(listener)
    writer.write(b"x")
    await reader.readexactly(1)
    closing = asyncio.create_task(forwards.close(listener))
    await until(lambda: not listener._servers)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    writer.write(b"last words")
    assert await reader.readexactly(10) == b"last words"
    await close(writer)
    async with asyncio.timeout(1.5):  # less than what it would wait at most
        await closing


async def test_closing_ends_what_does_not_end_by_itself(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    reader, writer = await connect(listener)
    writer.write(b"x")
    await reader.readexactly(1)
    await listener.aclose(drain_s=0.01)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert not listener._connections
    writer.close()


async def test_a_closing_that_is_cancelled_ends_the_connections_at_once(forwards: LocalForwards) -> None:
    listener = await listen(forwards, ECHO)
    reader, writer = await connect(listener)
    writer.write(b"x")
    await reader.readexactly(1)
    closing = asyncio.create_task(forwards.aclose(drain_s=3600))
    await until(lambda: listener._closed)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_http_shares_and_the_rest_does_not(forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    open_ = PortForwards.open

    async def noted(self: PortForwards, *arguments: object, shared: bool = False) -> object:
        asked.append(shared)
        return await open_(self, *arguments, shared=shared)  # type: ignore[arg-type]

    monkeypatch.setattr(PortForwards, "open", noted)
    (http,) = await forwards.open(ObjectRef(Kind.POD, "demo", "pair"), [PortPair(0, "web")])
    await hostname(http)
    await hostname(http)
    reader, writer = await connect(await listen(forwards, BANNER))
    await reader.readline()
    await close(writer)
    reader, writer = await connect(await listen(forwards, ECHO))
    writer.write(b"not HTTP")
    await reader.readexactly(8)
    await close(writer)
    assert asked == [False, True, False, False], "beside others only once its port has answered"


async def test_a_port_that_refuses_never_shares(forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    open_ = PortForwards.open

    async def noted(self: PortForwards, *arguments: object, shared: bool = False) -> object:
        asked.append(shared)
        return await open_(self, *arguments, shared=shared)  # type: ignore[arg-type]

    monkeypatch.setattr(PortForwards, "open", noted)
    listener = await listen(forwards, REFUSED)
    for _ in range(3):
        reader, writer = await connect(listener)
        writer.write(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert len(asked) >= 3
    assert not any(asked)


async def test_what_a_client_sent_before_it_closed_arrives(
    forwards: LocalForwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    open_, left = PortForwards.open, asyncio.Event()

    async def late(self: PortForwards, *arguments: object, shared: bool = False) -> object:
        await left.wait()
        return await open_(self, *arguments, shared=shared)  # type: ignore[arg-type]

    send = Upstream.send

    def noted(self: Upstream, stream: ForwardStream, data: Bytes) -> None:
        written.append(bytes(data))
        send(self, stream, data)

    monkeypatch.setattr(PortForwards, "open", late)
    monkeypatch.setattr(Upstream, "send", noted)
    listener = await listen(forwards, ECHO)
    _, writer = await connect(listener)
    writer.write(b"event")
    await close(writer)
    connection = await first_connection(listener)
    await until(lambda: connection.finished and listener.is_departed(connection) is True)
    left.set()
    await until(lambda: not listener._connections)
    assert written == [b"event"]


async def test_a_pod_that_refuses_at_once_is_passed_by() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = [
        Target.of_pod("shop", Endpoint(pod=name, address=address), port)
        for name, address in (("dead", "127.0.0.9"), ("good", "127.0.0.1"))
    ]

    class Pods(Workloads):
        def __init__(self) -> None:
            pass

        async def reachable(self, ref: ObjectRef, port: int | str, *, fresh: bool = False) -> Reachable:
            return Reachable(tuple(found))

        of_context = ""

        def describe(self, ref: ObjectRef) -> str:
            return str(ref)

    direct = DirectConnections()
    ref = ObjectRef(Kind.SERVICE, "shop", "api")
    listener = LocalListener(Pods(), direct, ref, PortPair(0, port), retry_delay_s=0.01)
    await listener.start(check=False)
    for _ in range(10):
        reader, writer = await connect(listener)
        assert await reader.read() == b"ok"
        await close(writer)
    await listener.aclose()
    await direct.aclose()
    server.close()
    await server.wait_closed()


def test_a_link_local_client_does_not_end_the_questions() -> None:
    sockets = ClientSockets()
    assert sockets.is_departed(("fe80::1%lo", 5), ("fe80::2%lo", 6)) is None
    assert sockets._netlink is not None
    sockets.close()


async def first_connection(listener: LocalListener) -> LocalConnection:
    await until(lambda: bool(listener._connections))
    return next(iter(listener._connections.values()))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_tells_who_is_gone(family: socket.AddressFamily) -> None:
    sockets = ClientSockets()
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        client = socket.create_connection(listening.getsockname()[:2])
        ours, _ = listening.accept()
        names = ours.getpeername()[:2], ours.getsockname()[:2]
        try:
            assert sockets.is_departed(*names) is False
            client.shutdown(socket.SHUT_WR)
            assert sockets.is_departed(*names) is False
            client.close()
            assert sockets.is_departed(*names) is True
            ours.sendall(b"too late")  # answered by a reset, and the kernel has forgotten it
            assert sockets.is_departed(*names) is True
            assert sockets.is_departed(("192.0.2.1", 5), ("192.0.2.2", 6)) is None
        finally:
            ours.close()
            sockets.close()
        assert sockets.is_departed(*names) is None
