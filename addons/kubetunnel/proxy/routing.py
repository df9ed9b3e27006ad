"""From the name in a request to the bytes of a pod: the contract's section 2, asking the cluster for the facts."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakKeyDictionary

from kubetunnel.cluster.single_flight import SingleFlight
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort, Service, ServicePort, ServiceState
from kubetunnel.core.endpoints import Target, targets
from kubetunnel.core.errors import KubeTunnelError, NotAServiceName, NotForwardable, OutsideName, Timeout
from kubetunnel.core.names import (
    Name,
    PodAddressName,
    PodName,
    ServiceName,
    SrvName,
    is_address,
    parse_name,
    split_host_port,
)
from kubetunnel.core.ports import PortRequest, choose_port
from kubetunnel.core.settings import ServiceSettings, Settings
from kubetunnel.core.spoken import Http, Spoken, choose_http, spoken_at
from kubetunnel.forward.attempts import Attempts, Choices
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.progress import telling
from kubetunnel.proxy import http2_probe
from kubetunnel.proxy.clusters import Clusters, Session
from kubetunnel.proxy.explained import explain
from kubetunnel.proxy.failover import FailoverStream
from kubetunnel.proxy.http.writing import TimedWriter

logger = logging.getLogger(__name__)

PROBE_MEMORY_S = 60.0  # a rollout may bring pods that speak something else
PROBE_PATIENCE_S = 30.0  # to open a stream, and for the answer; both have limits of their own
PROBE_SHARE = 0.5  # of the patience for the API server, which the pod is behind


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes: the full name, the port that was found for it, and the pods behind it at the time."""

    name: Name
    port: int
    session: Session
    targets: tuple[Target, ...]
    request: PortRequest
    sticky: bool = False  # Service.spec.sessionAffinity is ClientIP
    spoken: Spoken = Spoken(tls=False)  # noqa: RUF009 - frozen
    settings: ServiceSettings = field(default_factory=lambda: ServiceSettings("*"))

    @property
    def service(self) -> str:
        """The full name of the Service, for a Pod's name too."""
        return str(self.name.service if isinstance(self.name, PodName) else self.name)

    @property
    def address(self) -> tuple[str, int]:
        """The full name and the port, as flows show them."""
        return str(self.name), self.port

    @property
    def forwards(self) -> PodStreams:
        """The port-forwards of its cluster."""
        return self.session.forwards

    def explain(self, target: Target, error: KubeTunnelError) -> None:
        """Gives a failure of this endpoint a command that shows it, where it has none."""
        pod = target.pod_port
        explain(error, kubectl=self.session.access.kubectl(), namespace=pod.namespace, pod=pod.pod)


@dataclass(frozen=True, slots=True)
class Upstream:
    """An open stream to a pod's port."""

    attempts: Attempts
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def target(self) -> Target:
        """The endpoint; another one later, where this one refuses."""
        return self.attempts.target

    @property
    def retries(self) -> int:
        """How many attempts were before it."""
        return self.attempts.retries


class Router:
    """Finds and opens what a name stands for."""

    def __init__(self, settings: Settings, clusters: Clusters, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._clusters = clusters
        self._rng = rng or random.Random()  # noqa: S311 - balancing, no secret
        self._is_unhealthy: Callable[[PodStreams, PodPort], bool] | None = None
        self._choices: WeakKeyDictionary[PodStreams, Choices] = WeakKeyDictionary()
        self._probed: dict[tuple[str, int], tuple[bool, float]] = {}
        self._probes: SingleFlight[tuple[str, int], bool | None] = SingleFlight(
            patience_s=lambda: PROBE_PATIENCE_S,
            out_of_patience=lambda _: Timeout("The pod was asked for HTTP/2 and is silent."),
        )

    def configure(self, settings: Settings) -> None:
        """Takes other settings, for what is routed from now on."""
        self._settings = settings
        self._probed.clear()

    def avoid(self, is_unhealthy: Callable[[PodStreams, PodPort], bool]) -> None:
        """Gives no new streams to these pods while there are others."""
        self._is_unhealthy = is_unhealthy
        for choices in self._choices.values():
            choices.is_unhealthy = is_unhealthy

    def _choices_of(self, forwards: PodStreams) -> Choices:
        choices = self._choices.get(forwards)
        if choices is None:
            choices = self._choices[forwards] = Choices(self._rng)
            choices.is_unhealthy = self._is_unhealthy or choices.is_unhealthy
        return choices

    @property
    def settings(self) -> Settings:
        return self._settings

    def owns(self, host: str) -> bool:
        """Whether this is a full name of a zone of ours, so that no other meaning of it can be intended."""
        try:
            parse_name(host, zones=self._zones, default_namespace="", short_forms=False)
        except NotAServiceName:
            return False
        return True

    def known_name(self, host: str) -> Name | None:
        """The name that this host is, as far as it can be told without the kubeconfig; None for a foreign one."""
        try:
            name = parse_name(host, zones=self._zones, default_namespace="")
        except NotAServiceName:
            return None
        return name if name.namespace else None

    def split_authority(self, authority: str) -> tuple[str, int | None]:
        """Host and port of a Host header. Raises NotAServiceName."""
        try:
            return split_host_port(authority)
        except NotAServiceName as e:
            e.aim(self._clusters.first.kubectl)
            raise

    async def parse(self, host: str) -> Name:
        """The name that this host is. Raises NotAServiceName; `api` alone needs the kubeconfig for its Namespace."""
        try:
            name = parse_name(host, zones=self._zones, default_namespace=self._settings.cluster.namespace or "")
        except NotAServiceName as e:
            e.aim(self._clusters.first.kubectl)
            raise
        if name.namespace:
            return name
        session = await self._clusters.of(name.zone).session()
        return parse_name(host, zones=self._zones, default_namespace=session.access.namespace)

    def asked_for(self, name: Name, port: int) -> dict[str, str | int]:
        """What a flow tells of where it was to go, before a pod is found. No cluster is asked."""
        session = self._clusters.sessions().get(name.zone)  # its zone may be gone by now
        context = {"context": session.access.context} if session is not None else {}
        return {"service": str(name), "port": port, **context}

    async def find(self, name: Name, request: PortRequest, *, fresh: bool = False) -> Destination:
        """Looks the name up, `fresh` at the API server in any case. Raises what the contract's section 5 lists."""
        session = await self._clusters.of(name.zone).session()
        try:
            with telling(logger, "%s: asking %s takes its time.", name, session.access.server):
                return await self._find(session, name, request, fresh=fresh)
        except KubeTunnelError as e:
            e.aim(session.access.kubectl())  # what is decided in the core knows of no context
            raise

    async def _find(self, session: Session, name: Name, request: PortRequest, *, fresh: bool) -> Destination:
        match name:
            case ServiceName():
                return await self._find_service(session, name, name, request, fresh=fresh)
            case PodName(hostname=hostname, service=service):
                return await self._find_service(session, name, service, request, hostname, fresh=fresh)
            case PodAddressName(address=address, namespace=namespace):
                endpoint = await session.discovery.pod(namespace, str(address))
                target = Target.of_pod(namespace, endpoint, request.number)
                spoken = spoken_at(ServicePort(request.number))
                return Destination(name, request.number, session, (target,), request, spoken=spoken)
            case SrvName():
                raise NotAServiceName(
                    f"{name} is a name for SRV look-ups in DNS. Ask for {name.service} instead.",
                    command=f"kubectl -n {name.namespace} get service {name.service.service}",
                )

    async def _find_service(
        self,
        session: Session,
        name: Name,
        service: ServiceName,
        request: PortRequest,
        hostname: str | None = None,
        *,
        fresh: bool,
    ) -> Destination:
        state: ServiceState = await session.discovery.service(service.namespace, service.service, fresh=fresh)
        try:
            choice = choose_port(state.service, request, hostname=hostname)
        except NotForwardable as e:
            if hostname is not None:
                raise
            return await self._find_alias(state.service, request, e, fresh=fresh)
        if choice.fallback:
            logger.info("%s: %s.", service, choice.fallback)
        port = choice.port
        settings = self._settings.of_service(service.service, service.namespace, port.port)
        spoken = spoken_at(replace(port, app_protocol=settings.app_protocol) if settings.app_protocol else port)
        if settings.port and (settings.ca_file or settings.client_certificate):
            spoken = replace(spoken, tls=True)  # who wants the pod verified does not want to speak to it in clear
        sticky = state.service.session_affinity == "ClientIP"
        return Destination(name, port.port, session, targets(state, port, hostname), request, sticky, spoken, settings)

    async def _find_alias(
        self, service: Service, request: PortRequest, refused: NotForwardable, *, fresh: bool
    ) -> Destination:
        """What an ExternalName stands for. Raises OutsideName where that is not in the cluster, or what it was refused
        for."""
        outside = service.external_name.lower().removesuffix(".")
        if self._settings.external_names != "direct" or not outside or is_address(outside):
            raise refused  # an address there is a name all the same (core/v1 ServiceSpec), which nobody has
        if not self.owns(outside):
            app_protocol = self._settings.of_service(service.name, service.namespace, request.number).app_protocol
            spoken = spoken_at(ServicePort(request.number, app_protocol=app_protocol))
            tls = spoken.tls if spoken.tls or spoken.binding else None
            address = outside, request.number
            raise OutsideName(refused.detail, command=refused.command, address=address, tls=tls) from refused
        name = parse_name(outside, zones=self._zones, default_namespace="", short_forms=False)
        if not isinstance(name, ServiceName):
            raise refused
        session = await self._clusters.of(name.zone).session()
        state = await session.discovery.service(name.namespace, name.service, fresh=fresh)
        if state.service.type == "ExternalName":
            raise refused  # an alias of an alias may be one of itself
        return await self._find_service(session, name, name, request, fresh=fresh)

    def negotiable_http_version(self, destination: Destination, *, client_http2: bool) -> Http:
        """What to speak to the pod; NEGOTIATED where ALPN has to tell, or in clear `http_version`."""
        http = self._settings.http
        return choose_http(
            destination.spoken,
            client_http2=client_http2,
            force_http2=http.force_http2,
            disable_fallback=http.disable_fallback,
        )

    async def http_version(self, destination: Destination, *, client_http2: bool) -> Http:
        """HTTP1 or HTTP2 in clear: where nothing says it the pod is asked once, and its answer remembered."""
        chosen = self.negotiable_http_version(destination, client_http2=client_http2)
        if chosen is not Http.NEGOTIATED:
            return chosen
        key = destination.address
        known, until = self._probed.get(key, (None, 0.0))
        if until < time.monotonic():
            known = await self._probes.run(key, partial(self._probe, destination))
        return Http.HTTP2 if known else Http.HTTP1

    async def _probe(self, destination: Destination) -> bool | None:
        upstream = await self.open(destination)
        patience_s = max(http2_probe.PATIENCE_S, PROBE_SHARE * destination.session.access.reach.patience_s)
        try:
            answer = await http2_probe.speaks_http2(upstream.reader, upstream.writer, patience_s=patience_s)
        except OSError as e:
            if error := error_of(e):
                destination.explain(upstream.target, error)
                raise error from e
            answer = None
        finally:
            upstream.writer.close()
        if answer is not None:
            self._probed[destination.address] = answer, time.monotonic() + PROBE_MEMORY_S
            logger.info("%s:%d speaks %s.", *destination.address, "HTTP/2" if answer else "HTTP/1.1 and no HTTP/2")
        return answer

    async def open(
        self,
        destination: Destination,
        client: str | None = None,
        *,
        shared: bool = False,
        until_connected: bool = False,
    ) -> Upstream:
        """Opens a stream to the endpoint with the fewest, to another where that fails, as often as `retry.max` says.

        Args:
            destination: where to.
            client: who asks; with session affinity it has the same endpoint each time.
            shared: for small exchanges, so it may have neighbours on its connection to the API server.
            until_connected: waits for a sign that the pod's port took the connection. A round trip and some
                milliseconds; without it, a port that refuses shows later, as the stream's failure.
        """
        retry = self._settings.retry
        peer = f"{destination.name}:{destination.port}"
        # the name has its zone, where the pod's alone would not tell which cluster
        which = f"{peer}: " if destination.session.access.is_one_of_several else ""
        attempts = Attempts(
            destination,
            self._choices_of,
            partial(self.find, destination.name, destination.request, fresh=True),
            Backoff(retry.delay_s, cap_s=10 * retry.delay_s, retries=retry.max),
            client=client if destination.sticky else None,
            shared=shared,
            tell=partial(logger.info, "%s%s", which),
        )
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        stream = FailoverStream(attempts, protocol)
        with telling(logger, "%s: opening a connection to a pod takes its time.", peer):
            await stream.open()
            if until_connected:
                try:
                    await stream.connected()
                except BaseException:
                    stream.abort()
                    raise
        timeout_s = self._settings.http.write_timeout_s
        return Upstream(attempts, reader, TimedWriter(stream, protocol, reader, timeout_s=timeout_s, peer=peer))

    @property
    def _zones(self) -> tuple[str, ...]:
        return self._clusters.zones


def error_of(exception: BaseException | None) -> KubeTunnelError | None:
    """The refusal that a stream's exception carries."""
    error = getattr(exception, "error", exception)
    return error if isinstance(error, KubeTunnelError) else None
