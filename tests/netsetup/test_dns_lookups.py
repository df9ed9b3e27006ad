"""How often, and how long, the cluster is asked."""

from __future__ import annotations

import asyncio

import pytest

from kubetunnel.core.catalog import ServiceState
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, KubeTunnelError, NotForwardable, Timeout
from kubetunnel.core.names import PodName, ServiceName
from netsetup.answers import Addressed
from netsetup.dns_lookups import FAILURE_MEMORY_S, Lookups, Missing
from netsetup.dns_records import Address
from tests.netsetup.shop import ZONE, Shop

API = ServiceName("api", "shop", ZONE)
NO = ServiceName("no", "shop", ZONE)


class Clock:
    """Stands in for the loop's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real = asyncio.get_running_loop().time
        monkeypatch.setattr(Lookups, "_now", staticmethod(lambda: real() + self.ahead_s))


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_absence_is_remembered(clock: Clock) -> None:
    shop = Shop()
    lookups = Lookups(shop, negative_ttl_s=5)
    first = await lookups.service(NO)
    assert isinstance(first, Missing)
    assert not first.is_namespace
    clock.ahead_s = 4
    assert await lookups.service(NO) == first
    assert shop.asked[str(NO)] == 1
    clock.ahead_s = 6
    shop.states["no"] = shop.states["api"]
    assert isinstance(await lookups.service(NO), ServiceState)
    await lookups.aclose()


async def test_a_missing_namespace(clock: Clock) -> None:
    found = await Lookups(Shop()).service(ServiceName("api", "nowhere", ZONE))
    assert isinstance(found, Missing)
    assert found.is_namespace


async def test_a_failure_is_remembered_for_a_second(clock: Clock) -> None:
    shop = Shop()
    shop.error = ClusterUnreachable("It is off.")
    lookups = Lookups(shop)
    for _ in range(3):
        with pytest.raises(ClusterUnreachable):
            await lookups.service(API)
    assert shop.asked[str(API)] == 1
    shop.error = None
    clock.ahead_s = FAILURE_MEMORY_S + 0.1
    assert isinstance(await lookups.service(API), ServiceState)


async def test_who_asks_at_the_same_time_shares_one_lookup() -> None:
    shop = Shop()
    shop.gate.clear()
    lookups = Lookups(shop)
    asking = [asyncio.create_task(lookups.service(API)) for _ in range(5)]
    await shop.was_asked.wait()
    asking[0].cancel()
    shop.gate.set()
    assert len([state for state in await asyncio.gather(*asking[1:]) if isinstance(state, ServiceState)]) == 4
    assert shop.asked[str(API)] == 1
    await asyncio.wait(asking)


async def test_a_lookup_outlives_its_callers_patience(clock: Clock) -> None:
    shop = Shop()
    shop.gate.clear()
    lookups = Lookups(shop, patience_s=0.05)
    with pytest.raises(Timeout):
        await lookups.service(API)
    clock.ahead_s = FAILURE_MEMORY_S + 0.1
    shop.gate.set()
    assert isinstance(await lookups.service(API), ServiceState)
    assert shop.asked[str(API)] == 1
    await lookups.aclose()


async def test_closing_ends_lookups() -> None:
    shop = Shop()
    shop.gate.clear()
    lookups = Lookups(shop, patience_s=0.05)
    with pytest.raises(Timeout):
        await lookups.service(API)
    await lookups.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_line_when_it_begins_and_one_when_it_ends(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shop = Shop()
    lookups = Lookups(shop)
    shop.error = ClusterUnreachable("It is off.")
    for _ in range(3):
        clock.ahead_s += 2
        with pytest.raises(KubeTunnelError):
            await lookups.service(API)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "It is off." in caplog.text
    shop.error = None
    clock.ahead_s += 2
    await lookups.service(API)
    await lookups.service(API)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_missing_right_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    lookups = Lookups(shop)
    for _ in range(3):
        clock.ahead_s += 2
        shop.error = Forbidden("No right.")
        with pytest.raises(Forbidden):
            await lookups.service(API)
        shop.error = None
        await lookups.service(NO)
    assert len(caplog.records) == 1


async def test_no_address_to_be_had(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    lookups = Lookups(shop, patience_s=0.2)
    shop.error = NotForwardable("The ranges are full.")
    for _ in range(2):
        with pytest.raises(NotForwardable):
            await lookups.addresses((API,), shop.states["api"])
    assert len(caplog.records) == 1


class FullShop(Shop):
    """Has an address for `db-0` alone."""

    async def address_of(self, name: Addressed, state: ServiceState | None) -> Address:
        if "db-0" not in str(name):
            raise NotForwardable("The ranges are full.")
        return await super().address_of(name, state)


async def test_addresses_for_some_are_better_than_none(caplog: pytest.LogCaptureFixture) -> None:
    shop = FullShop()
    lookups = Lookups(shop)
    pods = tuple(PodName(hostname, ServiceName("db", "shop", ZONE)) for hostname in ("db-1", "db-0", "db-2"))
    for _ in range(2):
        assert list(await lookups.addresses(pods, shop.states["db"])) == [pods[1]]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is answered in part" in caplog.text
