"""Listeners at loopback addresses: opened for a name, closed when nobody needs them, never too many."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, ip_address

import pytest
import pytest_asyncio

from kubetunnel.core.errors import NotForwardable
from kubetunnel.proxy.loopback import LoopbackListeners

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs every address of 127.0.0.0/8, as on Linux")

API, DB = "api.shop.svc.cluster.local", "db.shop.svc.cluster.local"
POD = f"db-0.{DB}"
# of nobody else on this machine: not the range of the defaults
ONE, TWO, THREE = (ip_address(f"127.65.7.{n}") for n in (1, 2, 3))
IDLE_S = 0.1


class Served:
    """Echoes, and keeps the address that each connection came to."""

    def __init__(self) -> None:
        self.at: list[tuple[str, int]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at.append(writer.get_extra_info("sockname"))
        try:
            while data := await reader.read(1000):
                writer.write(data)
        finally:
            writer.close()


@pytest.fixture
def served() -> Served:
    return Served()


@pytest_asyncio.fixture
async def listeners(served: Served) -> AsyncIterator[LoopbackListeners]:
    listeners = LoopbackListeners(served, idle_timeout_s=IDLE_S)
    yield listeners
    listeners.close()


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        yield [each.getsockname()[1] for each in sockets]


async def answers(address: object, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(str(address), port)
    except ConnectionRefusedError:
        return False
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()
    return True


async def closed(address: object, port: int) -> bool:
    """Whether its listener is closed in the end. Each look is a use of it, so they are far apart."""
    for _ in range(20):
        await asyncio.sleep(3 * IDLE_S)
        if not await answers(address, port):
            return True
    return False


async def test_a_names_ports_are_served(listeners: LoopbackListeners, served: Served) -> None:
    with free_ports(2) as (first, second):
        await listeners.open(API, ONE, (first, second))
        await asyncio.gather(listeners.open(DB, TWO, (first,)), listeners.open(DB, TWO, (first,)))
        assert [await answers(ONE, first), await answers(ONE, second)] == [True, True]
        assert [await answers(TWO, first), await answers(TWO, second)] == [True, False]
        assert served.at == [(str(ONE), first), (str(ONE), second), (str(TWO), first)]
        assert listeners.service_port(ONE, first) == first


async def test_a_port_that_may_not_be_bound_is_stood_in_for(
    listeners: LoopbackListeners, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server((str(ONE), 7123)):
        await listeners.open(API, ONE, (7123,))
        assert f"{API} port 7123: listening at {ONE}:17123, since " in caplog.text
        assert await answers(ONE, 17123)
        assert listeners.service_port(ONE, 17123) == 7123
        assert listeners.service_port(TWO, 17123) == 17123


async def test_a_services_own_port_comes_before_a_stand_in(listeners: LoopbackListeners) -> None:
    with socket.create_server((str(ONE), 7124)):
        await listeners.open(API, ONE, (7124, 17124))
        assert listeners.service_port(ONE, 17124) == 17124
        assert await answers(ONE, 17124)


async def test_where_nothing_can_be_bound_the_name_gets_no_address(
    listeners: LoopbackListeners, caplog: pytest.LogCaptureFixture
) -> None:
    nobodys = IPv4Address("192.0.2.1")  # TEST-NET-1
    with pytest.raises(NotForwardable, match="cannot be listened at"):
        await listeners.open(API, nobodys, (7125,))
    assert "port 7125: no listener at 192.0.2.1" in caplog.text
    await listeners.open(API, ONE, (7125,))
    assert await answers(ONE, 7125)


async def test_one_bad_port_does_not_hurt_the_others(
    listeners: LoopbackListeners, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((str(ONE), 60001)):  # 70001 is no port
        for _ in range(2):
            await listeners.open(API, ONE, (60001, 7126))
        assert await answers(ONE, 7126)
        assert caplog.text.count("port 60001: no listener") == 1


async def test_unused_listeners_are_closed(listeners: LoopbackListeners, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await listeners.open(API, ONE, (7127,))
    await listeners.open(DB, TWO, (7127,))
    _, writer = await asyncio.open_connection(str(TWO), 7127)
    assert await closed(ONE, 7127)
    assert DB not in "".join(line for line in caplog.messages if "not used" in line), "it has a connection"
    assert await answers(TWO, 7127)
    writer.close()
    await writer.wait_closed()
    assert await closed(TWO, 7127)
    await listeners.open(API, ONE, (7127,))
    assert await answers(ONE, 7127)


async def test_a_service_that_vanishes_takes_its_listeners_along(listeners: LoopbackListeners) -> None:
    await listeners.open(DB, ONE, (7128, 7129))
    await listeners.open(POD, TWO, (7128, 7129))
    await listeners.open(f"other{DB}", THREE, (7128,))
    reader, writer = await asyncio.open_connection(str(ONE), 7129)
    listeners.keep(DB, (7128,))
    assert [await answers(each, 7128) for each in (ONE, TWO)] == [True, True]
    assert [await answers(each, 7129) for each in (ONE, TWO)] == [False, False]
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still", "connections go on"
    writer.close()
    listeners.keep(DB, ())
    assert [await answers(each, 7128) for each in (ONE, TWO, THREE)] == [False, False, True]
    await listeners.open(DB, ONE, (7129,))
    assert await answers(ONE, 7129)


async def test_there_are_never_too_many(served: Served) -> None:
    listeners = LoopbackListeners(served, max_listeners=3)
    try:
        await listeners.open(API, ONE, (7131, 7132))
        await listeners.open(DB, TWO, (7131,))
        await listeners.open(API, ONE, (7131, 7132))
        await listeners.open(POD, THREE, (7131,))
        assert [await answers(each, 7131) for each in (ONE, TWO, THREE)] == [True, False, True], "the longest unused"
        with pytest.raises(NotForwardable, match="there are 3 at most"):
            await listeners.open(DB, TWO, range(7140, 7144))
        _, first = await asyncio.open_connection(str(ONE), 7131)
        _, other = await asyncio.open_connection(str(THREE), 7131)
        with pytest.raises(NotForwardable, match="there are 3 at most"):
            await listeners.open(DB, TWO, (7131,))
        for writer in (first, other):
            writer.close()
            await writer.wait_closed()
    finally:
        listeners.close()


async def test_none_is_opened_after_the_end(listeners: LoopbackListeners) -> None:
    opening = asyncio.create_task(listeners.open(API, ONE, (7133,)))
    listeners.close()
    with pytest.raises(NotForwardable, match="were closed"):
        await opening
    assert not await answers(ONE, 7133)


async def test_a_burst_waits_for_us_and_not_for_its_next_try(listeners: LoopbackListeners) -> None:
    with free_ports(1) as [port]:
        pass
    await listeners.open(API, ONE, [port])
    with contextlib.ExitStack() as burst:
        for _ in range(200):  # with none accepted meanwhile
            burst.enter_context(socket.create_connection((str(ONE), port), timeout=0.5))
        async with asyncio.timeout(5):
            probe = await asyncio.open_connection(str(ONE), port)
        probe[1].close()
        await probe[1].wait_closed()
