"""What a pod's pool opens, reuses and closes: decisions only, in the manner of httpcore's pool. Pure: time comes in.

The policy is isolation: one client stream an upstream, because the runtimes have no flow control and a stalled stream
freezes its neighbours. Only where a pod has `max_upstreams` of them are they shared, the least used first.
Events go in, actions come out; the pool carries them out and reports back. An upstream is known by its key from the
dial on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_UPSTREAMS = 32  # a pod; beyond that the API server's connections cost more than isolation brings
IDLE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Dial:
    """Open an upstream for what this waiter wants, not before `not_before` (seconds of the clock)."""

    upstream: int
    waiter: int
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
class _Upstream:
    port: int | None  # the only port that it serves; None: any
    streams: int = 0
    used: bool = False
    stalled: bool = False
    draining: bool = False
    idle_since: float = 0.0


@dataclass(slots=True)
class _Dialling:
    waiter: int  # whose need it was; it may have been served by another upstream meanwhile
    failures: int  # in a row, when it began
    overdue: bool = False  # somebody's patience ended: it may be stuck, and nobody else has to rely on it


class PodPolicy:
    """The upstreams of one pod, the dials under way, and the waiters, in order of arrival.

    Args:
        backoff: the delay in seconds after that many failures in a row, from the last of them on.
    """

    def __init__(
        self,
        *,
        max_upstreams: int = MAX_UPSTREAMS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        backoff: Callable[[int], float],
    ) -> None:
        self._max_upstreams = max_upstreams
        self._idle_timeout_s = idle_timeout_s
        self._backoff = backoff
        self._upstreams: dict[int, _Upstream] = {}
        self._dials: dict[int, _Dialling] = {}
        self._waiters: dict[int, int] = {}  # waiter: port
        self._next_upstream = 1
        self._failures = 0
        self._failed_at = 0.0

    @property
    def empty(self) -> bool:
        """Nothing is there, and no failure whose backoff would have to be remembered."""
        return not (self._upstreams or self._dials or self._waiters or self._failures)

    @property
    def streams(self) -> int:
        return sum(upstream.streams for upstream in self._upstreams.values())

    def want(self, waiter: int, port: int, now: float) -> list[Action]:
        """Somebody wants a stream. He is answered by an Assign or a Fail, at once or after another event."""
        self._waiters[waiter] = port
        return self._balance(now)

    def give_up(self, waiter: int, now: float, *, overdue: bool = False) -> list[Action]:
        """A waiter went away unanswered, `overdue` for the time that it took. A dial that was his goes on: it is a
        spare soon, and in place of an overdue one another is begun for who comes next."""
        self._waiters.pop(waiter, None)
        for dial in self._dials.values():
            dial.overdue = dial.overdue or (overdue and dial.waiter == waiter)
        return self._balance(now)

    def dialled(self, upstream: int, now: float, *, port: int | None = None) -> list[Action]:
        """A dial succeeded. `port`: the only one that the upstream serves."""
        self._dials.pop(upstream)
        self._failures = 0
        if port is not None and port not in self._waiters.values():
            return [Close(upstream, "nobody waits for its port any more"), *self._balance(now)]
        self._upstreams[upstream] = _Upstream(port, idle_since=now)
        return self._balance(now)

    def dial_failed(self, upstream: int, now: float) -> list[Action]:
        """A dial failed: its waiter is told; all are when failures repeat, since then one dial is tried for all."""
        dial = self._dials.pop(upstream)
        told = list(self._waiters) if dial.failures else [w for w in self._waiters if w == dial.waiter]
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

    def changed(self, upstream: int, now: float, *, stalled: bool, draining: bool) -> list[Action]:
        """An upstream stalls or moves again, or takes no new streams any more (that stays)."""
        found = self._upstreams.get(upstream)
        if found is None:
            return []
        found.stalled, found.draining = stalled, found.draining or draining
        return self._close_useless(upstream, found) + self._balance(now)

    def lost(self, upstream: int, now: float) -> list[Action]:
        """An upstream is gone, with its streams."""
        return self._balance(now) if self._upstreams.pop(upstream, None) else []

    def drain(self, now: float) -> list[Action]:
        """The pod ends: what is open runs to its end, and carries nothing new."""
        actions: list[Action] = []
        for upstream in list(self._upstreams):
            actions += self.changed(upstream, now, stalled=self._upstreams[upstream].stalled, draining=True)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Once a second: what nobody used for the idle timeout is closed, and an old failure forgotten."""
        actions: list[Action] = []
        for key, upstream in list(self._upstreams.items()):
            if not upstream.streams and now - upstream.idle_since >= self._idle_timeout_s:
                del self._upstreams[key]
                actions.append(Close(key, f"idle for {self._idle_timeout_s:g} s"))
        if not self._dials and now - self._failed_at >= self._idle_timeout_s:
            self._failures = 0
        return actions

    def _close_useless(self, key: int, upstream: _Upstream) -> list[Action]:
        bound = upstream.port is not None
        if upstream.streams or not (upstream.draining or bound):
            return []
        del self._upstreams[key]
        return [Close(key, "draining" if upstream.draining else "its only stream ended")]

    def _balance(self, now: float) -> list[Action]:
        """Serve waiters from what is there, and dial once for each of the others."""
        actions: list[Action] = []
        for waiter, port in list(self._waiters.items()):
            chosen = self._choose(port)
            if chosen is not None:
                del self._waiters[waiter]
                upstream = self._upstreams[chosen]
                upstream.streams += 1
                upstream.used = True
                actions.append(Assign(waiter, chosen))
        served = {dial.waiter for dial in self._dials.values()}
        unserved = [waiter for waiter in self._waiters if waiter not in served]
        # a dial whose waiter was served otherwise is for the next one, if it is not bound to another port
        for dial in self._dials.values():
            if unserved and dial.waiter not in self._waiters and not dial.overdue:
                dial.waiter = unserved.pop(0)
        for waiter in unserved:
            full = len(self._upstreams) + len(self._dials) >= self._max_upstreams
            hopeful = any(not dial.overdue for dial in self._dials.values())
            if (self._dials and full) or (hopeful and self._failures):
                break
            actions.append(self._dial(waiter, now))
        return actions

    def _dial(self, waiter: int, now: float) -> Dial:
        key = self._next_upstream
        self._next_upstream += 1
        self._dials[key] = _Dialling(waiter, self._failures)
        not_before = self._failed_at + self._backoff(self._failures) if self._failures else now
        return Dial(key, waiter, not_before)

    def _choose(self, port: int) -> int | None:
        fit = {
            key: upstream
            for key, upstream in self._upstreams.items()
            if not upstream.stalled
            and not upstream.draining
            and (upstream.port is None or (upstream.port == port and not upstream.used))
        }
        idle = [key for key, upstream in fit.items() if not upstream.streams]
        if idle:
            return max(
                idle, key=lambda key: self._upstreams[key].idle_since
            )  # the rest may go idle enough to be reaped
        if len(self._upstreams) + len(self._dials) < self._max_upstreams:
            return None
        # with dials under way the first that is open must not get everybody
        fair = -(-(self.streams + len(self._waiters)) // self._max_upstreams) if self._dials else self.streams + 1
        shared = (key for key in fit if fit[key].streams < fair)
        return min(shared, key=lambda key: fit[key].streams, default=None)
