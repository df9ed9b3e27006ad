"""Go's durations, against the examples of its documentation (time.ParseDuration)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.durations import format_duration, format_number, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("30S", 30), ("1m30s", 90), ("100ms", 0.1), ("100MS", 0.1), ("1.5h", 5400),
        ("1h15m30.918s", 4530.918),
        ("2us", 2e-6), ("2µs", 2e-6), ("5ns", 5e-9), (".5m", 30), ("0", 0), ("0s", 0), (" 5s ", 5),
    ],
)  # fmt: skip
def test_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "1d", "-5s", "5s5", "1..5s", "5sm", "five", "1e3s"])
def test_what_is_none_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s, 1m30s or 100ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30s"), (90, "1m30s"), (0.1, "100ms"), (300, "5m"), (0, "0s"), (3600, "1h")]
)
def test_the_shortest_text(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**8))
def test_what_is_written_is_read_as_it_was(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-4)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (65535, "65535"), (100_000, "100000"), (1_000_000, "1,000,000"), (1 << 40, "1,099,511,627,776")],
)
def test_numbers_for_people(number: int, text: str) -> None:
    assert format_number(number) == text
