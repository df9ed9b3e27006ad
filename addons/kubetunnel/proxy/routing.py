"""From the name in a request to the bytes of a pod: the contract's section 2, asking the cluster for the facts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from dataclasses import dataclass

from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import ServiceState
from kubetunnel.core.endpoints import Target, choose_target, targets
from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, NotAServiceName, Timeout, UpstreamReset
from kubetunnel.core.names import Name, PodAddressName, PodName, ServiceName, SrvName, parse_name
from kubetunnel.core.ports import PortRequest, choose_port
from kubetunnel.core.settings import Settings
from kubetunnel.proxy.clusters import Cluster, Session

logger = logging.getLogger(__name__)

# concerns this endpoint alone: another one may do better
_ENDPOINT_FAILED = (ConnectionRefused, UpstreamReset, Timeout)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes: the full name, the port that was found for it, and the pods behind it at the time."""

    name: Name
    port: int
    session: Session
    targets: tuple[Target, ...]
    sticky: bool = False  # Service.spec.sessionAffinity is ClientIP


@dataclass(frozen=True, slots=True)
class Upstream:
    """An open stream to a pod's port."""

    target: Target
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    retries: int


class Router:
    """Finds and opens what a name stands for."""

    def __init__(self, settings: Settings, cluster: Cluster, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._cluster = cluster
        self._rng = rng or random.Random()  # noqa: S311 - balancing, no secret

    def configure(self, settings: Settings) -> None:
        """Takes other settings, for what is routed from now on."""
        self._settings = settings

    def owns(self, host: str) -> bool:
        """Whether this is a full name of a zone of ours, so that no other meaning of it can be intended."""
        try:
            parse_name(host, zones=self._zones, default_namespace="", short_forms=False)
        except NotAServiceName:
            return False
        return True

    async def parse(self, host: str) -> Name:
        """The name that this host is. Raises NotAServiceName; `api` alone needs the kubeconfig for its Namespace."""
        name = parse_name(host, zones=self._zones, default_namespace="")
        if name.namespace:
            return name
        session = await self._cluster.session()
        return parse_name(host, zones=self._zones, default_namespace=session.access.namespace)

    async def find(self, name: Name, request: PortRequest) -> Destination:
        """Looks the name up. Raises what the contract's section 5 lists."""
        session = await self._cluster.session()
        match name:
            case ServiceName():
                return await self._find_service(session, name, name, request)
            case PodName(hostname=hostname, service=service):
                return await self._find_service(session, name, service, request, hostname)
            case PodAddressName(address=address, namespace=namespace):
                endpoint = await session.discovery.pod(namespace, str(address))
                target = Target.of_pod(namespace, endpoint, request.number)
                return Destination(name, request.number, session, (target,))
            case SrvName():
                raise NotAServiceName(f"{name} is a name for SRV look-ups in DNS. Ask for {name.service} instead.")

    async def _find_service(
        self, session: Session, name: Name, service: ServiceName, request: PortRequest, hostname: str | None = None
    ) -> Destination:
        state: ServiceState = await session.discovery.service(service.namespace, service.service)
        choice = choose_port(state.service, request, hostname=hostname)
        if choice.fallback:
            logger.info("%s: %s.", service, choice.fallback)
        sticky = state.service.session_affinity == "ClientIP"
        return Destination(name, choice.port.port, session, targets(state, choice.port, hostname), sticky)

    async def open(self, destination: Destination, client: str | None = None) -> Upstream:
        """Opens a stream to the endpoint with the fewest, to another where that fails, as often as `retry.max` says."""
        forwards = destination.session.forwards
        left = destination.targets
        client = client if destination.sticky else None
        retry = self._settings.retry
        delays_s = Backoff(retry.delay_s, cap_s=10 * retry.delay_s, retries=retry.max).delays_s(self._rng)
        for retries in itertools.count():
            target = choose_target(
                left, lambda t: forwards.open_streams(t.pod_port.namespace, t.pod_port.pod), self._rng, client
            )
            try:
                reader, writer = await forwards.open_connection(target.pod_port)
            except _ENDPOINT_FAILED as e:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise
                logger.info("%s: %s Trying again.", target.pod_port, e)
                left = tuple(t for t in left if t is not target) or destination.targets
                await asyncio.sleep(delay_s)
            else:
                return Upstream(target, reader, writer, retries)
        raise AssertionError("unreachable")

    @property
    def _zones(self) -> tuple[str, ...]:
        return (self._settings.cluster.zone,)


def error_of(exception: BaseException | None) -> KubeTunnelError | None:
    """The refusal that a stream's exception carries."""
    error = getattr(exception, "error", exception)
    return error if isinstance(error, KubeTunnelError) else None
