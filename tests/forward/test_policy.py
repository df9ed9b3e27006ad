"""The pool's decisions, with no I/O: tables, and a state machine that plays everybody else."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kubetunnel.forward.placement import MAX_SHARED, STREAMS_A_SHARED, Wanted
from kubetunnel.forward.policy import MAX_DIALS, SHARE_AFTER_S, Action, Assign, Close, Dial, Fail, PodPolicy

LIMIT = MAX_SHARED
SPARES = 1


def policy(limit: int = LIMIT, spares: int = 0) -> PodPolicy:
    return PodPolicy(
        max_upstreams=limit, idle_timeout_s=300.0, spares=spares, backoff=lambda failures: min(1.0, 0.1 * failures)
    )


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


def test_of_the_unused_the_last_one_stays_for_long() -> None:
    pod = policy()
    for number in (1, 2):
        pod.want(number, 80, 0)
        pod.dialled(number, 0)
    pod.ended(1, 1), pod.ended(2, 2)
    assert pod.tick(60) == [Close(1, "idle for 30 s")]
    assert pod.tick(301.9) == []
    assert pod.tick(302) == [Close(2, "idle for 300 s")]


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


def test_who_waits_when_the_pod_ends_gets_nothing_of_it() -> None:
    pod = policy()
    waiters = itertools.count(1)
    for _ in range(17):
        pod.want(next(waiters), 80, 0, shared=True)
    pod.dialled(1, 0)
    for _ in range(3):
        pod.want(next(waiters), 80, 0)
    pod.dial_failed(2, 0)
    for _ in range(10):
        pod.want(next(waiters), 80, 0, shared=True)
    pod.dial_failed(3, 0)
    pod.dialled(4, 0)
    assert len(pod._upstreams) == 2
    assert pod._waiters
    assert not any(isinstance(action, Assign) for action in pod.drain(0))


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


def small(pod: PodPolicy, waiters: range, now: float = 0) -> list[Action]:
    return [action for waiter in waiters for action in pod.want(waiter, 80, now, shared=True)]


def test_small_exchanges_share_an_upstream_and_one_dial_does_for_them() -> None:
    pod = policy(limit=32)
    assert small(pod, range(1, 17)) == [Dial(1, 1, 0)]
    assert pod.dialled(1, 0) == [Assign(waiter, 1) for waiter in range(1, 17)]
    assert small(pod, range(17, 18)) == [Dial(2, 17, 0)], "16 are enough for one"
    assert pod.dialled(2, 0) == [Assign(17, 2)]
    pod.ended(1, 0)
    assert small(pod, range(18, 19)) == [Assign(18, 1)], "the fullest first"


def test_a_crowd_of_small_exchanges_gets_a_few_upstreams_and_no_more() -> None:
    pod = policy(limit=32)
    dials = small(pod, range(1, 201))
    assert [type(action) for action in dials] == [Dial] * MAX_SHARED
    assigned = [action for key in range(1, MAX_SHARED + 1) for action in pod.dialled(key, 0)]
    assert len(assigned) == 200
    assert all(isinstance(action, Assign) for action in assigned)
    assert {upstream.streams for upstream in pod._upstreams.values()} == {50}


def test_a_burst_is_dialled_in_turns_and_who_waits_too_long_shares() -> None:
    pod = policy(limit=256)
    dials = [action for waiter in range(1, 101) for action in pod.want(waiter, 5432, 0)]
    assert len(dials) == MAX_DIALS
    assert pod.dialled(1, 0.1) == [Assign(1, 1), Dial(33, 33, 0.1)]
    late = pod.dialled(2, SHARE_AFTER_S)
    assert Assign(2, 2) in late
    assert {upstream.streams for upstream in pod._upstreams.values()} == {4}, "100 over 33"
    assert pod.want(101, 5432, 0.4) == [], "MAX_DIALS are under way"


def test_an_exclusive_stream_has_no_neighbours_below_the_limit() -> None:
    pod = policy(limit=32)
    small(pod, range(1, 2))
    pod.dialled(1, 0)
    assert pod.want(2, 5432, 0) == [Dial(2, 2, 0)]
    assert pod.dialled(2, 0) == [Assign(2, 2)]
    assert small(pod, range(3, 4)) == [Assign(3, 1)]
    pod.ended(2, 0)
    assert pod.want(4, 5432, 0) == [Assign(4, 2)]


def test_a_crowded_upstream_gets_no_new_neighbours() -> None:
    pod = policy(limit=32)
    small(pod, range(1, 3))
    pod.dialled(1, 0)
    pod.changed(1, 0, stalled=False, draining=False, crowded=True)
    assert small(pod, range(3, 4)) == [Dial(2, 3, 0)]
    assert pod.dialled(2, 0) == [Assign(3, 2)]
    pod.changed(1, 0, stalled=False, draining=False, crowded=False)
    assert small(pod, range(4, 5)) == [Assign(4, 1)]


def test_small_exchanges_over_v4_have_a_dial_each() -> None:
    pod = policy(limit=32)
    small(pod, range(1, 4))
    assert pod.dialled(1, 0, port=80) == [Assign(1, 1), Dial(2, 2, 0), Dial(3, 3, 0)]


def test_a_failed_dial_is_told_to_all_for_whom_it_was() -> None:
    pod = policy(limit=32)
    small(pod, range(1, 4))
    pod.want(4, 5432, 0)
    assert pod.dial_failed(1, 1) == [Fail(1), Fail(2), Fail(3)]
    assert pod.dial_failed(2, 1) == [Fail(4)]


def test_a_pod_in_use_has_a_spare_a_moment_later() -> None:
    pod = policy(limit=2, spares=1)
    pod.want(1, 80, 0)
    assert pod.dialled(1, 0) == [Assign(1, 1)]
    assert pod.tick(1) == [Dial(2, None, 1)]
    assert pod.tick(2) == [], "one is under way"
    assert pod.dialled(2, 2) == []
    assert pod.want(2, 80, 3) == [Assign(2, 2)]
    assert pod.tick(4) == [], "the limit holds"
    pod.ended(1, 5)
    assert pod.tick(35) == [Close(1, "idle for 30 s")]
    assert pod.tick(36) == [], "nobody needed it"


def test_the_dial_of_a_spare_serves_who_comes() -> None:
    pod = policy(spares=1)
    pod.want(1, 80, 0)
    pod.dialled(1, 0)
    pod.tick(1)
    assert pod.want(2, 80, 2) == []
    assert pod.dialled(2, 3) == [Assign(2, 2)]


def test_no_spare_where_the_pod_would_be_dialled_with_it_nor_after_a_failure_nor_for_a_pod_that_ends() -> None:
    bound, failing, ending = policy(spares=1), policy(spares=1), policy(spares=1)
    for pod in (bound, failing, ending):
        pod.want(1, 80, 0)
    bound.dialled(1, 0, port=80)
    failing.dialled(1, 0)
    failing.want(2, 80, 0)
    failing.dial_failed(2, 0)
    ending.dialled(1, 0)
    ending.drain(0)
    assert [pod.tick(1) for pod in (bound, failing, ending)] == [[], [], []]


def test_who_shared_a_lost_upstream_finds_a_new_one_under_way() -> None:
    pod = policy()
    small(pod, range(1, 3))
    pod.dialled(1, 0)
    assert pod.lost(1, 1) == [Dial(2, None, 1)]
    assert small(pod, range(3, 5), 1) == []
    assert pod.dialled(2, 1) == [Assign(3, 2), Assign(4, 2)]


class Pool(RuleBasedStateMachine):
    """Waiters, dials, streams, stalls and losses in any order; what must hold is in the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pod = policy(spares=SPARES)
        self.waiting: dict[int, Wanted] = {}
        self.dialling: set[int] = set()
        self.streams: dict[int, list[bool]] = {}  # of each whether it is one of small exchanges
        self.bound: dict[int, int | None] = {}
        self.served: set[int] = set()  # bound ones that had their stream
        self.stalled: set[int] = set()
        self.draining: set[int] = set()
        self.crowded: set[int] = set()
        self.closed: set[int] = set()
        self.waiters = 0
        self.dials = 0

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dial(key, waiter, not_before):
                    assert key not in self.dialling | self.closed | set(self.streams)
                    assert waiter is None or waiter in self.waiting
                    assert not_before <= self.now + 1.0
                    self.dialling.add(key)
                    self.dials += 1
                case Assign(waiter, key):
                    self.assigned(key, self.waiting.pop(waiter))
                case Fail(waiter):
                    del self.waiting[waiter]
                case Close(key, reason):
                    assert reason
                    assert not self.streams[key]
                    self.forget(key)

    def assigned(self, key: int, wanted: Wanted) -> None:
        assert key not in self.stalled | self.draining
        assert self.bound[key] in (None, wanted.port)
        assert key not in self.served
        if self.bound[key] is not None:
            self.served.add(key)
        beside = self.streams[key]
        forced = len(self.streams) + len(self.dialling) >= LIMIT or self.now - wanted.since >= SHARE_AFTER_S
        if beside and not (all(beside) and wanted.shared and key not in self.crowded):
            assert forced, "a neighbour that was not asked for"
        elif len(beside) >= STREAMS_A_SHARED:
            assert forced, "more neighbours than are good, and no need"
        beside.append(wanted.shared)

    def forget(self, key: int) -> None:
        assert key not in self.closed
        self.closed.add(key)
        del self.streams[key], self.bound[key]
        for marks in (self.stalled, self.draining, self.crowded, self.served):
            marks.discard(key)

    @rule(port=st.sampled_from([80, 443]), seconds=st.floats(0, 3), shared=st.booleans())
    def want(self, port: int, seconds: float, *, shared: bool) -> None:
        self.now += seconds
        self.waiters += 1
        self.waiting[self.waiters] = Wanted(port, shared, self.now)
        self.do(self.pod.want(self.waiters, port, self.now, shared=shared))

    @rule(count=st.integers(10, 20))
    def crowd(self, count: int) -> None:
        for _ in range(count):
            self.want(80, 0.0, shared=True)

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
        self.dialling.remove(key)
        self.streams[key] = []
        self.bound[key] = port
        self.do(self.pod.dialled(key, self.now, port=port))

    @precondition(lambda self: self.dialling)
    @rule(data=st.data())
    def dial_failed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.dialling)))
        self.dialling.remove(key)
        self.closed.add(key)
        self.do(self.pod.dial_failed(key, self.now))

    @precondition(lambda self: any(self.streams.values()))
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, streams in self.streams.items() if streams)))
        self.streams[key].pop()
        self.do(self.pod.ended(key, self.now))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), stalled=st.booleans(), draining=st.booleans(), crowded=st.booleans())
    def changed(self, data: st.DataObject, *, stalled: bool, draining: bool, crowded: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.streams)))
        self.stalled = self.stalled | {key} if stalled else self.stalled - {key}
        self.crowded = self.crowded | {key} if crowded else self.crowded - {key}
        self.draining |= {key} if draining else set()
        self.do(self.pod.changed(key, self.now, stalled=stalled, draining=draining, crowded=crowded))

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
        before = len(self.dialling)
        self.do(self.pod.tick(self.now))
        idle = [key for key, streams in self.streams.items() if not streams and key not in self.stalled]
        assert len(self.dialling) == before or len(self.dialling) + len(idle) <= SPARES

    @invariant()
    def the_books_agree(self) -> None:
        counts = {key: len(streams) for key, streams in self.streams.items()}
        assert {key: upstream.streams for key, upstream in self.pod._upstreams.items()} == counts
        assert self.pod._waiters == self.waiting
        assert set(self.pod._dials) == self.dialling
        assert self.pod.streams == sum(counts.values())

    @invariant()
    def the_limit_holds(self) -> None:
        # beyond it only where nothing that is there may be used, and then one at a time
        live = [key for key in self.streams if key not in self.stalled | self.draining and self.bound[key] is None]
        assert len(self.streams) + len(self.dialling) <= LIMIT or len(self.dialling) <= LIMIT or not live

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if self.waiting:
            assert self.dialling
        if self.pod._failures:
            return
        owners = {dial.waiter for dial in self.pod._dials.values()}
        alone = [waiter for waiter, wanted in self.waiting.items() if waiter not in owners and not wanted.shared]
        assert not alone or len(self.streams) + len(self.dialling) >= LIMIT

    @invariant()
    def no_more_dials_than_were_asked_for(self) -> None:
        assert len(self.dialling) <= self.waiters + SPARES


TestPool = Pool.TestCase
