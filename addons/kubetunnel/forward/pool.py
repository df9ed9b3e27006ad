"""All port-forwards of one cluster: asyncio transports to pods' ports, over as few upstreams as the policy allows.

`policy` decides, `pod_forward` carries it out for one pod, `dial` opens, `upstream` carries; here are only their
connection and the supervision: the tasks that dial, and one that looks after all upstreams once a second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ClusterUnreachable, PodGone, UpstreamReset
from kubetunnel.forward.dial import ANSWER_TIMEOUT_S, Dialer
from kubetunnel.forward.errors import DialTimeout
from kubetunnel.forward.facts import POD_ENDS, ForwardFacts
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.placement import MAX_UPSTREAMS
from kubetunnel.forward.pod_forward import PodForward
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.forward.policy import IDLE_TIMEOUT_S, SPARES, PodPolicy
from kubetunnel.forward.silence import Silences
from kubetunnel.forward.upstream import Upstream

logger = logging.getLogger(__name__)

OVERDUE_SHARE = 0.5  # of the patience, where an earlier dial to the pod is stuck: to wait longer has been tried
LOOK_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 2.0  # for the good-byes of aclose
_BACKOFF = Backoff(base_s=0.1, cap_s=0.25)  # with the time to connect less than the patience (`Reach`)
_OPENS = 3  # an upstream may die between its choice and its use


def _delay_s(failures: int) -> float:
    return _BACKOFF.delay_s(failures - 1, random.random())  # noqa: S311  (jitter)


class PortForwards(PodStreams):
    """The port-forwards of one cluster.

    Args:
        access: how to reach the API server.
        max_upstreams: upgraded connections a pod, before all of its streams share them.
        spares: idle upgraded connections that a pod in use is to have.
        idle_timeout_s: the last upstream to a pod is closed when it was unused for so long; others are sooner.
        answer_timeout_s: for the API server's answer to one upgrade request.
        open_timeout_s: how long an open waits for an upstream, as `Reach` has it by default; half of it where a dial
            to the pod is stuck already. The dial goes on, and is there for the next one.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        max_upstreams: int = MAX_UPSTREAMS,
        spares: int = SPARES,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        open_timeout_s: float | None = None,
    ) -> None:
        self._access = access
        self._max_upstreams = max_upstreams
        self._spares = spares
        self._idle_timeout_s = idle_timeout_s
        self._open_timeout_s = open_timeout_s
        self._dialer = Dialer(access, self, answer_timeout_s=answer_timeout_s)
        self._pods: dict[tuple[str, str], PodForward] = {}
        self._of_upstream: dict[Upstream, PodForward] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._silences = Silences()
        self._closed = False
        self._unsubscribe = access.suspicion.subscribe(self._doubt)

    async def open[P: asyncio.BaseProtocol](
        self, target: PodPort, protocol_factory: Callable[[], P], *, shared: bool = False
    ) -> tuple[asyncio.Transport, P]:
        """Open a stream to a port of a pod. Whether the port accepts shows only later, as the stream's failure.

        Args:
            shared: it is for small exchanges (kept-alive HTTP/1), and may have neighbours of its kind on its upstream.
                Ask its extra info `crowded` before each further exchange: where it is true, a new stream serves better.

        Raises:
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout, UpstreamReset, UpstreamProtocol
            DialTimeout: a Timeout that is the endpoint's; another one may be tried.
            PodGone: the pod is there no more.
        """
        pod = self._pod_to_open(target)
        try:
            give_up_at = asyncio.get_running_loop().time() + self._patience_s(pod)
            for attempt in itertools.count(1):
                upstream = await pod.acquire(target, give_up_at, shared=shared)
                try:
                    stream = upstream.open_stream(target, protocol_factory)
                except UpstreamReset:
                    pod.release(upstream)
                    if attempt == _OPENS:
                        raise
                except BaseException:  # of the protocol's factory
                    pod.release(upstream)
                    raise
                else:
                    pod.opened()
                    protocol: P = stream.get_protocol()  # type: ignore[assignment]  # the factory made it
                    return stream, protocol
        except TimeoutError as error:
            raise DialTimeout(f"No port-forward to {target} within {error}.") from error
        raise AssertionError("unreachable")

    async def warm_up(self, target: PodPort) -> None:
        """See to it that an upstream is open, for whoever opens a stream next. Raises as `open`."""
        pod = self._pod_to_open(target)
        try:
            give_up_at = asyncio.get_running_loop().time() + self._patience_s(pod)
            pod.release(await pod.acquire(target, give_up_at, shared=False))
        except TimeoutError as error:
            raise DialTimeout(f"No port-forward to {target} within {error}.") from error

    def _pod_to_open(self, target: PodPort) -> PodForward:
        if self._closed:
            raise ClusterUnreachable(f"The session to {self._access.server} was closed: its settings changed.")
        self._access.suspicion.look()
        return self._pod(target.namespace, target.pod)

    def _patience_s(self, pod: PodForward) -> float:
        patience_s = self._access.reach.patience_s if self._open_timeout_s is None else self._open_timeout_s
        return OVERDUE_SHARE * patience_s if pod.policy.overdue else patience_s

    def open_streams(self, namespace: str, pod: str) -> int:
        """Streams to the pod that are open now."""
        found = self._pods.get((namespace, pod))
        return found.policy.streams if found else 0

    def forwards(self) -> list[ForwardFacts]:
        """A copy of what there is to know of the forward to each pod in use."""
        return [pod.facts() for pod in self._pods.values()]

    def upstreams(self) -> list[UpstreamFacts]:
        """A copy of what there is to know of each upstream."""
        return [replace(upstream.facts) for upstream in self._of_upstream]

    def drain(self, namespace: str, pod: str, reason: str = POD_ENDS) -> None:
        """The pod ends: its upstreams get no new streams. A new pod of the same name gets new ones."""
        found = self._pods.get((namespace, pod))
        if found is not None:
            found.drain(reason)

    async def aclose(self) -> None:
        """Close everything; streams that still run end with UpstreamReset."""
        self._closed = True
        self._unsubscribe()
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
        self._pods.clear()

    # -- upstream.Owner

    def stream_ended(self, upstream: Upstream) -> None:
        if upstream in self._of_upstream:
            self._of_upstream[upstream].release(upstream)

    def upstream_changed(self, upstream: Upstream) -> None:
        if upstream in self._of_upstream:
            self._of_upstream[upstream].changed(upstream)

    def upstream_silent(self, upstream: Upstream) -> None:
        if upstream in self._of_upstream and not self._closed:
            self._of_upstream[upstream].probe(upstream)

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        if upstream in self._of_upstream and not self._closed:
            self._of_upstream[upstream].lost(upstream, reason)
            pod = upstream.facts.namespace, upstream.facts.pod
            # one that drains for a stream that failed is perhaps stuck in its runtime, and no connection is to blame
            if (
                upstream.silent
                and not upstream.draining
                and self._silences.died(pod, asyncio.get_running_loop().time())
            ):
                self._access.suspicion.voice(f"of upstream {upstream.facts}: {reason.rstrip('.')}")

    # -- pod_forward.Pool

    async def dial(self, target: PodPort) -> Upstream:
        """A new upstream. Raises as `open`."""
        try:
            upstream = await self._dialer.dial(target)
        except PodGone:
            # what is open to it is about to be found dead, and the watches that have not told of it are as dead
            self._reached(target, "is gone, as a new one tells")
            raise
        if upstream.retired:
            raise UpstreamReset(f"The port-forward of {target} ended at once: {upstream.retired}.")
        self._reached(target, "is reached")
        return upstream

    @property
    def of_context(self) -> str:
        """As `ClusterAccess.of_context`."""
        return self._access.of_context

    @property
    def obtaining(self) -> asyncio.Future[None] | None:
        """The run that obtains credentials now, which dials wait for."""
        return self._access.obtaining

    def keep(self, task: asyncio.Task[None]) -> None:
        """Own a task until it ends; `aclose` cancels it."""
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def adopt(self, upstream: Upstream, forward: PodForward) -> None:
        """Look after an upstream until its connection is closed."""
        self._of_upstream[upstream] = forward
        upstream.closed.add_done_callback(lambda _: self._forget(upstream))

    def _doubt(self, reason: str) -> None:
        for upstream, pod in list(self._of_upstream.items()):
            upstream.doubt()
            pod.changed(upstream)

    def _reached(self, target: PodPort, how: str) -> None:
        if self._silences.reached((target.namespace, target.pod), asyncio.get_running_loop().time()):
            self._access.suspicion.voice(f"{target.namespace}/{target.pod} was silent on an old one and {how}")

    def _forget(self, upstream: Upstream) -> None:
        forward = self._of_upstream.pop(upstream, None)
        if forward is not None:
            forward.forget(upstream)

    def _pod(self, namespace: str, name: str) -> PodForward:
        key = (namespace, name)
        if key not in self._pods:
            policy = PodPolicy(
                max_upstreams=self._max_upstreams,
                spares=self._spares,
                idle_timeout_s=self._idle_timeout_s,
                backoff=_delay_s,
            )
            self._pods[key] = PodForward(self, policy, namespace, name)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="port-forwards")
        return self._pods[key]

    async def _look(self) -> None:
        """Liveness and idle time-outs, as long as there is anything to look after."""
        while self._of_upstream or self._pods:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self._look_at_all(asyncio.get_running_loop().time())

    def _look_at_all(self, now: float) -> None:
        for upstream, pod in list(self._of_upstream.items()):
            self._supervised(partial(self._look_at, upstream, pod, now), f"upstream {upstream.facts}")
        for key, pod in list(self._pods.items()):
            self._supervised(partial(pod.tick, now), f"the forward to {'/'.join(key)}")
            if pod.policy.empty and not pod.carries:
                pod.books.change("closed", "nobody uses it")
                del self._pods[key]

    def _look_at(self, upstream: Upstream, pod: PodForward, now: float) -> None:
        upstream.look(now)
        pod.changed(upstream)

    def _supervised(self, look: Callable[[], None], what: str) -> None:
        """Supervision point: a fault of ours in one upstream or forward must not end the care for the others."""
        try:
            look()
        except Exception:
            logger.exception("Looking after %s failed unexpectedly", what)
