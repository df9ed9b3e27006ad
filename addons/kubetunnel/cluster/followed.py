"""One Service in use: its copy and that of its endpoints, from the best source that the user may read.

The contract's section 2.5: EndpointSlices, else Endpoints, else the Pods that the Service selects (what
`kubectl port-forward svc/…` needs), whichever of them the server has and the user may read.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

from kubetunnel.cluster import decode
from kubetunnel.cluster.answers import NotKubernetesError
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.patience import first_done
from kubetunnel.cluster.reflector import AbsentError, Reflector
from kubetunnel.cluster.resource import ENDPOINT_SLICES, ENDPOINTS, PODS, SERVICES, Query, Resource
from kubetunnel.cluster.rights import Rights
from kubetunnel.core.catalog import EndpointSlice, Service, ServiceState
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, KubeTunnelError, Timeout, Unauthenticated

logger = logging.getLogger(__name__)

SOURCES = (ENDPOINT_SLICES, ENDPOINTS, PODS)  # of endpoints, the best first

type Source = Reflector[decode.SliceObject] | Reflector[decode.EndpointsObject] | Reflector[decode.PodObject]
type Copy = Reflector[decode.ServiceObject] | Source


class FollowedService:
    """A Service and its endpoints. `open` it, `start` it where it shall be kept up, `aclose` it."""

    def __init__(
        self,
        api: ApiServer,
        rights: Rights,
        rng: random.Random,
        namespace: str,
        name: str,
        on_change: Callable[[ServiceState | None], None] = lambda state: None,
    ) -> None:
        self.namespace, self.name = namespace, name
        self.opened_at = self.used_at = asyncio.get_running_loop().time()
        self.ended = False  # it can no longer be kept up: open another
        self._api, self._rights, self._rng = api, rights, rng
        self._renewals = api.renewals
        self._on_change = on_change
        self._services = self._reflect(Query(SERVICES, decode.ServiceObject, namespace, name))
        self._slices = self._reflect(
            Query(ENDPOINT_SLICES, decode.SliceObject, namespace, labels=f"kubernetes.io/service-name={name}")
        )
        self._endpoints = self._reflect(Query(ENDPOINTS, decode.EndpointsObject, namespace, name))
        self._pods: Reflector[decode.PodObject] | None = None  # known when the Service's selector is
        self._selector: Mapping[str, str] = {}
        self._source: Source | None = None  # None: an ExternalName needs none
        self._refusals: dict[Resource, Forbidden] = {}
        self._opened = False
        self._state: ServiceState | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def _reflect[T: decode.ApiObject](self, query: Query[T]) -> Reflector[T]:
        return Reflector(self._api, query, self._rights, self._rng, self._changed)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}{self._api.access.of_context}"

    @property
    def certain(self) -> bool:
        """Whether a Service that is not here is not there: no broken watch hides it."""
        return self._services.connected or not self._services.live

    @property
    def outlived_fallback(self) -> bool:
        """Whether it makes do with a fall-back for so long that the better way is worth another try."""
        best = self._source in (None, self._slices) and not any(r.fallen_back for r in self._copies)
        age_s = asyncio.get_running_loop().time() - self.opened_at
        return not best and (age_s > self._rights.memory_s or self._renewals != self._api.renewals)

    async def open(self) -> ServiceState | None:
        """Fetch the Service and, at the same time, its endpoints. None: there is no such Service.

        Raises:
            Forbidden: naming the first right that is missing, where all the fall-backs are refused too.
            Unauthenticated, ClusterUnreachable, Timeout
        """
        # what was refused lately comes last, but is not left out: the right may have been granted since
        first, *others = sorted(SOURCES, key=lambda resource: not self._readable(resource))
        outcomes = await asyncio.gather(self._services.refresh(), self._try(first), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        service = self._service()
        if service is None:
            return None
        if self._source is None and service.type != "ExternalName":
            # the Pods once more where they came first: only now is it known which
            await self._fall_back([first, *others] if first is PODS else others)
        self._renewals = self._api.renewals
        self._opened = True
        self._state = self._assemble()
        return self._state

    @property
    def last(self) -> ServiceState | None:
        """What was last known, however old."""
        return self._state

    @property
    def read_at(self) -> float:
        """When `last` was known to be right, in Unix seconds: now, while watches are open."""
        now = time.time()
        return min(now if copy.connected else copy.read_at for copy in self._copies)

    def start(self) -> None:
        """Keep it up in the background, from what `open` fetched."""
        self._task = asyncio.create_task(self._run(), name=f"kube-tunnel watch {self.namespace}/{self.name}")

    async def state(self) -> ServiceState | None:
        """What is known, at once where watches keep it up, else fetched (not more often than once a second).

        Where the fetch takes longer than the patience, the last known state has to do.
        """
        for copy in self._copies:
            copy.wanted()
        if any(copy.due for copy in self._copies):
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh_due(), name=f"kube-tunnel fetch {self.name}")
            refreshing = self._refreshing
            access = self._api.access
            await first_done({refreshing}, access.reach.patience_s, lambda: access.obtaining)
            if refreshing.done() and not refreshing.cancelled():
                refreshing.result()
        return self._state

    async def aclose(self) -> None:
        tasks = {task for task in (self._task, self._refreshing) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def _copies(self) -> list[Copy]:
        return [self._services] if self._source is None else [self._services, self._source]

    async def _refresh_due(self) -> None:
        due = [copy for copy in self._copies if copy.due]
        for outcome in await asyncio.gather(*(copy.refresh() for copy in due), return_exceptions=True):
            if isinstance(outcome, ClusterUnreachable | Timeout | Unauthenticated):
                logger.debug("The last known state of %s is used: %s", self, outcome)
                for copy in due:
                    copy.postpone()
            elif isinstance(outcome, Forbidden | AbsentError):
                self.ended = True  # a right was taken away: the next use looks for another source
            elif isinstance(outcome, BaseException):
                raise outcome

    def _readable(self, resource: Resource) -> bool:
        """As far as is known. Endpoints are the only ones that a get by name is enough for."""
        verbs = ("list", "get") if resource is ENDPOINTS else ("list",)
        return any(self._rights.allows(self.namespace, resource, verb) for verb in verbs)

    async def _try(self, resource: Resource) -> bool:
        """Fetch the endpoints from one source. False: it is refused, is not there, or (Pods) cannot be asked."""
        source = self._source_of(resource)
        if source is None:
            return False
        try:
            await source.refresh()
        except Forbidden as error:
            self._refusals[resource] = error
            return False
        except AbsentError as error:
            logger.debug("The API server has no %s", error)
            return False
        self._source = source
        return True

    async def _fall_back(self, resources: list[Resource]) -> None:
        for resource in resources:
            if await self._try(resource):
                logger.info("Endpoints of %s come from %s", self, resource)
                return
        for resource in SOURCES:
            if resource in self._refusals:
                raise self._refusals[resource]
        raise NotKubernetesError(f"{self._api.access.server} has neither EndpointSlices nor Endpoints.")

    def _source_of(self, resource: Resource) -> Source | None:
        if resource is ENDPOINT_SLICES:
            return self._slices
        if resource is ENDPOINTS:
            return self._endpoints
        service = self._service()
        if service is None or not service.selector:
            return None
        if self._pods is None or self._selector != service.selector:
            labels = ",".join(f"{key}={value}" for key, value in service.selector.items())
            self._pods = self._reflect(Query(PODS, decode.PodObject, self.namespace, labels=labels))
            self._selector = service.selector
        return self._pods

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for copy in self._copies:
                    group.create_task(copy.run())
        except* (KubeTunnelError, AbsentError) as errors:
            self.ended = True
            logger.info("%s is looked up anew at its next use: %s", self, errors.exceptions[0])

    def _changed(self) -> None:
        if not self._opened:
            return  # half of it is missing yet
        state = self._assemble()
        if state is not None and self._source is self._pods and state.service.selector != self._selector:
            self.ended = True  # its Pods are others now
        if state != self._state:
            self._state = state
            self._on_change(state)

    def _service(self) -> Service | None:
        found = self._services.objects.get(self.name)
        return None if found is None else decode.service(found)

    def _assemble(self) -> ServiceState | None:
        service = self._service()
        return None if service is None else ServiceState(service, self._assemble_slices(service))

    def _assemble_slices(self, service: Service) -> tuple[EndpointSlice, ...]:
        if self._source is self._slices:
            return tuple(decode.endpoint_slice(found) for found in self._slices.objects.values())
        if self._source is self._endpoints:
            return tuple(s for found in self._endpoints.objects.values() for s in decode.slices_of_endpoints(found))
        return decode.slices_of_pods(service, list(self._pods.objects.values())) if self._pods else ()
