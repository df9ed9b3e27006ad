"""The pool's decisions, with no I/O: tables, and a state machine that plays everybody else."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kubetunnel.forward.policy import Action, Assign, Close, Dial, Fail, PodPolicy

LIMIT = 4


def policy(limit: int = LIMIT) -> PodPolicy:
    return PodPolicy(max_upstreams=limit, idle_timeout_s=30.0, backoff=lambda failures: min(1.0, 0.1 * failures))


def test_a_first_attempt_is_never_delayed_and_a_repeated_one_is() -> None:
    pod = policy()
    assert pod.want(1, 80, 100.0) == [Dial(1, 1, 100.0)]
    assert pod.dial_failed(1, 101.0) == [Fail(1)]
    assert pod.want(2, 80, 101.0) == [Dial(2, 2, 101.1)]
    assert pod.want(3, 80, 101.0) == []
    assert pod.dial_failed(2, 101.2) == [Fail(2), Fail(3)]
    assert pod.want(4, 80, 200.0)[0].not_before < 200.0  # type: ignore[union-attr]
    assert Assign(4, 3) in pod.dialled(3, 201.0)
    pod.want(5, 80, 202.0)
    assert pod.dial_failed(4, 203.0) == [Fail(5)]


def test_a_freed_upstream_goes_to_the_first_waiter_and_his_dial_becomes_a_spare() -> None:
    pod = policy()
    pod.want(1, 80, 0)
    pod.dialled(1, 0)
    pod.want(2, 80, 0)
    assert pod.ended(1, 1) == [Assign(2, 1)]
    assert pod.dialled(2, 2) == []
    assert pod.tick(31.9) == []
    assert pod.tick(32.1) == [Close(2, "idle for 30 s")]


def test_the_last_used_is_reused_first() -> None:
    pod = policy()
    for number in (1, 2):
        pod.want(number, 80, 0)
        pod.dialled(number, 0)
    pod.ended(2, 1)
    pod.ended(1, 2)
    assert pod.want(3, 80, 3) == [Assign(3, 1)]


def test_above_the_limit_the_least_used_is_shared_and_a_stalled_one_never() -> None:
    pod = policy(limit=2)
    for number in (1, 2):
        pod.want(number, 80, 0)
        pod.dialled(number, 0)
    pod.changed(1, 0, stalled=True, draining=False)
    assert pod.want(3, 80, 0) == [Assign(3, 2)]
    pod.changed(1, 0, stalled=False, draining=False)
    assert pod.want(4, 80, 0) == [Assign(4, 1)]
    for key in (1, 2):
        pod.changed(key, 0, stalled=True, draining=False)
    assert pod.want(5, 80, 0) == [Dial(3, 5, 0)]


def test_a_crowd_spreads_over_the_limit() -> None:
    pod = policy(limit=4)
    actions = [action for number in range(12) for action in pod.want(number, 80, 0)]
    assert [type(action) for action in actions] == [Dial] * 4
    for key in range(1, 5):
        pod.dialled(key, 0)
    assert sorted(upstream.streams for upstream in pod._upstreams.values()) == [3, 3, 3, 3]


def test_an_upstream_bound_to_a_port_serves_that_port_once() -> None:
    pod = policy()
    pod.want(1, 80, 0)
    pod.want(2, 443, 0)
    assert pod.dialled(1, 0, port=80) == [Assign(1, 1)]
    pod.give_up(2, 0)
    pod.want(3, 80, 0)
    assert pod.dialled(2, 0, port=443) == [Close(2, "nobody waits for its port any more"), Dial(3, 3, 0)]
    assert pod.ended(1, 1) == [Close(1, "its only stream ended")]


def test_draining() -> None:
    pod = policy()
    for number in (1, 2):
        pod.want(number, 80, 0)
        pod.dialled(number, 0)
    pod.ended(2, 0)
    assert pod.drain(1) == [Close(2, "draining")]
    assert pod.want(3, 80, 1) == [Dial(3, 3, 1)]
    assert pod.ended(1, 2) == [Close(1, "draining")]


def test_an_overdue_dial_is_a_spare_that_nobody_waits_for() -> None:
    pod = policy(limit=2)
    pod.want(1, 80, 0)
    assert pod.give_up(1, 2, overdue=True) == []
    assert pod.want(2, 80, 2) == [Dial(2, 2, 2)]
    assert pod.dial_failed(1, 3) == []
    assert pod.dial_failed(2, 3) == [Fail(2)]
    pod.want(3, 80, 4)
    pod.give_up(3, 6, overdue=True)
    assert [type(action) for action in pod.want(4, 80, 6)] == [Dial], "also after failures"
    assert pod.want(5, 80, 6) == [], "the limit holds"


class Pool(RuleBasedStateMachine):
    """Waiters, dials, streams, stalls and losses in any order; what must hold is in the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pod = policy()
        self.waiting: dict[int, int] = {}
        self.dialling: dict[int, int] = {}
        self.streams: dict[int, int] = {}
        self.bound: dict[int, int | None] = {}
        self.stalled: set[int] = set()
        self.draining: set[int] = set()
        self.waiters = 0

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial(key, waiter, not_before):
                    assert key not in self.dialling
                    assert waiter in self.waiting
                    assert not_before <= self.now + 1.0
                    self.dialling[key] = waiter
                case Assign(waiter, key):
                    port = self.waiting.pop(waiter)
                    assert key not in self.stalled | self.draining
                    assert self.bound[key] in (None, port)
                    if self.bound[key] is not None:
                        assert self.streams[key] == 0
                    if self.streams[key]:
                        assert len(self.streams) + len(self.dialling) >= LIMIT
                    self.streams[key] += 1
                case Fail(waiter):
                    del self.waiting[waiter]
                case Close(key, reason):
                    assert reason
                    assert self.streams[key] == 0
                    self.forget(key)

    def forget(self, key: int) -> None:
        del self.streams[key], self.bound[key]
        self.stalled.discard(key)
        self.draining.discard(key)

    @rule(port=st.sampled_from([80, 443]), seconds=st.floats(0, 3))
    def want(self, port: int, seconds: float) -> None:
        self.now += seconds
        self.waiters += 1
        self.waiting[self.waiters] = port
        self.do(self.pod.want(self.waiters, port, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), overdue=st.booleans())
    def give_up(self, data: st.DataObject, *, overdue: bool) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[waiter]
        self.do(self.pod.give_up(waiter, self.now, overdue=overdue))

    @precondition(lambda self: self.dialling)
    @rule(data=st.data(), port=st.sampled_from([None, None, 80, 443]))
    def dialled(self, data: st.DataObject, port: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.dialling)))
        del self.dialling[key]
        self.streams[key] = 0
        self.bound[key] = port
        self.do(self.pod.dialled(key, self.now, port=port))

    @precondition(lambda self: self.dialling)
    @rule(data=st.data())
    def dial_failed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.dialling)))
        del self.dialling[key]
        self.do(self.pod.dial_failed(key, self.now))

    @precondition(lambda self: any(self.streams.values()))
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, count in self.streams.items() if count)))
        self.streams[key] -= 1
        self.do(self.pod.ended(key, self.now))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), stalled=st.booleans(), draining=st.booleans())
    def changed(self, data: st.DataObject, stalled: bool, draining: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.streams)))
        self.stalled = self.stalled | {key} if stalled else self.stalled - {key}
        self.draining |= {key} if draining else set()
        self.do(self.pod.changed(key, self.now, stalled=stalled, draining=draining))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.streams)))
        self.forget(key)
        self.do(self.pod.lost(key, self.now))

    @rule()
    def drain(self) -> None:
        self.draining |= set(self.streams)
        self.do(self.pod.drain(self.now))

    @rule(seconds=st.floats(0, 40))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.pod.tick(self.now))

    @invariant()
    def the_books_agree(self) -> None:
        assert {key: upstream.streams for key, upstream in self.pod._upstreams.items()} == self.streams
        assert self.pod._waiters == self.waiting
        assert set(self.pod._dials) == set(self.dialling)
        assert self.pod.streams == sum(self.streams.values())

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if self.waiting:
            assert self.dialling
        if self.pod._failures:
            return
        alone = [w for w in self.waiting if all(dial.waiter != w for dial in self.pod._dials.values())]
        assert not alone or len(self.streams) + len(self.dialling) >= LIMIT

    @invariant()
    def no_more_dials_than_waiters_asked_for(self) -> None:
        assert len(self.dialling) <= self.waiters


TestPool = Pool.TestCase
