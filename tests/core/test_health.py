"""States of pods and Services from outcomes of checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.health import Check, Health, HealthRecord, Outcome, parse_check, pod_health, prefer_healthy
from kubetunnel.core.health import service_health as of_service

GOOD, BAD = Outcome(True, "fine", 0.002), Outcome(False, "refused")


def run(outcomes: list[bool], max_failures: int = 3) -> HealthRecord:
    record = HealthRecord()
    for number, ok in enumerate(outcomes):
        record = record.after(GOOD if ok else BAD, float(number), max_failures)
    return record


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([], "unknown"),
        ([False], "unknown"),
        ([False, False], "unknown"),
        ([False, False, False], "unhealthy"),
        ([True], "healthy"),
        ([True, False, False], "healthy"),
        ([True, False, False, True, False, False], "healthy"),
        ([True, False, False, False], "unhealthy"),
        ([False, False, False, True], "healthy"),
    ],
)
def test_unhealthy_after_three_failures_in_a_row_healthy_after_one_success(outcomes: list[bool], state: str) -> None:
    assert run(outcomes).state == state


def test_what_a_record_tells() -> None:
    record = run([True, False, False, False, False])
    assert (record.checks, record.failures, record.failures_in_row) == (5, 4, 4)
    assert (record.since_s, record.checked_s) == (3.0, 4.0)  # unhealthy since the third failure
    assert (record.detail, record.latency_s) == ("refused", None)


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_the_state_follows_from_the_last_outcomes_alone(outcomes: list[bool], max_failures: int) -> None:
    record = run(outcomes, max_failures)
    assert record.checks == len(outcomes)
    assert record.failures == outcomes.count(False)
    if outcomes[-max_failures:] == [False] * max_failures:
        assert record.state == "unhealthy"
    elif True in outcomes:
        longest_after_success = outcomes[::-1].index(True)
        assert record.state == ("healthy" if longest_after_success < max_failures else "unhealthy")
    else:
        assert record.state == "unknown"


@pytest.mark.parametrize(
    ("ports", "health"),
    [
        ([], "unknown"),
        (["unknown"], "unknown"),
        (["healthy", "unknown"], "healthy"),
        (["healthy", "unhealthy"], "healthy"),
        (["unhealthy", "unknown"], "unhealthy"),
    ],
)
def test_a_pods_health(ports: list[Health], health: str) -> None:
    assert pod_health(ports) == health


@pytest.mark.parametrize(
    ("pods", "health"),
    [
        ([], "unhealthy"),  # none is ready
        ([[]], "unknown"),
        ([["healthy"], []], "healthy"),
        ([["healthy"], ["unhealthy"]], "degraded"),
        ([["healthy", "unhealthy"]], "degraded"),  # a port of it
        ([["unhealthy"], []], "degraded"),
        ([["unhealthy"], ["unhealthy"]], "unhealthy"),
    ],
)
def test_a_services_health(pods: list[list[Health]], health: str) -> None:
    assert of_service(pods) == health


def test_an_unhealthy_pod_is_used_only_where_there_is_no_other() -> None:
    assert list(prefer_healthy("abc", {"b"}.__contains__)) == ["a", "c"]
    assert list(prefer_healthy("abc", set("abc").__contains__)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", Check("tcp")),
        ("none", Check("none")),
        ("http:/healthz?full=1", Check("http", "/healthz?full=1")),
        ("grpc", Check("grpc")),
        ("grpc:shop.Cart", Check("grpc", "shop.Cart")),
    ],
)
def test_checks(text: str, check: Check) -> None:
    assert parse_check(text) == check


@pytest.mark.parametrize(
    "text", ["", "udp", "tcp:80", "http", "http:healthz", "http:/a b", "http:/a\r\nX: 1", "http:/ä", "none:"]
)
def test_what_is_no_check(text: str) -> None:
    with pytest.raises(ValueError, match="is no health check: tcp, http:/PATH"):
        parse_check(text)
