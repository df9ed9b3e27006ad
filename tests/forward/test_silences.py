"""Which deaths in silence put other connections in doubt."""

from __future__ import annotations

from kubetunnel.forward.silence import DIED_MEMORY_S, REACHED_MEMORY_S, Silences

WEB, API = ("shop", "web"), ("shop", "api")


def test_one_pod_alone_says_nothing() -> None:
    silences = Silences()
    assert not silences.died(WEB, 0.0)
    assert not silences.died(WEB, 1.0)
    assert not silences.reached(API, 1.0)


def test_two_pods_at_a_time_do() -> None:
    silences = Silences()
    assert not silences.died(WEB, 0.0)
    assert silences.died(API, 5.0)
    late = Silences()
    assert not late.died(WEB, 0.0)
    assert not late.died(API, DIED_MEMORY_S)


def test_a_pod_that_is_reached_by_a_new_connection_does_once() -> None:
    silences = Silences()
    assert not silences.died(WEB, 0.0)
    assert silences.reached(WEB, 1.0)
    assert not silences.reached(WEB, 1.1)
    assert silences.died(WEB, 1.2), "the dial came first"
    assert not silences.died(WEB, 1.1 + REACHED_MEMORY_S)
