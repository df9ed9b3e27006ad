"""Opening one upstream: connect to the API server, offer the protocols in turn, tell a refusal in our own words."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import (
    ClusterUnreachable,
    Forbidden,
    KubeTunnelError,
    PodGone,
    Unauthenticated,
    UpstreamProtocol,
    UpstreamReset,
)
from kubetunnel.forward.channel_upstream import ChannelUpstream
from kubetunnel.forward.errors import DialTimeout
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.negotiation import CHANNEL, SPDY, TUNNEL, Meaning, Memory, Verdict, Way, judge
from kubetunnel.forward.spdy_upstream import SpdyUpstream
from kubetunnel.forward.upgrade import HeaderList, Offer, Refusal, UpgradeConnection, spdy_offer, websocket_offer
from kubetunnel.forward.upstream import Owner, Upstream
from kubetunnel.forward.websocket import WebSocketFrames

logger = logging.getLogger(__name__)

# for one offer: the API server dials the node meanwhile. Who waits is refused earlier (`Reach.patience_s`)
ANSWER_TIMEOUT_S = 5.0
_RENEWALS = 1
_OVERLOAD = Backoff(base_s=0.2, cap_s=0.8, retries=2)
_RETRY_SHARE = 0.8  # of the patience of who waits: he is to be told why, and not that it takes too long


class Dialer:
    """Opens upstreams of one cluster, and remembers which protocol it speaks."""

    def __init__(self, access: ClusterAccess, owner: Owner, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.memory = Memory()
        self._access = access
        self._owner = owner
        self._answer_timeout_s = answer_timeout_s
        self._numbers = itertools.count(1)

    async def dial(self, target: PodPort) -> Upstream:
        """A new upstream of the target's pod; only a v4.channel one is bound to the target's port.

        Raises:
            Forbidden, Unauthenticated, ClusterUnreachable
            DialTimeout: the API server, or the pod's node behind it, did not answer.
            PodGone: the pod is there no more, or cannot be forwarded to any more.
            UpstreamReset: the API server does not reach the pod's node.
            UpstreamProtocol: all protocols were refused.
        """
        started = time.monotonic()
        attempt = _Attempt(self._access, target, self._make, self._answer_timeout_s)
        refusals: list[Verdict] = []
        try:
            for way in self.memory.order(started):
                answer = await attempt.offer(way)
                if isinstance(answer, Upstream):
                    self.memory.took(answer.facts.protocol)
                    _log_open(answer, time.monotonic() - started)
                    return answer
                refusals.append(answer)
                if answer.meaning is Meaning.UNKNOWN_PROTOCOL:
                    self.memory.refused(way, started)
                elif answer.meaning is not Meaning.FORBIDDEN:
                    break
        except BaseException:
            attempt.abort()
            raise
        attempt.abort()
        raise self._error(refusals, target)

    def _make(self, target: PodPort, protocol: str) -> Upstream:
        facts = UpstreamFacts(next(self._numbers), target.namespace, target.pod, protocol, time.time())
        if protocol == TUNNEL:
            return SpdyUpstream(facts, self._owner, WebSocketFrames())
        if protocol == CHANNEL:
            return ChannelUpstream(facts, self._owner, WebSocketFrames(), target.port)
        if protocol.upper() == SPDY:
            return SpdyUpstream(facts, self._owner)
        raise UpstreamProtocol(f"The API server answered a port-forward with the protocol {protocol!r}.")

    def _error(self, refusals: list[Verdict], target: PodPort) -> KubeTunnelError:
        last = refusals[-1]
        pod = f"{target.namespace}/{target.pod}"
        if last.meaning is Meaning.POD_GONE:
            command = self._access.kubectl("-n", target.namespace, "get", "pod", target.pod)
            return PodGone(f"Pod {pod} is gone: {last.message}.", command=command)
        if last.meaning is Meaning.NODE_UNREACHABLE:
            command = self._access.kubectl("get", "nodes")
            return UpstreamReset(f"The API server cannot reach the node of pod {pod}: {last.message}.", command=command)
        if last.meaning is Meaning.UNAUTHENTICATED:
            command = self._access.kubectl("auth", "whoami")
            return Unauthenticated(
                f"The API server took no credentials for a port-forward: {last.message}.", command=command
            )
        if last.meaning is Meaning.OVERLOADED:
            detail = f"The API server {self._access.server} is overloaded and opens no port-forward: {last.message}."
            return ClusterUnreachable(detail, command=self._access.kubectl("get", "--raw", "/readyz?verbose"))
        # a proxy that does not let one protocol through says nothing of the right that the other one lacks
        verbs = {verdict.verb for verdict in refusals if verdict.meaning is Meaning.FORBIDDEN}
        if any(verbs) or all(verdict.meaning is Meaning.FORBIDDEN for verdict in refusals):
            verb = "create" if "create" in verbs else next(filter(None, verbs), "create")
            # "pods/portforward" would be a pod of that name to it
            words = ("auth", "can-i", verb, "pods", "--subresource=portforward", "-n", target.namespace)
            detail = f"The right to {verb} pods/portforward in namespace {target.namespace} is missing."
            return Forbidden(detail, command=self._access.kubectl(*words))
        said = "; ".join(dict.fromkeys(verdict.message for verdict in refusals))
        return UpstreamProtocol(f"The API server refused every port-forward protocol to pod {pod}: {said}.")


class _Attempt:
    """The offers of one dial, on one connection as long as the server keeps it."""

    def __init__(
        self, access: ClusterAccess, target: PodPort, make: Callable[[PodPort, str], Upstream], answer_timeout_s: float
    ) -> None:
        self._access = access
        self._target = target
        self._make = make
        self._answer_timeout_s = answer_timeout_s
        self._connection: UpgradeConnection | None = None
        self._renewals = _RENEWALS

    async def offer(self, way: Way) -> Upstream | Verdict:
        """One protocol offered, again a little later while the API server is overloaded."""
        give_up_at = time.monotonic() + _RETRY_SHARE * self._access.reach.patience_s
        for delay_s in _OVERLOAD.delays_s(random.Random()):  # noqa: S311  (jitter)
            answer = await self._offer_once(way)
            if not isinstance(answer, Verdict) or answer.meaning is not Meaning.OVERLOADED:
                return answer
            wait_s = max(delay_s, answer.retry_after_s)
            if time.monotonic() + wait_s > give_up_at:
                return answer
            await asyncio.sleep(wait_s)
        return await self._offer_once(way)

    async def _offer_once(self, way: Way) -> Upstream | Verdict:
        """One protocol offered; after a 401 once more, with renewed credentials."""
        credentials = await self._access.headers()
        answer = await self._exchange(way, credentials)
        if isinstance(answer, Verdict) and answer.meaning is Meaning.UNAUTHENTICATED and self._renewals:
            self._renewals -= 1
            await self._access.renew(credentials.get("Authorization", ""))
            return await self._exchange(way, await self._access.headers())
        return answer

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    async def _exchange(self, way: Way, credentials: Mapping[str, str]) -> Upstream | Verdict:
        headers = [("Host", urlsplit(self._access.server).netloc), *credentials.items()]
        offer = self._offer(way)
        reused = self._connection is not None and self._connection.reusable
        answer = await self._request(offer, headers)
        if answer is None and reused:  # kept alive by our clock, not by the server's
            answer = await self._request(offer, headers)
        if answer is None:
            raise ClusterUnreachable(f"The API server {self._access.server} closed the connection of a port-forward.")
        return judge(answer) if isinstance(answer, Refusal) else answer

    async def _request(self, offer: Offer, headers: HeaderList) -> Upstream | Refusal | None:
        """None where the connection ended without an answer."""
        if self._connection is None or not self._connection.reusable:
            self.abort()
            _, self._connection = await self._access.connect(UpgradeConnection, bulk=True)
        started, timeout_s = time.monotonic(), max(self._answer_timeout_s, self._access.reach.patience_s)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._connection.request(offer, headers, self._made)
        except TimeoutError as error:
            detail = f"The API server did not open a port-forward to {self._target} within {timeout_s:.3g} s."
            raise DialTimeout(detail) from error
        except ClusterUnreachable:
            return None
        if isinstance(answer, Upstream):
            answer.opened_in(time.monotonic() - started)
        return answer

    def _made(self, protocol: str) -> Upstream:
        return self._make(self._target, protocol)

    def _offer(self, way: Way) -> Offer:
        namespace, pod = quote(self._target.namespace, safe=""), quote(self._target.pod, safe="")
        path = f"{self._access.path_prefix.rstrip('/')}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        if way is Way.SPDY:
            return spdy_offer(path)
        return websocket_offer(path, self._target.port, (TUNNEL, CHANNEL))


def _log_open(upstream: Upstream, took_s: float) -> None:
    logger.debug("Upstream %s open: %s, %.0f ms", upstream.facts, upstream.facts.protocol, took_s * 1000)
