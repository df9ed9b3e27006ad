"""core/backoff.py: the ceilings, the jitter, the end."""

from __future__ import annotations

import math
import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.backoff import Backoff


def test_ceilings_double_up_to_the_cap() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [backoff.delay_s(retry, 1.0) for retry in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_jitter_is_full() -> None:
    assert [Backoff(1, 8).delay_s(3, fraction) for fraction in (0.0, 0.25, 0.5, 1.0)] == [0, 2, 4, 8]


def test_there_are_as_many_delays_as_retries() -> None:
    assert list(Backoff(0.1, 1.0, retries=0).delays_s(random.Random(1))) == []
    assert len(list(Backoff(0.1, 1.0, retries=2).delays_s(random.Random(1)))) == 2


def test_no_limit_has_no_end_and_no_overflow() -> None:
    delays_s = list(islice(Backoff(0.1, 30.0).delays_s(random.Random(1)), 3000))
    assert len(delays_s) == 3000
    assert 10 < sum(delays_s[100:]) / 2900 < 20


def test_delays_follow_from_the_randomness_that_is_passed_in() -> None:
    backoff = Backoff(0.1, 5.0, retries=10)
    assert list(backoff.delays_s(random.Random(7))) == list(backoff.delays_s(random.Random(7)))
    assert list(backoff.delays_s(random.Random(7))) != list(backoff.delays_s(random.Random(8)))


@given(st.floats(1e-6, 1e3), st.floats(1, 1e3), st.integers(0, 10**9), st.floats(0, 1))
def test_a_delay_is_within_its_ceiling(base_s: float, factor: float, retry: int, fraction: float) -> None:
    backoff = Backoff(base_s, base_s * factor)
    assert 0 <= backoff.delay_s(retry, fraction) <= backoff.delay_s(retry + 1, 1.0) <= backoff.cap_s


@pytest.mark.parametrize(
    ("base_s", "cap_s", "retries"),
    [(0, 1, 1), (-1, 1, 1), (2, 1, 1), (math.nan, 1, 1), (1, math.nan, 1), (1, math.inf, 1), (1, 1, -1)],
)
def test_a_senseless_schedule_is_refused(base_s: float, cap_s: float, retries: int) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Backoff(base_s, cap_s, retries)
