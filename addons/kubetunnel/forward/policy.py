"""What a pod's pool opens, reuses and closes: decisions only, in the manner of httpcore's pool. Pure: time comes in.

Where a stream goes is decided in `placement`; here is when upstreams are dialled for it and closed. Events go in,
actions come out; the pool carries them out and reports back. An upstream is known by its key from the dial on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kubetunnel.forward.placement import MAX_SHARED, MAX_UPSTREAMS, STREAMS_A_SHARED, Place, Wanted, choose

IDLE_TIMEOUT_S = 300.0  # the contract's pool.idle_timeout: of the last upstream to a pod
SPARE_TIMEOUT_S = 30.0  # of those beside it
MAX_DIALS = 32  # at once: more of them only make each slower
SHARE_AFTER_S = 1.0  # who waited so long takes a place beside another stream: better than none at all
FORGET_S = 30.0  # of failures, and of a pod to which nothing is open
SPARES = 1  # idle upstreams of a pod in use; one costs the API server a connection, and the pod nothing


@dataclass(frozen=True, slots=True)
class Dial:
    """Open an upstream for what this waiter wants, not before `not_before` (seconds of the clock). None: a spare."""

    upstream: int
    waiter: int | None
    not_before: float


@dataclass(frozen=True, slots=True)
class Assign:
    """Open the waiter's stream on this upstream; it is counted already."""

    waiter: int
    upstream: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the waiter why the dial failed."""

    waiter: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close an upstream that carries nothing."""

    upstream: int
    reason: str


type Action = Dial | Assign | Fail | Close


@dataclass(slots=True)
class _Dialling:
    waiter: int | None  # whose need it was; it may have been served by another upstream meanwhile
    shared: bool  # it was that of all who want small exchanges
    failures: int  # in a row, when it began
    overdue: bool = False  # somebody's patience ended: it may be stuck, and nobody else has to rely on it


class PodPolicy:
    """The upstreams of one pod, the dials under way, and the waiters, in order of arrival.

    Args:
        idle_timeout_s: the last upstream is closed when it was not used for so long.
        spares: idle upstreams that a pod in use is to have.
        backoff: the delay in seconds after that many failures in a row, from the last of them on.
    """

    def __init__(
        self,
        *,
        max_upstreams: int = MAX_UPSTREAMS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        spares: int = SPARES,
        backoff: Callable[[int], float],
    ) -> None:
        self._max_upstreams = max_upstreams
        self._idle_timeout_s = idle_timeout_s
        self._spares = spares
        self._backoff = backoff
        self._upstreams: dict[int, Place] = {}
        self._dials: dict[int, _Dialling] = {}
        self._waiters: dict[int, Wanted] = {}
        self._next_upstream = 1
        self._failures = 0
        self._failed_at = 0.0
        self._bound = False  # the last dial brought an upstream that serves one stream alone
        self._spare_wanted = False
        self._wanted_at: float | None = None

    @property
    def empty(self) -> bool:
        """Nothing is there nor was lately, and no failure whose backoff would have to be remembered."""
        return not (self._upstreams or self._dials or self._waiters or self._failures or self._wanted_at is not None)

    @property
    def streams(self) -> int:
        return sum(upstream.streams for upstream in self._upstreams.values())

    @property
    def overdue(self) -> bool:
        """Whether a dial takes longer than somebody was ready to wait."""
        return any(dial.overdue for dial in self._dials.values())

    def want(self, waiter: int, port: int, now: float, *, shared: bool = False) -> list[Action]:
        """Somebody wants a stream. He is answered by an Assign or a Fail, at once or after another event."""
        self._waiters[waiter] = Wanted(port, shared, now)
        self._wanted_at = now
        return self._balance(now)

    def give_up(self, waiter: int, now: float, *, overdue: bool = False) -> list[Action]:
        """A waiter went away unanswered, `overdue` for the time that it took. A dial that was his goes on: it is a
        spare soon, and in place of an overdue one another is begun for who comes next."""
        gone = self._waiters.pop(waiter, None)
        for dial in self._dials.values():
            of_all = dial.shared and dial.waiter not in self._waiters and gone is not None and gone.shared
            his = dial.waiter == waiter or of_all
            dial.overdue = dial.overdue or (overdue and his)
        return self._balance(now)

    def dialled(self, upstream: int, now: float, *, port: int | None = None) -> list[Action]:
        """A dial succeeded. `port`: the only one that the upstream serves."""
        self._dials.pop(upstream)
        self._failures = 0
        self._bound = port is not None
        if port is not None and all(wanted.port != port for wanted in self._waiters.values()):
            return [Close(upstream, "nobody waits for its port any more"), *self._balance(now)]
        self._upstreams[upstream] = Place(port, idle_since=now)
        return self._balance(now)

    def dial_failed(self, upstream: int, now: float) -> list[Action]:
        """A dial failed: whose need it was is told; all are when failures repeat, since then one is tried for all."""
        dial = self._dials.pop(upstream)
        told = [
            waiter
            for waiter, wanted in self._waiters.items()
            if dial.failures or waiter == dial.waiter or (dial.shared and wanted.shared)
        ]
        if dial.failures == self._failures:  # dials that began side by side are one failure
            self._failures += 1
            self._failed_at = now
        for waiter in told:
            del self._waiters[waiter]
        return [*(Fail(waiter) for waiter in told), *self._balance(now)]

    def ended(self, upstream: int, now: float) -> list[Action]:
        """A stream that was assigned ended, or was never opened."""
        found = self._upstreams.get(upstream)
        if found is None:
            return []
        found.streams -= 1
        found.idle_since = now
        return self._close_useless(upstream, found) + self._balance(now)

    def changed(
        self, upstream: int, now: float, *, stalled: bool, draining: bool, crowded: bool = False
    ) -> list[Action]:
        """An upstream stalls or moves again, is crowded or no longer, or takes no new streams any more (that stays)."""
        found = self._upstreams.get(upstream)
        if found is None:
            return []
        found.stalled, found.crowded, found.draining = stalled, crowded, found.draining or draining
        return self._close_useless(upstream, found) + self._balance(now)

    def probe(self, now: float) -> list[Action]:
        """An upstream in use says nothing: a dial tells whether it is dead, and takes its place then."""
        hopeful = any(not dial.overdue for dial in self._dials.values())
        full = len(self._upstreams) + len(self._dials) >= self._max_upstreams
        return [] if hopeful or (self._dials and full) else [self._dial(None, now)]

    def lost(self, upstream: int, now: float) -> list[Action]:
        """An upstream is gone, with its streams. Those who shared it come back at once: for them one is dialled."""
        found = self._upstreams.pop(upstream, None)
        if found is None:
            return []
        actions = self._balance(now)
        if found.shared and found.streams > 1 and not (found.draining or self._dials or self._failures or self._idle()):
            actions.append(self._dial(None, now))
        return actions

    def drain(self, now: float) -> list[Action]:
        """The pod ends: what is open runs to its end, and carries nothing new."""
        self._spare_wanted = False
        for place in self._upstreams.values():  # all of them before anybody is given one
            place.draining = True
        useless = [action for key, place in list(self._upstreams.items()) for action in self._close_useless(key, place)]
        return useless + self._balance(now)

    def tick(self, now: float) -> list[Action]:
        """Once a second: what nobody used for its time is closed, an old failure forgotten, a spare dialled."""
        actions: list[Action] = []
        unused = [key for key, upstream in self._upstreams.items() if not upstream.streams]
        for key in sorted(unused, key=lambda key: self._upstreams[key].idle_since):
            timeout_s = self._idle_timeout_s if len(self._upstreams) == 1 else SPARE_TIMEOUT_S
            if now - self._upstreams[key].idle_since >= timeout_s:
                del self._upstreams[key]
                actions.append(Close(key, f"idle for {timeout_s:g} s"))
        if not self._dials and now - self._failed_at >= FORGET_S:
            self._failures = 0
        if self._wanted_at is not None and not self._upstreams and now - self._wanted_at >= FORGET_S:
            self._wanted_at = None
        return actions + self._balance(now) + self._dial_spares(now)

    def _idle(self) -> int:
        return sum(1 for upstream in self._upstreams.values() if upstream.idle)

    def _dial_spares(self, now: float) -> list[Action]:
        # not at once but here: a spare must not compete with the first requests of a burst. Where the pod would be
        # dialled with it, and while dials fail, there is none; one that nobody needed is not replaced when it is reaped
        wanted, self._spare_wanted = self._spare_wanted, False
        if not wanted or self._bound or self._failures or not self.streams:
            return []
        missing = self._spares - self._idle() - len(self._dials)
        room = self._max_upstreams - len(self._upstreams) - len(self._dials)
        return [self._dial(None, now) for _ in range(min(missing, room))]

    def _close_useless(self, key: int, upstream: Place) -> list[Action]:
        bound = upstream.port is not None
        if upstream.streams or not (upstream.draining or bound):
            return []
        del self._upstreams[key]
        return [Close(key, "draining" if upstream.draining else "its only stream ended")]

    def _balance(self, now: float) -> list[Action]:
        """Serve waiters from what is there, and dial once for each of the others."""
        actions: list[Action] = []
        if not self._waiters:
            return actions
        there = len(self._upstreams) + len(self._dials)
        hopeless: set[tuple[int, bool, bool]] = set()
        for waiter, wanted in list(self._waiters.items()):
            full = there >= self._max_upstreams or now - wanted.since >= SHARE_AFTER_S
            if (wanted.port, wanted.shared, full) in hopeless:
                continue
            # with dials under way the first that is open must not get everybody
            fair = -(-(self.streams + len(self._waiters)) // there) if self._dials else self.streams + 1
            chosen = choose(self._upstreams, wanted, full=full, fair=fair)
            if chosen is None:
                hopeless.add((wanted.port, wanted.shared, full))
                continue
            del self._waiters[waiter]
            self._spare_wanted = self._spare_wanted or not self._upstreams[chosen].streams
            self._upstreams[chosen].take(wanted)
            actions.append(Assign(waiter, chosen))
        return actions + self._dial_for_waiters(now)

    def _dial_for_waiters(self, now: float) -> list[Action]:
        actions: list[Action] = []
        unserved = self._unserved()
        # a dial whose waiter was served otherwise is for the next one, if it is not bound to another port
        for dial in self._dials.values():
            if unserved and dial.waiter not in self._waiters and not dial.overdue:
                dial.waiter, dial.shared = unserved[0], self._waiters[unserved[0]].shared and not self._bound
                unserved = self._unserved()
        while unserved:
            full = len(self._upstreams) + len(self._dials) >= self._max_upstreams
            hopeful = sum(1 for dial in self._dials.values() if not dial.overdue)
            if (self._dials and full) or (hopeful and self._failures) or hopeful >= MAX_DIALS:
                break
            actions.append(self._dial(unserved[0], now))
            unserved = self._unserved()
        return actions

    def _unserved(self) -> list[int]:
        """The waiters for whom no dial is under way. One is for many who want small exchanges."""
        served = {dial.waiter for dial in self._dials.values()}
        sharing = [waiter for waiter, wanted in self._waiters.items() if wanted.shared]
        dials = sum(1 for dial in self._dials.values() if dial.shared and not dial.overdue)
        enough = dials + sum(1 for place in self._upstreams.values() if place.neighbourly) >= MAX_SHARED
        served.update(sharing if dials and enough else sharing[: dials * STREAMS_A_SHARED])
        return [waiter for waiter in self._waiters if waiter not in served]

    def _dial(self, waiter: int | None, now: float) -> Dial:
        key = self._next_upstream
        self._next_upstream += 1
        shared = waiter is not None and self._waiters[waiter].shared and not self._bound
        self._dials[key] = _Dialling(waiter, shared, self._failures)
        not_before = self._failed_at + self._backoff(self._failures) if self._failures else now
        return Dial(key, waiter, not_before)
