"""Silence: when it is death, and when it is not."""

from __future__ import annotations

import pytest

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.forward.errors import pod_is_gone, stream_error
from kubetunnel.forward.liveness import Liveness


def looks(liveness: Liveness, seconds: range, *, reading: bool = True, uploading: bool = False) -> dict[int, str]:
    found = {second: liveness.look(float(second), reading=reading, uploading=uploading) for second in seconds}
    return {second: verdict for second, verdict in found.items() if verdict}


def test_a_ping_after_five_seconds_and_death_within_ten() -> None:
    assert looks(Liveness(0.0), range(1, 10)) == {5: "ping", 9: "dead"}


def test_an_answer_starts_over() -> None:
    liveness = Liveness(0.0)
    assert looks(liveness, range(1, 9)) == {5: "ping"}
    assert liveness.stalled(8.0)
    liveness.heard(8.5)
    assert not liveness.stalled(8.6)
    assert looks(liveness, range(9, 17)) == {14: "ping"}


def test_silence_of_our_own_is_no_death() -> None:
    assert looks(Liveness(0.0), range(1, 60), reading=False) == {}
    assert looks(Liveness(0.0), range(1, 120), uploading=True) == {5: "ping"}
    assert looks(Liveness(0.0), range(1, 121), uploading=True) == {5: "ping", 120: "dead"}
    suspended = Liveness(0.0)
    assert looks(suspended, range(1, 7)) == {5: "ping"}
    assert suspended.look(5000.0, reading=True, uploading=False) == "ping", "who knows what became of the connection"
    assert not suspended.stalled(5000.5)
    assert suspended.stalled(5001.0)
    assert {
        second: looked
        for second in range(5001, 5010)
        if (looked := suspended.look(float(second), reading=True, uploading=False))
    } == {5009: "dead"}


def test_a_stream_that_waits_for_an_answer_is_a_reason_to_ask_sooner() -> None:
    waiting = Liveness(0.0)
    assert [waiting.look(float(second), reading=True, uploading=False, waiting=True) for second in (1, 2, 3)] == [
        None,
        "ping",
        None,
    ]
    assert waiting.stalled(3.0)


def test_a_peer_that_never_answers_cannot_die_of_it() -> None:
    assert looks(Liveness(0.0, answers=False), range(1, 30)) == {5: "ping"}


TARGET = PodPort("shop", "web", 5432)
NETNS = (
    'error forwarding port 5432 to pod f38c, uid : failed to execute portforward in network namespace "/var/run/x": '
)


@pytest.mark.parametrize(
    ("text", "expected", "gone"),
    [
        (
            NETNS + "failed to connect to localhost:5432 IPv4: dial tcp4: connect: connection refused",
            ConnectionRefused,
            0,
        ),
        (NETNS + "failed to connect to localhost:5432 inside namespace, IPv4: no address", ConnectionRefused, 0),
        (NETNS + "failed to connect to localhost:5432: dial tcp4: i/o timeout", Timeout, 0),
        (NETNS + "read tcp4 127.0.0.1:1->127.0.0.1:5432: read: connection reset by peer", UpstreamReset, 0),
        ("error forwarding port: exit status 1: socat[9] E connect(5): Connection refused", ConnectionRefused, 0),
        ("unable to do port forwarding: socat not found", UpstreamProtocol, 0),
        ("error forwarding port 5432: sandbox f38c is not running", UpstreamReset, 1),
        ("network namespace for sandbox f38c is closed", UpstreamReset, 1),
        ("failed to find sandbox f38c: not found", UpstreamReset, 1),
        ("rpc error: no such container", UpstreamReset, 1),
        ("something new", UpstreamReset, 0),
        ("", UpstreamReset, 0),
    ],
)
def test_what_the_runtimes_say(text: str, expected: type[Exception], gone: int) -> None:
    assert isinstance(stream_error(text, TARGET), expected)
    assert pod_is_gone(text) == bool(gone)
