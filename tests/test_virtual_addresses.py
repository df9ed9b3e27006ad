"""The file of virtual IPs: kept over restarts, shared by processes, survived when it is broken."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import logging
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from kubetunnel import virtual_addresses
from kubetunnel.core.errors import Timeout
from kubetunnel.core.vips import NoVirtualIP
from kubetunnel.virtual_addresses import UNUSED_DAYS, VirtualAddresses, default_path

SMALL = IPv4Network("10.8.0.0/29")  # six addresses
OTHER = IPv4Network("10.9.0.0/29")
TODAY = datetime.date(2026, 3, 1)
API, DB = "api.shop.svc.cluster.local", "db.shop.svc.cluster.local"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "virtual-addresses.json"


def addresses(path: Path, *ranges: IPv4Network, today: Callable[[], datetime.date] = lambda: TODAY) -> VirtualAddresses:
    return VirtualAddresses(ranges or (SMALL,), path=path, today=today)


async def six_names(kept: VirtualAddresses) -> dict[str, object]:
    return {name: await kept.address_of(name) for name in (f"service-{n}.shop.svc.cluster.local" for n in range(6))}


async def test_names_that_collided_keep_their_addresses(path: Path) -> None:
    first = await six_names(addresses(path))
    again = addresses(path)
    assert {name: await again.address_of(name) for name in reversed(first)} == first
    assert again.name_of(IPv4Address("10.8.0.3")) in first


async def test_the_file_is_the_users_alone(path: Path) -> None:
    await addresses(path).address_of(API)
    assert modes(path.parent) == {".": 0o700, "virtual-addresses.json": 0o600, "virtual-addresses.lock": 0o600}


def modes(directory: Path) -> dict[str, int]:
    found = {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}
    return {".": stat.S_IMODE(directory.stat().st_mode), **found}


async def test_what_another_process_assigns_is_seen(path: Path) -> None:
    ours = addresses(path)
    code = f"""
import asyncio, datetime, ipaddress, pathlib
from kubetunnel.virtual_addresses import VirtualAddresses
kept = VirtualAddresses([ipaddress.ip_network("{SMALL}")], path=pathlib.Path({str(path)!r}))
print(asyncio.run(kept.address_of("{API}")))
"""
    theirs = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    address = IPv4Address(theirs.stdout.strip())
    assert ours.name_of(address) == API
    assert await ours.address_of(API) == address


async def test_processes_that_assign_at_once_agree(path: Path) -> None:
    """Each takes the lock, and reads what the others wrote before it assigns."""
    many = [addresses(path) for _ in range(6)]
    found = await asyncio.gather(*(six_names(each) for each in many))
    assert all(each == found[0] for each in found)
    assert len(set(found[0].values())) == 6


async def test_processes_with_other_ranges_leave_each_others_alone(path: Path) -> None:
    """A name has an address of each, and each finds its own again."""
    ours = addresses(path)
    first = await six_names(ours)
    theirs = addresses(path, OTHER)
    assert dict(theirs.assigned) == {}
    second = await six_names(theirs)
    assert all(address in OTHER for address in second.values())
    assert addresses(path).assigned == first
    assert addresses(path, OTHER).assigned == second
    assert ours.name_of(IPv4Address("10.9.0.1")) is None


async def test_others_addresses_are_forgotten_when_nobody_asks_for_them(path: Path) -> None:
    await addresses(path, OTHER).address_of(API)
    later = TODAY + datetime.timedelta(UNUSED_DAYS)
    await addresses(path, today=lambda: later).address_of(DB)
    assert dict(addresses(path, OTHER).assigned) == {}


async def test_two_ranges_that_overlap(path: Path) -> None:
    """One address may then be a name's here and another's there, always the same."""
    wide = addresses(path, SMALL, OTHER)
    names = [f"pod-{n}.db.shop.svc.cluster.local" for n in range(6)]
    first = {name: await wide.address_of(name) for name in names}
    narrow = addresses(path, OTHER)
    second = {name: await narrow.address_of(name) for name in names}
    assert {name: await addresses(path, SMALL, OTHER).address_of(name) for name in names} == first
    assert {name: await addresses(path, OTHER).address_of(name) for name in names} == second


def inode(path: Path) -> int:
    return path.stat().st_ino


async def test_names_that_are_asked_for_at_once_are_written_at_once(path: Path) -> None:
    kept = VirtualAddresses([IPv4Network("10.64.0.0/16")], path=path, today=lambda: TODAY)
    names = [f"pod-{n}.db.shop.svc.cluster.local" for n in range(2000)]
    versions: set[int] = set()

    async def asked(name: str) -> object:
        found = await kept.address_of(name)
        versions.add(inode(path))
        return found

    found = await asyncio.gather(*(asked(name) for name in names))
    assert len(set(found)) == len(names)
    assert len(versions) <= 2, "the first one alone, then all others"
    assert VirtualAddresses([IPv4Network("10.64.0.0/16")], path=path).assigned == dict(zip(names, found, strict=True))


async def test_of_many_at_once_those_get_one_for_whom_there_is_one(path: Path) -> None:
    kept = addresses(path)
    names = [f"pod-{n}.db.shop.svc.cluster.local" for n in range(9)]
    found = await asyncio.gather(*(kept.address_of(name) for name in names), return_exceptions=True)
    assert len([each for each in found if isinstance(each, IPv4Address)]) == 6
    assert len([each for each in found if isinstance(each, NoVirtualIP)]) == 3
    refused = found.index(next(each for each in found if isinstance(each, NoVirtualIP)))
    with pytest.raises(NoVirtualIP):
        await kept.address_of(names[refused])


async def test_one_who_does_not_wait_leaves_the_others_theirs(path: Path) -> None:
    kept = addresses(path)
    first, second = (asyncio.create_task(kept.address_of(name)) for name in (API, DB))
    await asyncio.sleep(0)
    first.cancel()
    assert await second in SMALL
    assert await kept.address_of(API) in SMALL
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_when_all_are_in_use_another_name_is_refused(path: Path) -> None:
    kept = addresses(path)
    first = await six_names(kept)
    with pytest.raises(NoVirtualIP):
        await kept.address_of(API)
    assert await six_names(kept) == first


async def test_a_name_that_nobody_asked_for_in_a_month_makes_room(path: Path) -> None:
    days = [TODAY]
    kept = addresses(path, today=lambda: days[0])
    first = await six_names(kept)
    days[0] += datetime.timedelta(UNUSED_DAYS - 1)
    for name in list(first)[1:]:
        await kept.address_of(name)
    with pytest.raises(NoVirtualIP):
        await addresses(path, today=lambda: days[0]).address_of(API)
    days[0] += datetime.timedelta(1)
    later = addresses(path, today=lambda: days[0])
    assert await later.address_of(API) == first["service-0.shop.svc.cluster.local"]
    assert set(later.assigned) == {API, *list(first)[1:]}
    with pytest.raises(NoVirtualIP):
        await later.address_of(DB)


def write(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", '{"format": 1, "names": {}}', '{"format": 2, "assigned": 7}',
     '{"format": 2, "assigned": [{"name": "a", "address": "10.8.0.300", "used": "2026-01-01"}]}',
     '{"format": 2, "assigned": [{"name": "a", "address": "10.8.0.3", "used": "yesterday"}]}',
     '{"format": 2, "assigned": [{"name": "a", "address": "10.8.0.3", "used": 7}]}',
     '{"format": 2, "assigned": [{"name": 7, "address": "10.8.0.3", "used": "2026-01-01"}]}',
     '{"format": 2, "assigned": [7]}'],
)  # fmt: skip
async def test_a_broken_file_is_replaced(path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    write(path, content)
    kept = addresses(path)
    address = await kept.address_of(API)
    assert caplog.text.count("is not a file of virtual IPs") == 1
    assert addresses(path).name_of(address) == API


async def test_without_a_place_to_write_they_are_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = addresses(tmp_path / "file" / "virtual-addresses.json")
    address = await kept.address_of(API)
    assert await kept.address_of(DB) != address
    assert kept.name_of(address) == API
    assert caplog.text.count("cannot be kept in") == 1


async def test_a_lock_that_nobody_lets_go_of_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_addresses, "LOCK_PATIENCE_S", 0.05)
    path.parent.mkdir()
    with path.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Timeout, match="Another process has held"):
            await addresses(path).address_of(API)
    assert await addresses(path).address_of(API) in SMALL


async def test_it_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kept = addresses(path)
    for _ in range(3):
        await kept.address_of(API)
    assert caplog.messages == [f"{API} has the virtual IP {kept.assigned[API]}."]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_STATE_HOME": "/somewhere", "HOME": "/home/dev"}, "/somewhere/kube-tunnel/virtual-addresses.json"),
        ({"HOME": "/home/dev"}, "/home/dev/.local/state/kube-tunnel/virtual-addresses.json"),
        ({"XDG_STATE_HOME": "here", "HOME": "/home/dev"}, "/home/dev/.local/state/kube-tunnel/virtual-addresses.json"),
    ],
)
def test_where_it_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any], expected: str) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_path() == Path(expected)


def test_reserved_addresses_are_nobodys(path: Path) -> None:
    kept = VirtualAddresses((SMALL,), path=path, reserved=[IPv4Address("10.8.0.2")])
    assert not kept.covers(IPv4Address("10.8.0.2"))
    reserved: Sequence[str] = [str(each) for each in SMALL.hosts() if not kept.covers(each)]
    assert reserved == ["10.8.0.2"]
