"""The local listeners of a running tunnel: of the settings, and asked for; closed, opened anew, tried again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubetunnel import local_ports
from kubetunnel.cluster.workloads import Reachable, Workloads
from kubetunnel.core.errors import ClusterUnreachable, ServiceNotFound
from kubetunnel.core.local_forward import ObjectRef
from kubetunnel.core.settings import ClusterSettings, RetrySettings, Settings
from kubetunnel.forward.listener import LocalForwards, LocalListener
from kubetunnel.local_ports import NO_CLUSTER, LocalPort, LocalPorts, TooManyListeners
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.proxy.databases import free_port

ECHO = "svc/echo -n demo :80"


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as running:
        yield running


@pytest.fixture
def settings(sim: SimCluster, tmp_path: Path) -> Settings:
    return Settings(cluster=ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "config"))))


@pytest.fixture
async def clusters(settings: Settings) -> AsyncIterator[Clusters]:
    made = Clusters(settings)
    yield made
    await made.aclose()


@pytest.fixture
async def ports(clusters: Clusters) -> AsyncIterator[LocalPorts]:
    made = LocalPorts(clusters)
    made.start()
    yield made
    await made.aclose()


def configure(ports: LocalPorts, *entries: str, address: str = "127.0.0.1") -> None:
    ports.configure(entries, address=address, retry=RetrySettings())


async def until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.02)


async def opened(ports: LocalPorts, count: int = 1) -> list[LocalPort]:
    await until(lambda: sum(port.listener is not None for port in ports.ports()) == count)
    return ports.ports()


async def hostname(address: str) -> str:
    """Which pod answers there."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    return answer.splitlines()[-1]


async def is_closed(address: str) -> bool:
    with pytest.raises(ConnectionRefusedError):
        await hostname(address)
    return True


async def test_the_settings_open_them_and_close_them_again(ports: LocalPorts) -> None:
    configure(ports, ECHO, "svc/pair -n demo :80")
    echo, pair = await opened(ports, 2)
    assert (await hostname(echo.addresses[0])).startswith("echo-")
    (address,) = pair.addresses
    assert await hostname(address) == "pair"
    configure(ports, ECHO)
    await until(lambda: pair.listener is None)
    assert ports.ports() == [echo]
    assert await is_closed(address)
    assert (await hostname(echo.addresses[0])).startswith("echo-")


async def test_several_ports_of_one_entry(ports: LocalPorts) -> None:
    configure(ports, "svc/echo -n demo :80 :7")
    first, second = await opened(ports, 2)
    assert first.addresses != second.addresses
    assert (first.entry, first.asked_by) == (second.entry, "settings")


async def test_one_list_whoever_asked(ports: LocalPorts) -> None:
    configure(ports, ECHO)
    ports.ask(ECHO)
    await opened(ports, 2)
    (third,) = await ports.open("", "demo", "svc/echo", [":80"])
    assert [port.asked_by for port in ports.ports()] == ["settings", "user", "user"]
    assert third.entry == ECHO
    assert (await hostname(third.addresses[0])).startswith("echo-")
    (address,) = third.addresses
    await ports.close(third)
    assert await is_closed(address)
    configure(ports)
    assert [port.asked_by for port in await opened(ports)] == ["user"]


async def test_an_unhealthy_pod_is_used_only_where_there_is_no_other(ports: LocalPorts) -> None:
    (port,) = await ports.open("", "demo", "svc/echo", [":80"])
    (address,) = port.addresses
    bad = await hostname(address)
    ports.avoid(lambda forwards, pod_port: pod_port.pod == bad)
    others = set(await asyncio.gather(*(hostname(address) for _ in range(6))))
    assert bad not in others
    ports.avoid(lambda forwards, pod_port: True)
    assert await hostname(address) in {bad, *others}


async def test_asked_twice_is_asked_once(ports: LocalPorts) -> None:
    ports.ask(ECHO)
    ports.ask(ECHO)
    assert len(await opened(ports)) == 1


async def test_what_cannot_be_opened_is_tried_again(
    ports: LocalPorts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_ports, "RETRY_INTERVAL_S", 0.2)
    monkeypatch.setattr(local_ports, "LOOK_INTERVAL_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        configure(ports, f"svc/echo -n demo {number}:80", ECHO)
        blocked, other = ports.ports()
        await until(lambda: bool(blocked.failure))
        tried_s = blocked.tried_s
        await until(lambda: blocked.tried_s > tried_s)
        assert other.listener is not None
        assert caplog.text.count("cannot be opened yet") == 1
        assert blocked.failure == f"Cannot listen on 127.0.0.1:{number}: Address already in use."
    await until(lambda: blocked.listener is not None)
    assert blocked.failure == ""
    assert (await hostname(f"127.0.0.1:{number}")).startswith("echo-")


async def test_other_settings_of_the_cluster_open_them_anew(
    ports: LocalPorts, clusters: Clusters, settings: Settings
) -> None:
    number = free_port()
    (port,) = await ports.open("", "demo", "svc/echo", [f"{number}:80"])
    before = port.listener
    clusters.configure(replace(settings, cluster=replace(settings.cluster, namespace="other")), None)
    await until(lambda: port.listener not in (None, before))
    assert (await hostname(f"127.0.0.1:{number}")).startswith("echo-")
    assert ports.ports() == [port]


async def test_another_address_opens_them_anew(ports: LocalPorts) -> None:
    configure(ports, ECHO)
    (port,) = await opened(ports)
    (before,) = port.addresses
    configure(ports, ECHO, address="127.0.0.2")
    await until(lambda: bool(port.addresses) and port.addresses[0].startswith("127.0.0.2:"))
    assert await is_closed(before)


async def test_all_of_a_request_or_nothing(ports: LocalPorts) -> None:
    number = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await ports.open("", "demo", "svc/echo", [f"{number}:80", f"{taken.getsockname()[1]}:80"])
    with pytest.raises(ServiceNotFound):
        await ports.open("", "demo", "svc/nothere", [":80"])
    assert ports.ports() == []
    assert await is_closed(f"127.0.0.1:{number}")


async def test_there_is_a_bound(ports: LocalPorts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ports, "MAX_ASKED", 2)
    configure(ports, ECHO, "svc/pair -n demo :80", "svc/echo-sts -n demo :80")  # the settings may have more
    ports.ask("svc/echo -n demo :80 :7")
    with pytest.raises(TooManyListeners):
        ports.ask("svc/pair -n demo :80")
    with pytest.raises(TooManyListeners):
        await ports.open("", "demo", "svc/pair", [":80"])
    assert len(ports.ports()) == 5


async def test_listeners_that_find_no_room_when_they_are_open_are_closed(
    ports: LocalPorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ports, "MAX_ASKED", 1)
    number, open_ = free_port(), LocalForwards.open

    async def slow(forwards: LocalForwards, *arguments: Any, **named: Any) -> tuple[LocalListener, ...]:
        ports.ask("svc/pair -n demo :80")  # meanwhile
        return await open_(forwards, *arguments, **named)

    monkeypatch.setattr(LocalForwards, "open", slow)
    with pytest.raises(TooManyListeners):
        await ports.open("", "demo", "svc/echo", [f"{number}:80"])
    assert await is_closed(f"127.0.0.1:{number}")


async def test_without_a_cluster(tmp_path: Path) -> None:
    clusters = Clusters(Settings(cluster=ClusterSettings(kubeconfig=str(tmp_path / "nothere"))))
    ports = LocalPorts(clusters)
    configure(ports, ECHO)
    await ports.apply()
    (port,) = ports.ports()
    await until(lambda: port.failure != "")
    assert (port.failure, port.listener) == (NO_CLUSTER, None)
    await ports.aclose()
    await clusters.aclose()


class Gate:
    """Whoever looks a Service up waits here for as long as its name is in `shut`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shut: set[str] = set()
        self.waiting: list[str] = []
        self._opened = asyncio.Condition()
        reachable = Workloads.reachable

        async def gated(workloads: Workloads, ref: ObjectRef, *arguments: Any, **named: Any) -> Reachable:
            self.waiting.append(ref.name)
            async with self._opened:
                await self._opened.wait_for(lambda: ref.name not in self.shut)
            self.waiting.remove(ref.name)
            return await reachable(workloads, ref, *arguments, **named)

        monkeypatch.setattr(Workloads, "reachable", gated)

    async def open(self) -> None:
        self.shut.clear()
        async with self._opened:
            self._opened.notify_all()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_they_open_side_by_side(ports: LocalPorts, gate: Gate) -> None:
    gate.shut = {"echo", "pair"}
    ports.ask(ECHO)
    ports.ask("svc/pair -n demo :80")
    await until(lambda: sorted(gate.waiting) == ["echo", "pair"])
    configure(ports, "svc/unready -n demo :80")  # asks nothing of the cluster before it is used
    assert await ports.open("", "demo", "svc/echo-sts", [":80"])
    await until(lambda: sum(port.listener is not None for port in ports.ports()) == 2)
    await gate.open()
    await opened(ports, 4)


async def test_to_close_one_waits_for_nobody_elses_opening(ports: LocalPorts, gate: Gate) -> None:
    (port,) = await ports.open("", "demo", "svc/echo", [":80"])
    ports.ask("svc/echo -n demo :7")
    asked = (await opened(ports, 2))[1]
    addresses = [*port.addresses, *asked.addresses]
    gate.shut = {"pair"}
    ports.ask("svc/pair -n demo :80")
    opening = asyncio.create_task(ports.open("", "demo", "svc/pair", [":80"]))
    await until(lambda: gate.waiting == ["pair", "pair"])
    await ports.close(port)
    ports.withdraw([asked])
    await until(lambda: asked.listener is None)
    assert [await is_closed(address) for address in addresses] == [True, True]
    assert gate.waiting == ["pair", "pair"]
    await gate.open()
    assert (await opening)[0].listener is not None
    await opened(ports, 2)


async def test_who_is_taken_back_while_it_opens_is_not_opened(ports: LocalPorts, gate: Gate) -> None:
    number = free_port()
    gate.shut = {"pair"}
    ports.ask(f"svc/pair -n demo {number}:80")
    await until(lambda: gate.waiting == ["pair"])
    ports.withdraw(ports.ports())
    await gate.open()
    ports.ask(ECHO)
    await opened(ports)
    assert await is_closed(f"127.0.0.1:{number}")


async def test_other_settings_while_one_opens_leave_no_listener_behind(ports: LocalPorts, gate: Gate) -> None:
    number = free_port()
    gate.shut = {"echo"}
    opening = asyncio.create_task(ports.open("", "demo", "svc/echo", [f"{number}:80"]))
    await until(lambda: gate.waiting == ["echo"])
    before = list(ports._of_zone.values())
    configure(ports, address="127.0.0.2")
    await until(lambda: list(ports._of_zone.values()) != before)
    await gate.open()
    (port,) = await opening
    await until(lambda: port.addresses == [f"127.0.0.2:{number}"])
    assert await is_closed(f"127.0.0.1:{number}")
    assert (await hostname(f"127.0.0.2:{number}")).startswith("echo-")


async def test_the_end_while_one_opens(clusters: Clusters, gate: Gate) -> None:
    ports = LocalPorts(clusters)
    ports.start()
    number = free_port()
    gate.shut = {"echo"}
    ports.ask(ECHO)
    opening = asyncio.create_task(ports.open("", "demo", "svc/echo", [f"{number}:80"]))
    await until(lambda: gate.waiting == ["echo", "echo"])
    await ports.aclose()
    await gate.open()
    with pytest.raises(ClusterUnreachable):
        await opening
    assert await is_closed(f"127.0.0.1:{number}")


async def test_a_name_that_a_user_mistyped_is_told_and_not_listened_for(
    ports: LocalPorts, sim: SimCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_ports, "RETRY_INTERVAL_S", 0.2)
    monkeypatch.setattr(local_ports, "LOOK_INTERVAL_S", 0.1)
    number = free_port()
    ports.ask(f"svc/later -n demo {number}:80")
    (port,) = ports.ports()
    await until(lambda: port.failure != "")
    assert "has no Service later" in port.failure
    assert caplog.text.count("cannot be opened yet, and is tried again: ") == 1
    assert await is_closed(f"127.0.0.1:{number}")
    await sim.add_service(ServiceSpec("demo", "later", (Port(80, "", "web"),), {"app": "pair"}))
    await until(lambda: port.listener is not None)
    assert await hostname(f"127.0.0.1:{number}") == "pair"
    assert port.failure == ""


async def test_a_cluster_that_is_away_is_told_to_who_asks(
    ports: LocalPorts, sim: SimCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ports, "RETRY_INTERVAL_S", 0.2)
    monkeypatch.setattr(local_ports, "LOOK_INTERVAL_S", 0.1)
    await sim.stop_api()
    ports.ask(ECHO)
    (port,) = ports.ports()
    await until(lambda: port.failure != "")
    assert (port.listener, port.failure.startswith(f"The API server {sim.server}")) == (None, True)
    await sim.start_api()
    await until(lambda: port.listener is not None)
    assert (await hostname(port.addresses[0])).startswith("echo-")


async def test_the_end_closes_all(clusters: Clusters) -> None:
    ports = LocalPorts(clusters)
    ports.start()
    configure(ports, ECHO)
    (port,) = await opened(ports)
    (address,) = port.addresses
    await ports.aclose()
    assert await is_closed(address)
