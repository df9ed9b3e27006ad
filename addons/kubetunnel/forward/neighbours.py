"""The streams of one upstream as each other's neighbours: for whose sake it stops reading, and who suffers by it.

The runtimes have no flow control. So a stream that does not read holds 1 MiB, then its upstream stops for its sake.
While a neighbour waits for an answer, that answer may only lie behind the bytes of the stopped one: it holds 16 MiB
before the upstream stops, which small exchanges need a fraction of. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from kubetunnel.forward.lane import Lane

HELD_BYTES = 1024 * 1024
CROWD_HELD_BYTES = 16 * 1024 * 1024


def stopped(lanes: Collection[Lane], now: float) -> list[Lane]:
    """The streams for whose sake the upstream is not to be read. `now`: since when it is not, or the present."""
    paused = [lane for lane in lanes if lane.stream.paused]
    if not paused:
        return []
    limit = 0 if len(lanes) == 1 else CROWD_HELD_BYTES if anyone_waits(lanes, now) else HELD_BYTES
    return [lane for lane in paused if lane.stream.held_bytes >= limit]


def anyone_waits(lanes: Collection[Lane], now: float) -> bool:
    """Whether a stream that reads waits for an answer."""
    return any(lane.in_flight(now) for lane in lanes)


def any_heavy(lanes: Collection[Lane], now: float) -> bool:
    """Whether one is bulky or has stopped reading; who shares the upstream with such a one is to leave it."""
    heavy = [lane.weigh(now) for lane in lanes]  # each is to be weighed
    return any(heavy)
