"""Deadlines of many exchanges on few timers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.proxy.http.deadlines import Deadlines, parse_grpc_timeout


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1H", 3600.0), ("2M", 120.0), ("3S", 3.0), ("100m", 0.1), ("5u", 5e-6), ("7n", 7e-9), ("00000001S", 1.0)],
)
def test_grpc_timeouts(value: str, seconds: float) -> None:
    assert parse_grpc_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", "1 S", "\u0661S"])
def test_malformed_grpc_timeouts(value: str) -> None:
    assert parse_grpc_timeout(value) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(1, 50))), max_size=60))
def test_each_deadline_passes_once_and_in_time(actions: list[tuple[int, int | None]]) -> None:
    deadlines = Deadlines()
    wakeups: set[float] = set()
    due: dict[int, float] = {}
    now = 0.0
    for stream_id, delay in actions:
        now += 1
        for at in sorted(w for w in wakeups if w <= now):
            wakeups.discard(at)
            assert set(deadlines.passed(at)) == {s for s, t in due.items() if t <= at}
            due = {s: t for s, t in due.items() if t > at}
            if (again := deadlines.next_wakeup(at)) is not None:
                wakeups.add(again)
        assert all(t > now for t in due.values())
        if delay is None:
            deadlines.discard(stream_id)
            due.pop(stream_id, None)
        else:
            due[stream_id] = now + delay
            if deadlines.set(stream_id, now + delay):
                wakeups.add(now + delay)
        assert len(deadlines) == len(due)
        assert not due or min(wakeups) <= min(due.values())
