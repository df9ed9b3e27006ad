"""All port-forwards of one cluster: asyncio transports to pods' ports, over as few upstreams as the policy allows.

`policy` decides, `dial` opens, `upstream` carries; here are only their connection and the supervision: the tasks that
dial, and one that looks after all upstreams once a second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError, Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.forward.channel_upstream import ChannelUpstream
from kubetunnel.forward.dial import ANSWER_TIMEOUT_S, Dialer
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.policy import IDLE_TIMEOUT_S, MAX_UPSTREAMS, Action, Assign, Close, Dial, Fail, PodPolicy
from kubetunnel.forward.upstream import Upstream

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 1.8  # for who waits: a refusal is due within 2 s. The dial goes on, and is there for the next one
LOOK_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 2.0  # for the good-byes of aclose
_BACKOFF = Backoff(base_s=0.1, cap_s=0.25)  # with the connect timeout (1.5 s) less than OPEN_TIMEOUT_S
_OPENS = 3  # an upstream may die between its choice and its use


def _delay_s(failures: int) -> float:
    return _BACKOFF.delay_s(failures - 1, random.random())  # noqa: S311  (jitter)


class PortForwards:
    """The port-forwards of one cluster.

    Args:
        access: how to reach the API server.
        max_upstreams: upgraded connections a pod, before its streams share them.
        idle_timeout_s: an unused upstream is closed after it.
        answer_timeout_s: for the API server's answer to one upgrade request.
        open_timeout_s: how long an open waits for an upstream.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        max_upstreams: int = MAX_UPSTREAMS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        self._access = access
        self._max_upstreams = max_upstreams
        self._idle_timeout_s = idle_timeout_s
        self._open_timeout_s = open_timeout_s
        self._dialer = Dialer(access, self, answer_timeout_s=answer_timeout_s)
        self._pods: dict[tuple[str, str], _Pod] = {}
        self._of_upstream: dict[Upstream, _Pod] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def open[P: asyncio.BaseProtocol](
        self, target: PodPort, protocol_factory: Callable[[], P]
    ) -> tuple[asyncio.Transport, P]:
        """Open a stream to a port of a pod. Whether the port accepts shows only later, as the stream's failure.

        Raises:
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout, UpstreamReset, UpstreamProtocol
            PodGone: the pod is there no more.
        """
        if self._closed:
            raise ClusterUnreachable(f"The session to {self._access.server} was closed: its settings changed.")
        pod = self._pod(target.namespace, target.pod)
        try:
            give_up_at = asyncio.get_running_loop().time() + self._open_timeout_s
            for attempt in itertools.count(1):
                upstream = await pod.acquire(target, give_up_at)
                try:
                    stream = upstream.open_stream(target, protocol_factory)
                except UpstreamReset:
                    pod.release(upstream)
                    if attempt == _OPENS:
                        raise
                else:
                    protocol: P = stream.get_protocol()  # type: ignore[assignment]  # the factory made it
                    return stream, protocol
        except TimeoutError as error:
            raise Timeout(f"No port-forward to {target} within {self._open_timeout_s:g} s.") from error
        raise AssertionError("unreachable")

    async def open_connection(self, target: PodPort) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`open` with asyncio's streams, as `asyncio.open_connection`. Raises as `open`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, protocol = await self.open(target, lambda: asyncio.StreamReaderProtocol(reader, loop=loop))
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def open_streams(self, namespace: str, pod: str) -> int:
        """Streams to the pod that are open now."""
        found = self._pods.get((namespace, pod))
        return found.policy.streams if found else 0

    def upstreams(self) -> list[UpstreamFacts]:
        """A copy of what there is to know of each upstream."""
        return [replace(upstream.facts) for upstream in self._of_upstream]

    def drain(self, namespace: str, pod: str) -> None:
        """The pod ends: its upstreams get no new streams. A new pod of the same name gets new ones."""
        found = self._pods.get((namespace, pod))
        if found is not None:
            found.drain()

    async def aclose(self) -> None:
        """Close everything; streams that still run end with UpstreamReset."""
        self._closed = True
        tasks = [*self._tasks, *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pod in self._pods.values():
            pod.close()
        upstreams = list(self._of_upstream)
        for upstream in upstreams:
            upstream.close("the tunnel ends")
        closed = [upstream.closed for upstream in upstreams]
        if closed:
            await asyncio.wait(closed, timeout=CLOSE_TIMEOUT_S)
        for upstream in upstreams:
            if not upstream.closed.done():
                upstream.abort("the tunnel ends")
        if closed:
            await asyncio.wait(closed)

    # -- upstream.Owner

    def stream_ended(self, upstream: Upstream) -> None:
        if upstream in self._of_upstream:
            self._of_upstream[upstream].release(upstream)

    def upstream_changed(self, upstream: Upstream) -> None:
        if upstream in self._of_upstream:
            self._of_upstream[upstream].changed(upstream)

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        if upstream in self._of_upstream:
            self._of_upstream[upstream].lost(upstream)

    # -- the pods' side

    async def dial(self, target: PodPort) -> Upstream:
        """A new upstream. Raises as `open`."""
        upstream = await self._dialer.dial(target)
        if upstream.retired:
            raise UpstreamReset(f"The port-forward of {target} ended at once: {upstream.retired}.")
        return upstream

    def keep(self, task: asyncio.Task[None]) -> None:
        """Own a task until it ends; `aclose` cancels it."""
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def adopt(self, upstream: Upstream, pod: _Pod) -> None:
        """Look after an upstream until its connection is closed."""
        self._of_upstream[upstream] = pod
        upstream.closed.add_done_callback(lambda _: self._of_upstream.pop(upstream, None))

    def _pod(self, namespace: str, name: str) -> _Pod:
        key = (namespace, name)
        if key not in self._pods:
            policy = PodPolicy(max_upstreams=self._max_upstreams, idle_timeout_s=self._idle_timeout_s, backoff=_delay_s)
            self._pods[key] = _Pod(self, policy)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="port-forwards")
        return self._pods[key]

    async def _look(self) -> None:
        """Liveness and idle time-outs, as long as there is anything to look after."""
        loop = asyncio.get_running_loop()
        while self._of_upstream or self._pods:
            await asyncio.sleep(LOOK_INTERVAL_S)
            now = loop.time()
            for upstream, pod in list(self._of_upstream.items()):
                upstream.look(now)
                pod.changed(upstream)
            for key, pod in list(self._pods.items()):
                pod.tick(now)
                if pod.policy.empty:
                    del self._pods[key]


class _Pod:
    """One pod: carries out what its policy decides."""

    def __init__(self, pool: PortForwards, policy: PodPolicy) -> None:
        self.policy = policy
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._upstreams: dict[int, Upstream] = {}
        self._keys: dict[Upstream, int] = {}
        self._waiters: dict[int, asyncio.Future[Upstream]] = {}
        self._targets: dict[int, PodPort] = {}
        self._numbers = itertools.count(1)

    async def acquire(self, target: PodPort, give_up_at: float) -> Upstream:
        """An upstream with room for a stream, which is counted already: open it at once, or `release` it.

        Raises TimeoutError at `give_up_at`, seconds of the loop's clock.
        """
        waiter = next(self._numbers)
        answer: asyncio.Future[Upstream] = self._loop.create_future()
        self._waiters[waiter] = answer
        self._targets[waiter] = target
        self._do(self.policy.want(waiter, target.port, self._loop.time()))
        overdue = False
        try:
            async with asyncio.timeout_at(give_up_at):
                return await answer
        except (asyncio.CancelledError, TimeoutError) as error:
            overdue = isinstance(error, TimeoutError)
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.release(answer.result())
            raise
        finally:
            del self._waiters[waiter], self._targets[waiter]
            self._do(self.policy.give_up(waiter, self._loop.time(), overdue=overdue))

    def release(self, upstream: Upstream) -> None:
        """A stream on the upstream ended."""
        if upstream in self._keys:
            self._do(self.policy.ended(self._keys[upstream], self._loop.time()))

    def changed(self, upstream: Upstream) -> None:
        if upstream in self._keys:
            state = {"stalled": upstream.stalled, "draining": upstream.draining}
            self._do(self.policy.changed(self._keys[upstream], self._loop.time(), **state))

    def lost(self, upstream: Upstream) -> None:
        key = self._keys.pop(upstream, None)
        if key is not None:
            del self._upstreams[key]
            self._do(self.policy.lost(key, self._loop.time()))

    def drain(self) -> None:
        for upstream in self._keys:
            upstream.drain("its pod ends")
        self._do(self.policy.drain(self._loop.time()))

    def close(self) -> None:
        """Nobody waits any longer."""
        for waiter in list(self._waiters):
            self._fail(waiter, UpstreamReset("The tunnel ends."))

    def tick(self, now: float) -> None:
        self._do(self.policy.tick(now))

    def _do(self, actions: Iterable[Action], error: KubeTunnelError | None = None) -> None:
        for action in actions:
            match action:
                case Dial(key, waiter, not_before):
                    target = self._targets[waiter]
                    self._pool.keep(asyncio.create_task(self._dial(key, target, not_before), name=f"dial {target}"))
                case Assign(waiter, key):
                    self._assign(waiter, key)
                case Close(key, reason):
                    upstream = self._upstreams.pop(key)
                    del self._keys[upstream]
                    upstream.close(reason)
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

    async def _dial(self, key: int, target: PodPort, not_before: float) -> None:
        try:
            await asyncio.sleep(max(0.0, not_before - self._loop.time()))
            upstream = await self._pool.dial(target)
        except KubeTunnelError as error:
            logger.info("No upstream to %s/%s: %s", target.namespace, target.pod, error.detail)
            self._do(self.policy.dial_failed(key, self._loop.time()), error)
            return
        except Exception:  # supervision point: a fault of ours must not leave a waiter waiting
            logger.exception("Dialling %s failed unexpectedly", target)
            unexpected = UpstreamProtocol(f"The port-forward to {target} failed in the tunnel itself; see its log.")
            self._do(self.policy.dial_failed(key, self._loop.time()), unexpected)
            return
        self._upstreams[key] = upstream
        self._keys[upstream] = key
        self._pool.adopt(upstream, self)
        port = upstream.port if isinstance(upstream, ChannelUpstream) else None
        self._do(self.policy.dialled(key, self._loop.time(), port=port))
