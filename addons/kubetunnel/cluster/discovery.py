"""Services and their endpoints on demand: the first use of a Service starts watches on it alone, the next are memory.

The contract's sections 2.3 and 2.5. Cost grows with what is used, not with the size of the cluster; what is not used
for the idle timeout is let go.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Callable

from kubetunnel.cluster import decode
from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.followed import FollowedService
from kubetunnel.cluster.missing import not_found
from kubetunnel.cluster.resource import PODS, SERVICES, Query
from kubetunnel.cluster.rights import Rights
from kubetunnel.cluster.single_flight import SingleFlight
from kubetunnel.core.catalog import Endpoint, Service, ServiceState
from kubetunnel.core.errors import (
    ClusterUnreachable,
    Forbidden,
    KubeTunnelError,
    NamespaceNotFound,
    ServiceNotFound,
    Timeout,
)

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 300.0  # the contract's pool.idle_timeout
POD_MEMORY_S = 1.0  # a burst of requests costs one round trip
REFUSAL_MEMORY_S = 0.5  # the same, and a Service that is made now works at the next request that a person types
MEMORY_ENTRIES = 1024

type Key = tuple[str, str]  # namespace, and Service or address
type OnChange = Callable[[str, str, ServiceState | None], None]


class Discovery:
    """The Services of one cluster.

    Args:
        access: how to reach the API server. Not closed by `aclose`.
        idle_timeout_s: how long a Service that nobody asks for is kept up.
        patience_s: how long a lookup is waited for, as `Reach` has it by default. It goes on, and who asks again
            profits from it.
        api: in place of one with the usual timeouts.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        patience_s: float | None = None,
        api: ApiServer | None = None,
    ) -> None:
        self._access = access
        self._idle_timeout_s = idle_timeout_s
        self._api = api or ApiServer(access)
        self._rng = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._clock = asyncio.get_running_loop().time
        self._rights = Rights(self._clock)
        self._renewals = 0
        self._followed: dict[Key, FollowedService] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._openings: SingleFlight[Key, ServiceState] = self._single_flight(patience_s)
        self._fetches: SingleFlight[Key, ServiceState] = self._single_flight(patience_s)
        self._pods: SingleFlight[Key, Endpoint] = self._single_flight(patience_s)
        self._remembered: dict[tuple[str, Key], tuple[float, Endpoint | KubeTunnelError]] = {}
        self._callbacks: list[OnChange] = []
        self._idle_timer: asyncio.TimerHandle | None = None

    def _single_flight[V](self, patience_s: float | None) -> SingleFlight[Key, V]:
        return SingleFlight(
            patience_s=lambda: self._access.reach.patience_s if patience_s is None else patience_s,
            out_of_patience=self._out_of_patience,
            obtaining=lambda: self._access.obtaining,
        )

    def _out_of_patience(self, patience_s: float) -> Timeout:
        return Timeout(
            f"The API server {self._access.server} of context {self._access.context} has not answered after "
            f"{patience_s:.3g} s; it is still being asked.",
            command=self._access.kubectl("get", "--raw", "/readyz?verbose"),
        )

    @property
    def watch_restarts(self) -> int:
        """How many watches ended, be it in order, and were begun again."""
        return self._api.watch_restarts

    async def service(self, namespace: str, name: str, *, fresh: bool = False) -> ServiceState:
        """The Service and its EndpointSlices; at its first use one round trip in depth, later from memory.

        While the API server is away the last known state is answered; with `fresh` it is asked in any case.

        Raises:
            ServiceNotFound, NamespaceNotFound, Forbidden, Unauthenticated, ClusterUnreachable, Timeout
        """
        self._access.suspicion.look()
        key = (namespace, name)
        if fresh:
            return await self._fetches.run(key, lambda: self._fetch(key))
        followed = self._followed.get(key)
        if followed is not None and not followed.ended and not followed.outlived_fallback:
            followed.used_at = self._clock()
            state = await followed.state()
            if state is not None:
                return state
            if followed.certain:
                return await self._openings.run(key, lambda: self._refuse_missing(key))
        try:
            return await self._openings.run(key, lambda: self._open(key))
        except (ClusterUnreachable, Timeout):
            if followed is not None and followed.last is not None:
                return followed.last
            raise

    async def pod(self, namespace: str, address: str) -> Endpoint:
        """The Pod with that address.

        Raises:
            ServiceNotFound: no such Pod.
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout
        """
        self._access.suspicion.look()
        key = (namespace, str(ipaddress.ip_address(address)))
        remembered = self._recall("pod", key)
        if isinstance(remembered, Endpoint):
            return remembered
        return await self._pods.run(key, lambda: self._find_pod(key))

    async def services(self, namespace: str) -> tuple[Service, ...]:
        """All Services of a Namespace ("": of all), as they are now; nothing of it is watched or kept.

        Raises:
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout
        """
        listing = await self._api.list_objects(Query(SERVICES, decode.ServiceObject, namespace))
        return tuple(decode.service(found) for found in listing.items) if listing else ()

    def watched(self) -> dict[Key, ServiceState]:
        """The Services that are kept up, as they are; nothing is asked for that."""
        return {key: followed.last for key, followed in self._followed.items() if followed.last is not None}

    def read_at(self, namespace: str, name: str) -> float | None:
        """When a Service that is kept up was known to be as `watched` has it, in Unix seconds; None: it is not kept up.

        That is now while its watches are open, and longer ago where they are broken, or there is no right to watch.
        """
        followed = self._followed.get((namespace, name))
        return followed.read_at if followed is not None and not followed.ended else None

    def subscribe(self, callback: OnChange) -> Callable[[], None]:
        """Call `callback(namespace, name, state)` of every Service in use: its first state, and every change of it.

        The state is None where the Service was deleted.

        Returns:
            What ends the subscription.
        """
        entry: OnChange = lambda *change: callback(*change)  # noqa: E731 - one of its own for each subscription
        self._callbacks.append(entry)
        return lambda: self._callbacks.remove(entry) if entry in self._callbacks else None

    async def aclose(self) -> None:
        """End all watches and connections."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self._openings.aclose()
        await self._fetches.aclose()
        await self._pods.aclose()
        for key in list(self._followed):
            self._let_go(key)
        while self._ending:
            await asyncio.wait(self._ending)
        await self._api.aclose()

    def _follow(self, namespace: str, name: str) -> FollowedService:
        return FollowedService(
            self._api,
            self._rights,
            self._rng,
            namespace,
            name,
            lambda state: self._notify(namespace, name, state),
        )

    async def _fetch(self, key: Key) -> ServiceState:
        before = self._followed.get(key)
        followed = self._follow(*key)
        state = await followed.open()
        if before is not None and before.last != state and self._followed.get(key) is before:
            # its watches are late, or dead without a word: others begin from what is known now
            if state is not None:
                self._keep_up(key, followed, state)
            else:
                self._let_go(key)
                self._notify(*key, None)
        if state is None:
            raise await not_found(self._api, *key)
        return state

    async def _open(self, key: Key) -> ServiceState:
        self._raise_remembered(key)
        if self._renewals != self._api.renewals:
            self._renewals = self._api.renewals
            self._rights.forget()  # other credentials, other rights
        before = self._followed.get(key)
        followed = self._follow(*key)
        try:
            state = await followed.open()
            if state is None:
                raise await not_found(self._api, *key)
        except (ServiceNotFound, NamespaceNotFound, Forbidden) as error:
            self._remember("service", key, error)
            raise
        if self._followed.get(key) is before:  # otherwise another attempt was faster, and is kept up
            self._keep_up(key, followed, state)
            logger.info("Service %s/%s%s is watched from now on", *key, self._access.of_context)
        return state

    def _keep_up(self, key: Key, followed: FollowedService, state: ServiceState) -> None:
        self._let_go(key)
        self._followed[key] = followed
        self._notify(*key, state)
        followed.start()
        if self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(self._idle_timeout_s, self._end_idle)

    async def _refuse_missing(self, key: Key) -> ServiceState:
        """A Service in use was deleted."""
        self._raise_remembered(key)
        error = await not_found(self._api, *key)
        self._remember("service", key, error)
        raise error

    async def _find_pod(self, key: Key) -> Endpoint:
        namespace, address = key
        self._raise_remembered(key, "pod")
        query = Query(PODS, decode.PodObject, namespace, fields={"status.podIP": address})
        listing = await self._api.list_objects(query)
        running = [pod for pod in (listing.items if listing else ()) if not pod.ended]
        if not running:
            refusal = ServiceNotFound(
                f"No Pod of namespace {namespace} has the address {address}.",
                command=self._access.kubectl("-n", namespace, "get", "pods", "-o", "wide"),
            )
            self._remember("pod", key, refusal)
            raise refusal
        # Pods of the host's network share its address: the one that owns it comes first
        found = decode.pod_endpoint(min(running, key=lambda pod: (pod.spec.host_network, pod.metadata.name)))
        self._remember("pod", key, found)
        return found

    def _recall(self, kind: str, key: Key) -> Endpoint | KubeTunnelError | None:
        until, what = self._remembered.get((kind, key), (0.0, None))
        return what if until > self._clock() else None

    def _raise_remembered(self, key: Key, kind: str = "service") -> None:
        remembered = self._recall(kind, key)
        if isinstance(remembered, KubeTunnelError):
            raise type(remembered)(remembered.detail, command=remembered.command) from remembered

    def _remember(self, kind: str, key: Key, what: Endpoint | KubeTunnelError) -> None:
        now = self._clock()
        if len(self._remembered) >= MEMORY_ENTRIES:
            self._remembered = {k: entry for k, entry in self._remembered.items() if entry[0] > now}
        self._remembered[kind, key] = (now + (POD_MEMORY_S if isinstance(what, Endpoint) else REFUSAL_MEMORY_S), what)

    def _notify(self, namespace: str, name: str, state: ServiceState | None) -> None:
        """Supervision point: a subscriber's mistake must not end the watch that others live on."""
        for callback in list(self._callbacks):
            try:
                callback(namespace, name, state)
            except Exception:
                logger.exception("A subscriber failed at a change of %s/%s%s", namespace, name, self._access.of_context)

    def _end_idle(self) -> None:
        now = self._clock()
        for key, followed in list(self._followed.items()):
            if now - followed.used_at >= self._idle_timeout_s:
                of_context = self._access.of_context
                logger.info("Service %s/%s%s is let go: not used for %g s", *key, of_context, self._idle_timeout_s)
                self._let_go(key)
        self._idle_timer = None
        if self._followed:
            next_at = min(followed.used_at for followed in self._followed.values()) + self._idle_timeout_s
            self._idle_timer = asyncio.get_running_loop().call_at(next_at, self._end_idle)

    def _let_go(self, key: Key) -> None:
        followed = self._followed.pop(key, None)
        if followed is not None:
            task = asyncio.create_task(followed.aclose(), name=f"kube-tunnel end {key}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
