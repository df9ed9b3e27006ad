"""The last minute in numbers, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.observe.sliding import Sliding


def test_a_minute_is_remembered_second_by_second() -> None:
    window = Sliding(1000.0)
    window.add(1000.2, 0.01, failed=False)
    window.add(1000.9, 0.01, failed=False)
    window.add(1003.0, 0.01, failed=True)
    assert window.sparkline(1003.5) == [0] * 56 + [2, 0, 0, 1]
    assert window.sparkline(1059.9)[:4] == [2, 0, 0, 1]
    assert sum(window.sparkline(1060.0)) == 1
    assert sum(window.sparkline(1063.0)) == 0
    assert window.sparkline(5000.0) == [0] * 60


def test_rates_are_those_of_whole_seconds() -> None:
    window = Sliding(0.0)
    for tenth in range(300):
        window.add(tenth / 10, None, failed=tenth % 4 == 0)
    rate, errors = window.rates(30.05)
    assert rate == 10.0
    assert errors == 0.25
    assert window.rates(200.0) == (0.0, 0.0)


@given(st.lists(st.floats(0.0002, 60.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_told_to_within_a_fifth(latencies: list[float], share: float) -> None:
    window = Sliding(0.0)
    for latency in latencies:
        window.add(1.0, latency, failed=False)
    (found,) = window.percentiles_s(1.0, share)
    ranked = sorted(latencies)
    exact = next(x for n, x in enumerate(ranked, 1) if n >= share * len(ranked))
    assert found == pytest.approx(exact, rel=0.2)


def test_latencies_are_forgotten_after_a_minute() -> None:
    window = Sliding(0.0)
    window.add(5.0, 2.0, failed=False)
    window.add(30.0, 0.001, failed=False)
    assert window.percentiles_s(59.0, 0.99)[0] == pytest.approx(2.0, rel=0.2)
    assert window.percentiles_s(61.0, 0.99)[0] == pytest.approx(0.001, rel=0.2)
    assert window.percentiles_s(95.0, 0.5, 0.99) == [None, None]


@pytest.mark.parametrize("latency", [0.0, -1.0, 1e-9, 1e9])
def test_latencies_out_of_range_are_counted_at_the_ends(latency: float) -> None:
    window = Sliding(0.0)
    window.add(0.0, latency, failed=False)
    assert window.percentiles_s(0.0, 0.5)[0] is not None
