"""The virtual IPs of this user, kept in a file: the same address for a name after a restart, also where names collided.

The standalone DNS server and the proxy are processes of their own and share the file: one assigns, the other sees it.
It is replaced as a whole (rename(2) is atomic), by whoever holds the lock beside it. Names that are asked for at once,
such as the Pods of a headless Service, are assigned at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from kubetunnel.core.errors import Timeout
from kubetunnel.core.vips import Address, Network, NoVirtualIP, VirtualIPs

logger = logging.getLogger(__name__)

FORMAT = 2

# An address that was told by DNS is remembered by clients, some for as long as they run. So it goes to another name
# only when there is no other one left, and nobody has asked for its name for so long
UNUSED_DAYS = 30

LOCK_PATIENCE_S = 2.0  # another process holds it for milliseconds
_LOCK_INTERVAL_S = 0.01


def default_path(name: str = "virtual-addresses.json") -> Path:
    """Where the file is (XDG Base Directory Specification 0.8, `$XDG_STATE_HOME`)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    # the specification: a relative path is invalid and to be ignored
    state = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return state / "kube-tunnel" / name


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the file. `used`: the day the name was last asked for."""

    name: str
    address: Address
    used: datetime.date


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is known of the file, of one version of it.

    Attributes:
        entries: in the file's order; also those of another process, or of a former one, that has other ranges.
    """

    ips: VirtualIPs
    used: Mapping[str, datetime.date]
    entries: tuple[_Entry, ...]
    version: tuple[int, ...]


class VirtualAddresses:
    """Addresses for names.

    Args:
        ranges, reserved: as those of `VirtualIPs`. Assignments in the file that lie elsewhere are somebody else's: they
            are left there for as long as they are used.
        path: the file; its directory is made.
        today: the date.
    """

    def __init__(
        self,
        ranges: Sequence[Network],
        *,
        path: Path,
        reserved: Collection[Address] = (),
        today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date(),
    ) -> None:
        self._ranges, self._reserved = tuple(ranges), frozenset(reserved)
        self._path = path
        self._today = today
        self._assigning = asyncio.Lock()
        self._waiting: set[str] = set()
        self._refused: dict[str, NoVirtualIP | Timeout] = {}
        self._unreadable: tuple[int, ...] | None = None
        self._told_unwritable = False
        self._kept = self._read(_Kept(VirtualIPs(self._ranges, reserved=self._reserved), {}, (), ()))

    @property
    def assigned(self) -> Mapping[str, Address]:
        """Every name with its address, as last seen."""
        return self._kept.ips.assigned

    def covers(self, address: Address) -> bool:
        """Whether it lies in the ranges, be it somebody's or not."""
        return self._kept.ips.covers(address)

    def name_of(self, address: Address) -> str | None:
        """The full name that has this address; one that another process assigned is seen, too."""
        name = self._kept.ips.name_of(address)
        if name is None and self.covers(address):
            self._kept = self._read(self._kept)
            name = self._kept.ips.name_of(address)
        return name

    async def address_of(self, name: str) -> Address:
        """The address of a full name, in any case.

        Raises:
            NoVirtualIP: all are taken, and by names that are in use.
            Timeout: another process does not let go of the file.
        """
        name = name.lower()
        if (found := self._known(name)) is not None:
            return found
        self._waiting.add(name)
        async with self._assigning:
            if (found := self._known(name)) is not None:
                return found
            if name in self._waiting:
                await self._assign_waiting()
            if (error := self._refused.get(name)) is not None:  # also for others who waited for the same name
                raise error
            return self._kept.ips.assigned[name]

    async def _assign_waiting(self) -> None:
        """All that are waited for by now; those that come meanwhile are the next one's."""
        names, self._waiting = sorted(self._waiting), set()
        self._refused = {}  # the lock is fair: who waited for these was told before
        before = self._kept
        try:
            self._kept, refused = await asyncio.to_thread(self._assign, before, names)
        except Timeout as e:
            self._refused.update(dict.fromkeys(names, e))
            return
        except BaseException:
            self._waiting.update(names)  # the others still wait for theirs
            raise
        self._refused.update(refused)
        for name in names:
            address = self._kept.ips.assigned.get(name)
            if address is not None and before.ips.assigned.get(name) != address:
                logger.info("%s has the virtual IP %s.", name, address)

    def _known(self, name: str) -> Address | None:
        """Without a look at the file, where the name was asked for today; that is told to the file once a day."""
        return self._kept.ips.assigned.get(name) if self._kept.used.get(name) == self._today() else None

    def _assign(self, before: _Kept, names: Sequence[str]) -> tuple[_Kept, dict[str, NoVirtualIP]]:
        """In a thread: `before` is not changed. Gives those too that get none."""
        today = self._today()
        try:
            with self._locked():
                kept = self._read(before)
                ips, used, refused = self._with(kept, names, today)
                return self._write(_Kept(ips, used, _entries(kept.entries, ips, used, today), ())), refused
        except OSError as e:
            self._tell_unwritable(e)
        ips, used, refused = self._with(before, names, today)
        return _Kept(ips, used, before.entries, before.version), refused

    def _with(
        self, kept: _Kept, names: Sequence[str], today: datetime.date
    ) -> tuple[VirtualIPs, dict[str, datetime.date], dict[str, NoVirtualIP]]:
        ips = VirtualIPs(self._ranges, reserved=self._reserved, known=kept.ips.assigned)
        used, refused = dict(kept.used), {}
        for name in names:
            try:
                _address_of(ips, used, name, today)
            except NoVirtualIP as e:
                refused[name] = e
            else:
                used[name] = today
        return ips, used, refused

    def _tell_unwritable(self, error: OSError) -> None:
        if not self._told_unwritable:
            self._told_unwritable = True
            logger.warning(
                "The virtual IPs cannot be kept in %s (%s): other processes do not know them, and after a restart "
                "some names may have others.",
                self._path,
                error.strerror or error,
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # not the file itself: who waits for the lock of one that is replaced holds nothing
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = time.monotonic() + LOCK_PATIENCE_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as e:
                    if time.monotonic() > deadline_s:
                        raise Timeout(
                            f"Another process has held {self._path.with_suffix('.lock')} for {LOCK_PATIENCE_S:g} s.",
                            command=f"fuser -v {self._path.with_suffix('.lock')}",
                        ) from e
                    time.sleep(_LOCK_INTERVAL_S)
            yield
        finally:
            os.close(lock)

    def _read(self, known: _Kept) -> _Kept:
        """The file's content; `known` where it has not changed since, or cannot be read."""
        try:
            with self._path.open("rb") as file:
                version = _version(os.fstat(file.fileno()))
                if version in (known.version, self._unreadable):
                    return known
                content = file.read()
        except FileNotFoundError:
            return known
        except OSError as e:
            self._tell_unwritable(e)
            return known
        try:
            entries = _parse(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            self._unreadable = version
            logger.warning("%s is not a file of virtual IPs (%s); it will be replaced.", self._path, e)
            return known
        assigned: dict[str, Address] = {}
        for entry in entries:
            if known.ips.covers(entry.address):
                assigned.setdefault(entry.name, entry.address)
        ips = VirtualIPs(self._ranges, reserved=self._reserved, known=assigned)
        ours = [entry for entry in entries if ips.assigned.get(entry.name) == entry.address]
        return _Kept(ips, {entry.name: entry.used for entry in ours}, tuple(entries), version)

    def _write(self, kept: _Kept) -> _Kept:
        entries = [
            {"name": entry.name, "address": str(entry.address), "used": entry.used.isoformat()}
            for entry in kept.entries
        ]
        # made with mode 0600
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"format": FORMAT, "assigned": entries}, file, indent=1)
                file.flush()
                version = _version(os.fstat(file.fileno()))
            Path(temporary).replace(self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return _Kept(kept.ips, kept.used, kept.entries, version)


def _address_of(ips: VirtualIPs, used: dict[str, datetime.date], name: str, today: datetime.date) -> None:
    try:
        ips.address_of(name)
    except NoVirtualIP:
        oldest = min((each for each in ips.assigned), key=lambda each: used[each])
        if (today - used[oldest]).days < UNUSED_DAYS:
            raise
        logger.info("%s was not asked for since %s: its virtual IP goes to %s.", oldest, used.pop(oldest), name)
        ips.release(oldest)
        ips.address_of(name)


def _entries(
    before: Sequence[_Entry], ips: VirtualIPs, used: Mapping[str, datetime.date], today: datetime.date
) -> tuple[_Entry, ...]:
    """What the file is to hold: in its order, for of two entries of a name the first that lies in the ranges counts."""
    left = dict(ips.assigned)
    kept = []
    for entry in before:
        if left.get(entry.name) == entry.address:
            del left[entry.name]
            kept.append(_Entry(entry.name, entry.address, used[entry.name]))
        elif (today - entry.used).days < UNUSED_DAYS:
            kept.append(entry)
    return (*kept, *(_Entry(name, address, used[name]) for name, address in left.items()))


def _parse(content: Any) -> list[_Entry]:
    """Raises ValueError, KeyError, TypeError, AttributeError: it is not what `_write` writes."""
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    return [
        _Entry(each["name"].lower(), ip_address(each["address"]), datetime.date.fromisoformat(each["used"]))
        for each in content["assigned"]
    ]


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
