"""What happened in the last minute, in bounded memory: a count for each second, and latencies in slots of ten.

Latencies are counted in buckets that grow by a fourth root of two (0.1 ms to 100 s), so that a percentile is told to
within a fifth of itself at any size, as in HdrHistogram's log-linear buckets, and costs an addition to record.
"""

from __future__ import annotations

import math

WINDOW_S = 60
_SLOT_S = 10
_SLOTS = WINDOW_S // _SLOT_S
_LEAST_S = 1e-4
_A_DOUBLING = 4
_BUCKETS = 20 * _A_DOUBLING
_SCALE = _A_DOUBLING / math.log(2)
_LOG_LEAST = math.log(_LEAST_S)


class Sliding:
    """Requests, failures and latencies of the last 60 seconds. Times are seconds of one monotonic clock."""

    __slots__ = ("_counts", "_failures", "_second", "_slots")

    def __init__(self, now_s: float) -> None:
        self._counts = [0] * WINDOW_S
        self._failures = [0] * WINDOW_S
        self._slots = [[0] * _BUCKETS for _ in range(_SLOTS)]
        self._second = int(now_s)

    def add(self, now_s: float, latency_s: float | None, *, failed: bool) -> None:
        """One request that ended now."""
        second = int(now_s)
        if second != self._second:
            self._advance(second)
        place = second % WINDOW_S
        self._counts[place] += 1
        if failed:
            self._failures[place] += 1
        if latency_s is not None:
            bucket = int((math.log(latency_s) - _LOG_LEAST) * _SCALE) if latency_s > _LEAST_S else 0
            self._slots[second // _SLOT_S % _SLOTS][min(bucket, _BUCKETS - 1)] += 1

    def sparkline(self, now_s: float) -> list[int]:
        """Requests in each of the last 60 seconds, the oldest first; the last one is the current second."""
        self._advance(int(now_s))
        place = self._second % WINDOW_S + 1
        return self._counts[place:] + self._counts[:place]

    def rates(self, now_s: float) -> tuple[float, float]:
        """Requests a second over the last 10 whole seconds, and the share of failures over the last 60 (0 to 1)."""
        recent = self.sparkline(now_s)[-11:-1]
        total, failures = sum(self._counts), sum(self._failures)
        return sum(recent) / len(recent), failures / total if total else 0.0

    def percentiles_s(self, now_s: float, *shares: float) -> list[float | None]:
        """The latency that this share of the requests stayed within; None where there were none."""
        self._advance(int(now_s))
        counts = [sum(bucket) for bucket in zip(*self._slots, strict=True)]
        total = sum(counts)
        return [_percentile_s(counts, total, share) if total else None for share in shares]

    def _advance(self, second: int) -> None:
        """Forgets what is older than the window."""
        gone = min(second - self._second, WINDOW_S)
        for each in range(second - gone + 1, second + 1):
            self._counts[each % WINDOW_S] = self._failures[each % WINDOW_S] = 0
        slot, last = second // _SLOT_S, self._second // _SLOT_S
        for each in range(max(last + 1, slot - _SLOTS + 1), slot + 1):
            self._slots[each % _SLOTS] = [0] * _BUCKETS
        self._second = max(second, self._second)


def _percentile_s(counts: list[int], total: int, share: float) -> float:
    wanted = share * total
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            within = 1 - (seen - wanted) / count
            return math.exp(_LOG_LEAST + (bucket + within) / _SCALE)
    raise AssertionError("unreachable: the last bucket holds the rest")
