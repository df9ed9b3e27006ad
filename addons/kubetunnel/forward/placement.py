"""On which of a pod's upstreams a new stream goes. Pure; `policy` asks.

The runtimes have no flow control: a stalled stream freezes its neighbours, and bulk delays them. So a stream that may
be either has an upstream to itself (exclusive). Small exchanges (kept-alive HTTP/1) share a few, since every hop behind
us then moves several of them with one system call: twice the rate of one upstream each. Others share, the least used
upstream first, only where a pod has `max_upstreams`, or where they come faster than upstreams can be dialled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_UPSTREAMS = 256  # a pod: some 100 KiB of the API server each, which isolation is worth while clients are programs
MAX_SHARED = 4  # upstreams for small exchanges: one goroutine of each hop serves one of them
STREAMS_A_SHARED = 16  # measured: the rate of one upstream rises up to there


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a waiter wants a stream for. `shared`: small exchanges, which may have neighbours. `since`: seconds."""

    port: int
    shared: bool = False
    since: float = 0.0


@dataclass(slots=True)
class Place:
    """An upstream as the choice sees it."""

    port: int | None  # the only port that it serves; None: any
    streams: int = 0
    shared: bool = False  # all of its streams are small exchanges
    used: bool = False
    stalled: bool = False
    draining: bool = False
    crowded: bool = False  # one of its streams turned out bulky, or its reader stopped
    idle_since: float = 0.0

    @property
    def idle(self) -> bool:
        """Free for any stream."""
        return not (self.streams or self.stalled or self.draining or (self.port is not None and self.used))

    @property
    def neighbourly(self) -> bool:
        """Carries small exchanges, and more of them are welcome."""
        return self.shared and self.streams > 0 and not (self.stalled or self.draining or self.crowded)

    def fits(self, port: int) -> bool:
        """Whether a stream to this port would work there."""
        ours = self.port is None or (self.port == port and not self.used)
        return ours and not self.stalled and not self.draining

    def take(self, wanted: Wanted) -> None:
        """One stream more."""
        self.shared = wanted.shared and (self.shared or not self.streams)
        self.streams += 1
        self.used = True


def choose(places: Mapping[int, Place], wanted: Wanted, *, full: bool, fair: int) -> int | None:
    """The upstream to open on; None where another one is to be dialled or waited for.

    Args:
        full: no further upstream may be dialled.
        fair: streams that an upstream may have at most, with the new one, where they share because it is full.
    """
    fit = {key: place for key, place in places.items() if place.fits(wanted.port)}
    if wanted.shared and (chosen := _neighbourly(fit)) is not None:
        return chosen
    idle = [key for key, place in fit.items() if not place.streams]
    if idle:
        return max(idle, key=lambda key: fit[key].idle_since)  # the rest may go idle enough to be reaped
    if not full:
        return None
    return _least(fit, (key for key, place in fit.items() if place.streams < fair), like=wanted.shared)


def _neighbourly(fit: Mapping[int, Place]) -> int | None:
    """The shared upstream for a small exchange, while there is room on one or no more of them are allowed."""
    shared = [key for key, place in fit.items() if place.neighbourly]
    roomy = [key for key in shared if fit[key].streams < STREAMS_A_SHARED]
    if roomy:
        return max(roomy, key=lambda key: fit[key].streams)  # the fullest: neighbours are what makes them fast
    return _least(fit, shared, like=True) if len(shared) >= MAX_SHARED else None


def _least(fit: Mapping[int, Place], keys: Iterable[int], *, like: bool) -> int | None:
    return min(keys, key=lambda key: (fit[key].crowded, fit[key].shared != like, fit[key].streams), default=None)
