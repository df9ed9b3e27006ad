"""The forward to one pod: carries out what its policy decides, and keeps its books."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from kubetunnel.cluster.patience import first_done
from kubetunnel.cluster.reach import LONGEST_PATIENCE_S
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import (
    ClusterUnreachable,
    Forbidden,
    KubeTunnelError,
    PodGone,
    Timeout,
    UpstreamProtocol,
    UpstreamReset,
)
from kubetunnel.forward.channel_upstream import ChannelUpstream
from kubetunnel.forward.facts import ForwardBooks, ForwardFacts
from kubetunnel.forward.policy import Action, Assign, Close, Dial, Fail, PodPolicy
from kubetunnel.forward.upstream import Upstream

logger = logging.getLogger(__name__)

_ANSWERS = (Forbidden, PodGone, UpstreamReset)  # of the API server, to a dial


class Pool(Protocol):
    """What a forward asks of the pool that it belongs to."""

    @property
    def dial(self) -> Callable[[PodPort], Awaitable[Upstream]]: ...
    @property
    def of_context(self) -> str: ...
    @property
    def obtaining(self) -> asyncio.Future[None] | None: ...
    def keep(self, task: asyncio.Task[None]) -> None: ...
    def adopt(self, upstream: Upstream, forward: PodForward) -> None: ...


class PodForward:
    """The upstreams to one pod and those who wait for one."""

    def __init__(self, pool: Pool, policy: PodPolicy, namespace: str, pod: str) -> None:
        self.policy = policy
        self.books = ForwardBooks(namespace, pod, lambda: pool.of_context)
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._upstreams: dict[int, Upstream] = {}
        self._keys: dict[Upstream, int] = {}
        self._open: set[Upstream] = set()  # with those that drain, or are closing
        self._waiters: dict[int, asyncio.Future[Upstream]] = {}
        self._target: PodPort | None = None  # the last one: what a spare is asked for by
        self._targets: dict[int, PodPort] = {}
        self._numbers = itertools.count(1)
        self._draining = False
        self._dialled_at = -math.inf

    async def acquire(self, target: PodPort, give_up_at: float, *, shared: bool) -> Upstream:
        """An upstream with room for a stream, which is counted already: open it at once, or `release` it.

        Raises TimeoutError at `give_up_at`, seconds of the loop's clock, with the time that was granted; later where
        credentials have to be obtained, or as long as others get theirs meanwhile: then the node is there, and busy.
        """
        waiter = next(self._numbers)
        answer: asyncio.Future[Upstream] = self._loop.create_future()
        self._waiters[waiter] = answer
        self._targets[waiter] = self._target = target
        overdue = False
        try:
            self._do(self.policy.want(waiter, target.port, self._loop.time(), shared=shared))
            patience_s = give_up_at - (asked_at := self._loop.time())
            while not await first_done({answer}, give_up_at - self._loop.time(), lambda: self._pool.obtaining):
                granted_s = give_up_at - asked_at
                give_up_at = min(self._dialled_at + patience_s, asked_at + LONGEST_PATIENCE_S)
                overdue = give_up_at <= self._loop.time()
                if overdue:
                    self._note_overdue()
                    raise TimeoutError(f"{granted_s:.3g} s")  # noqa: TRY301 - what it leaves behind is the same
            return answer.result()
        except (asyncio.CancelledError, TimeoutError):
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.release(answer.result())
            raise
        finally:
            del self._waiters[waiter], self._targets[waiter]
            self._do(self.policy.give_up(waiter, self._loop.time(), overdue=overdue))

    def _note_overdue(self) -> None:
        if self._stuck:
            self.books.failed("a dial does not come to its end")
            self.books.change("broken", "a dial does not come to its end")

    def opened(self) -> None:
        """A stream was opened on what `acquire` gave."""
        self.books.streams_opened += 1

    def release(self, upstream: Upstream) -> None:
        """A stream on the upstream ended."""
        if upstream in self._keys:
            self._do(self.policy.ended(self._keys[upstream], self._loop.time()))

    def changed(self, upstream: Upstream) -> None:
        """The upstream stalls, drains, is crowded, or no longer."""
        if upstream in self._keys:
            key, now = self._keys[upstream], self._loop.time()
            state = {"stalled": upstream.stalled, "draining": upstream.draining, "crowded": upstream.crowded}
            self._do(self.policy.changed(key, now, **state))
            if self.books.state == "broken" and not self._stuck:
                self.books.change("ready", "it moves again")

    def probe(self, upstream: Upstream) -> None:
        """The upstream answers nothing. Whether it is dead, or everything is, a new one tells."""
        self.changed(upstream)
        if upstream in self._keys:
            self._do(self.policy.probe(self._loop.time()))

    def lost(self, upstream: Upstream, reason: str) -> None:
        """The upstream is gone, or about to be."""
        key = self._keys.pop(upstream, None)
        if key is None:
            return
        del self._upstreams[key]
        in_use = upstream.clients
        if upstream.broken and in_use:
            self.books.cut(reason)
        if upstream.broken and not self._keys and not self._draining:
            self.books.change("broken" if in_use else "closed", reason)
        elif upstream.broken and in_use:
            logger.warning("%s lost %d of its streams: %s", self.books, in_use, reason.rstrip("."))
        self._do(self.policy.lost(key, self._loop.time()))

    def forget(self, upstream: Upstream) -> None:
        """The upstream's connection is closed, and all its streams have heard of it."""
        self._open.discard(upstream)
        self.books.bytes_sent += upstream.facts.bytes_sent
        self.books.bytes_received += upstream.facts.bytes_received
        if not self._open:
            self.books.drained()

    def drain(self, reason: str) -> None:
        """The pod ends: its upstreams get no new streams. A new pod of its name gets new ones."""
        self._draining = bool(self._keys)
        for upstream in self._keys:
            upstream.drain(reason)
            upstream.doubt()  # its node, or its runtime's end of the connection, may have gone with the pod
        if self._draining:
            self.books.change("draining", reason)
        elif self.books.state == "ready" and not self._open:
            self.books.change("closed", reason)
        self._do(self.policy.drain(self._loop.time()))

    def close(self) -> None:
        """Nobody waits any longer."""
        for waiter in list(self._waiters):
            self._fail(waiter, UpstreamReset("The tunnel ends."))

    def tick(self, now: float) -> None:
        """Once a second."""
        self._do(self.policy.tick(now))

    @property
    def carries(self) -> bool:
        """Whether an upstream is open still."""
        return bool(self._open)

    @property
    def _stuck(self) -> bool:
        """No upstream is there that a new stream could be opened on."""
        return all(upstream.stalled or upstream.draining for upstream in self._keys)

    def facts(self) -> ForwardFacts:
        """A copy of what there is to know."""
        return self.books.facts(
            upstreams=len(self._open),
            streams=sum(upstream.facts.streams for upstream in self._open),
            bytes_sent=sum(upstream.bytes_sent() for upstream in self._open),
            bytes_received=sum(upstream.bytes_received() for upstream in self._open),
        )

    def _do(self, actions: Iterable[Action], error: KubeTunnelError | None = None) -> None:
        for action in actions:
            match action:
                case Dial(key, waiter, not_before):
                    target = self._target if waiter is None else self._targets[waiter]
                    assert target is not None  # noqa: S101  (nothing is dialled before somebody wanted something)
                    dial = self._dial(key, target, not_before, spare=waiter is None)
                    self._pool.keep(asyncio.create_task(dial, name=f"dial {target}"))
                case Assign(waiter, key):
                    self._assign(waiter, key)
                case Close(key, reason):
                    upstream = self._upstreams.pop(key)
                    del self._keys[upstream]
                    upstream.retire(reason)
                case Fail(waiter):
                    self._fail(waiter, error)

    def _assign(self, waiter: int, key: int) -> None:
        answer = self._waiters.get(waiter)
        if answer is None or answer.done():  # cancelled, and not yet awake to give up
            self._do(self.policy.ended(key, self._loop.time()))
        else:
            answer.set_result(self._upstreams[key])

    def _fail(self, waiter: int, error: KubeTunnelError | None) -> None:
        answer = self._waiters.get(waiter)
        if answer is not None and not answer.done() and error is not None:
            answer.set_exception(type(error)(error.detail, command=error.command))  # each with a traceback of its own

    async def _dial(self, key: int, target: PodPort, not_before: float, *, spare: bool) -> None:
        if not self._open and self.books.state != "broken":
            self.books.change("opening", "a stream is wanted")
        self.books.dialling()
        started = max(not_before, self._loop.time())
        try:
            await asyncio.sleep(started - self._loop.time())
            upstream = await self._pool.dial(target)
        except KubeTunnelError as error:
            pod, of_context = f"{target.namespace}/{target.pod}", self._pool.of_context
            logger.debug("No upstream to %s%s: %s", pod, of_context, error.detail)
            self._dial_failed(key, error, started)
        except Exception:  # supervision point: a fault of ours must not leave a waiter waiting
            logger.exception("Dialling %s failed unexpectedly", target)
            unexpected = UpstreamProtocol(f"The port-forward to {target} failed in the tunnel itself; see its log.")
            self._dial_failed(key, unexpected, started)
        else:
            kind = "a spare, " if spare else ""
            how = f"{kind}{upstream.facts.protocol}, {self._loop.time() - started:.3f} s"
            self._dialled(key, upstream, started, how)

    def _dial_failed(self, key: int, error: KubeTunnelError, started: float) -> None:
        self.books.dial_failed(error.detail)
        if self._stuck:
            self.books.change("broken", error.detail)
        self._do(self.policy.dial_failed(key, self._loop.time()), error)
        if isinstance(error, _ANSWERS):
            self._bury(started)
        elif isinstance(error, ClusterUnreachable | Timeout):
            nowhere = error if isinstance(error, ClusterUnreachable) else UpstreamReset(error.detail)
            for upstream in [upstream for upstream in self._keys if upstream.unanswered_since(started)]:
                upstream.fail_unheard(nowhere)

    def _dialled(self, key: int, upstream: Upstream, started: float, how: str) -> None:
        self._upstreams[key] = upstream
        self._keys[upstream] = key
        self._open.add(upstream)
        self._draining = False
        self._dialled_at = self._loop.time()
        self._bury(started)
        self._pool.adopt(upstream, self)  # not before: it is no part of the doubts that the dead ones raise
        self.books.protocol = upstream.facts.protocol
        self.books.change("ready", how)
        port = upstream.port if isinstance(upstream, ChannelUpstream) else None
        self._do(self.policy.dialled(key, self._loop.time(), port=port))

    def _bury(self, started: float) -> None:
        """The API server answers on a connection that was begun at `started`: what was asked before, it never will."""
        for upstream in [upstream for upstream in self._keys if upstream.unanswered_since(started)]:
            upstream.found_dead("answers on new connections only: the one in use had died in silence")
