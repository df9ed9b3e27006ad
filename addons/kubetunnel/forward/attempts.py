"""Opens one upstream at one endpoint after the other, for as long as the contract's section 3 allows.

Which endpoints failed lately is known for all upstreams: who comes next does not try them first. That is for some
seconds only, since nobody tells when a node is back, or a port listens again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.endpoints import Target, choose_target
from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, PodGone, UpstreamReset
from kubetunnel.core.health import prefer_healthy
from kubetunnel.forward.answered import AnsweredPorts
from kubetunnel.forward.errors import DialTimeout, PodReset
from kubetunnel.forward.pod_streams import PodStreams

logger = logging.getLogger(__name__)

FAILED_MEMORY_S = 5.0

# concerns this endpoint alone: another one may do better
_ENDPOINT_FAILED = (PodGone, UpstreamReset, DialTimeout, ConnectionRefused)


class Choices:
    """Chooses endpoints for all upstreams of one cluster: another one may have a Pod of the same name.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, rng: random.Random, clock: Callable[[], float] = time.monotonic) -> None:
        self.rng = rng
        self._clock = clock
        self.is_unhealthy: Callable[[PodStreams, PodPort], bool] = lambda forwards, pod_port: False
        self._opening: Counter[PodPort] = Counter()
        self._failed_s: dict[tuple[str, str, int | None], float] = {}
        self.answered = AnsweredPorts()

    def choose(self, forwards: PodStreams, candidates: Sequence[Target], client: str | None) -> Target:
        """The endpoint with the fewest streams, of those that did not fail lately, and of these of those whose health
        checks do not fail, where there are any.

        `client`: as `choose_target` has it.
        """
        sound = [target for target in candidates if not self.failed_lately(target.pod_port)]

        def streams(target: Target) -> int:
            # those that are being opened count, too: a burst would all go to one pod
            pod_port = target.pod_port
            return forwards.open_streams(pod_port.namespace, pod_port.pod) + self._opening[pod_port]

        healthy = prefer_healthy(sound or candidates, lambda target: self.is_unhealthy(forwards, target.pod_port))
        return choose_target(healthy, streams, self.rng, client)

    @contextmanager
    def opening(self, pod_port: PodPort) -> Iterator[None]:
        """A stream to it is being opened."""
        self._opening[pod_port] += 1
        try:
            yield
        finally:
            self._opening[pod_port] -= 1
            if not self._opening[pod_port]:
                del self._opening[pod_port]

    def failed(self, pod_port: PodPort, error: KubeTunnelError) -> None:
        """It could not be opened: the port alone where that refused, else the whole pod."""
        now_s = self._clock()
        for key in [key for key, at_s in self._failed_s.items() if at_s <= now_s - FAILED_MEMORY_S]:
            del self._failed_s[key]
        self.answered.discard(pod_port)
        port = pod_port.port if isinstance(error, ConnectionRefused) else None
        self._failed_s[pod_port.namespace, pod_port.pod, port] = now_s

    def failed_lately(self, pod_port: PodPort) -> bool:
        """Whether others are to be tried before it."""
        if not self._failed_s:
            return False
        since_s = self._clock() - FAILED_MEMORY_S
        keys = ((pod_port.namespace, pod_port.pod, port) for port in (None, pod_port.port))
        return any(self._failed_s.get(key, since_s) > since_s for key in keys)


class Place(Protocol):
    """A destination, as far as it matters here."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """The ready endpoints, at least one."""
        ...

    @property
    def forwards(self) -> PodStreams:
        """The port-forwards of its cluster."""
        ...

    def explain(self, target: Target, error: KubeTunnelError) -> None:
        """Gives a failure of this endpoint a command that shows it, where it has none."""
        ...


class Attempts:
    """The attempts to open one upstream, in turn. `target` is the latest one's, `retries` how many were before it.

    Args:
        choices_of: the choices in the cluster of these port-forwards.
        find: looks the place up again, at the API server.
        backoff: the delays, and by their number how many retries there may be.
        client: as `choose_target` has it.
        shared: the upstream is for small exchanges, so it may have neighbours on its connection to the API server.
        tell: called with a line on each attempt that another one follows.
    """

    target: Target

    def __init__(
        self,
        place: Place,
        choices_of: Callable[[PodStreams], Choices],
        find: Callable[[], Awaitable[Place]],
        backoff: Backoff,
        *,
        client: str | None = None,
        shared: bool = False,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self.retries = 0
        self._place = place
        self._left = place.targets
        self._choices_of = choices_of
        self._choices = choices_of(place.forwards)
        self._find = find
        self._delays_s = backoff.delays_s(self._choices.rng)
        self._client = client
        self._shared = shared
        self._tell = tell
        self._is_alone = True

    async def open[P: asyncio.Protocol](self, protocol_factory: Callable[[], P]) -> P:
        """A stream to an endpoint; the protocol has it when this returns. Raises what the last attempt failed for."""
        while True:
            forwards = self._place.forwards
            target = self.target = self._choices.choose(forwards, self._left, self._client)
            try:
                with self._choices.opening(target.pod_port):
                    self._is_alone = not (self._shared and target.pod_port in self._choices.answered)
                    _, protocol = await forwards.open(target.pod_port, protocol_factory, shared=not self._is_alone)
            except _ENDPOINT_FAILED as e:
                await self._pass_by(target, e)
            except KubeTunnelError as e:
                self._place.explain(target, e)
                raise
            else:
                return protocol

    def answered(self) -> None:
        """Something was heard of the latest endpoint."""
        self._choices.answered.add(self.target.pod_port)

    def lost(self, error: KubeTunnelError) -> None:
        """The stream ended with this error: where it is the way to the pod that broke, others are tried before it."""
        if isinstance(error, UpstreamReset) and not isinstance(error, PodReset):
            self._choices.failed(self.target.pod_port, error)

    @property
    def is_needlessly_alone(self) -> bool:
        """Whether the stream could share a connection to the API server by now, and does not."""
        return self._shared and self._is_alone and self.target.pod_port in self._choices.answered

    async def open_another[P: asyncio.Protocol](
        self, refused: ConnectionRefused, protocol_factory: Callable[[], P]
    ) -> P:
        """As `open`, after the latest endpoint turned out to refuse."""
        await self._pass_by(self.target, refused)
        return await self.open(protocol_factory)

    async def _pass_by(self, target: Target, error: KubeTunnelError) -> None:
        """Waits before the next attempt; raises the error where there is none."""
        self._choices.failed(target.pod_port, error)
        self._left = tuple(each for each in self._left if each.pod_port != target.pod_port)
        # what hangs or refuses would do so again; of a pod that is gone there may be another by now
        is_final = not self._left and isinstance(error, DialTimeout | ConnectionRefused)
        delay_s = None if is_final else next(self._delays_s, None)
        if delay_s is None:
            self._place.explain(target, error)
            raise error
        self._tell(f"{target.pod_port}: {error} Trying again.")
        await asyncio.sleep(delay_s)
        self.retries += 1
        if isinstance(error, PodGone) or not self._left:
            # what is remembered may be old, where the watch that would tell is broken as well
            self._place = await self._find()
            self._choices = self._choices_of(self._place.forwards)  # the session may be another by now
            self._left = self._place.targets
