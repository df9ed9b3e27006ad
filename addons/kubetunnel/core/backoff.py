"""How long to wait before trying again: capped exponential backoff with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): a delay drawn evenly from 0 to the
ceiling spreads clients that failed together better than any narrower jitter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """A schedule of retries.

    Args:
        base_s: the ceiling of the first delay.
        cap_s: the ceiling that the doubling ends at.
        retries: how many delays there are; None where another decides when to give up (a watch goes on while used).
    """

    base_s: float
    cap_s: float
    retries: int | None = None

    def __post_init__(self) -> None:
        if not (0 < self.base_s <= self.cap_s < math.inf):
            raise ValueError(f"wanted 0 < base_s <= cap_s, not {self.base_s} and {self.cap_s}")
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"wanted retries >= 0, not {self.retries}")

    def delay_s(self, retry: int, fraction: float) -> float:
        """The delay before a retry, counted from 0, in seconds. `fraction` is the randomness: 0 to 1, evenly drawn."""
        doublings = min(retry, 1000)  # 2.0**1024 is an OverflowError
        return min(self.cap_s, self.base_s * 2.0**doublings) * fraction

    def delays_s(self, rng: random.Random) -> Iterator[float]:
        """The delays, one before each retry, at most `retries`. After a success start over with a new iterator."""
        retry = 0
        while self.retries is None or retry < self.retries:
            yield self.delay_s(retry, rng.random())
            retry += 1
