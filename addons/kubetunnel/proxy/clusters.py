"""One cluster as the proxy uses it: who we are there, what it has, and the port-forwards into it.

The kubeconfig is read at the first use, and where that failed at the next one again: a cause that is mended needs no
restart.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from dataclasses import dataclass, replace
from importlib import import_module

from kubetunnel.cluster.access import ClusterAccess, load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.kubeconfig import read_kubeconfig
from kubetunnel.core.catalog import ServiceState
from kubetunnel.core.errors import ClusterUnreachable, KubeconfigError, KubeTunnelError
from kubetunnel.core.settings import ClusterSettings, Settings
from kubetunnel.demo import Demo
from kubetunnel.forward.direct import DirectConnections
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.forward.pool import PortForwards

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """What belongs to one context."""

    access: ClusterAccess
    discovery: Discovery
    forwards: PodStreams

    async def aclose(self) -> None:
        await self.forwards.aclose()
        await self.discovery.aclose()
        await self.access.aclose()


class Cluster:
    """Opens sessions to one kubeconfig context.

    Args:
        settings: kubeconfig, context and namespace, None each for kubectl's default.
        idle_timeout_s: watches that nobody asks for end after it.
    """

    def __init__(self, settings: ClusterSettings, idle_timeout_s: float = 300.0) -> None:
        self._settings = settings
        self._idle_timeout_s = idle_timeout_s
        self._demo: Demo | None = None
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._last_error = ""
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_one_of_several = False
        self._closed = False

    def count(self, clusters: int) -> None:
        """How many there are: the log names this one's context where it is not alone."""
        self._is_one_of_several = clusters > 1
        if self._session is not None:
            self._session.access.is_one_of_several = self._is_one_of_several

    def configure(self, settings: ClusterSettings, demo: Demo | None, idle_timeout_s: float = 300.0) -> None:
        """Takes other settings; a session that is open under the former ones is ended.

        `idle_timeout_s` holds for the next session.
        """
        self._idle_timeout_s = idle_timeout_s
        if (settings, demo) != (self._settings, self._demo):
            self._settings, self._demo = settings, demo
            session, self._session = self._session, None
            if session is not None:
                self._retire(session)

    @property
    def opened(self) -> Session | None:
        """The session, where there is one."""
        return self._session

    @property
    def kubectl(self) -> str:
        """The beginning of a kubectl command for it; until there is a session, by the settings alone."""
        if self._session is not None:
            return self._session.access.kubectl()
        flags = {"--kubeconfig": self._settings.kubeconfig, "--context": self._settings.context}
        given = [part for flag, value in flags.items() if value for part in (flag, value)]
        return shlex.join(["kubectl", *given])

    async def session(self) -> Session:
        """The session, opened at the first use. Raises KubeconfigError, Unauthenticated."""
        if self._session is not None:
            return self._session
        async with self._opening:
            while self._session is None:
                if self._closed:
                    raise ClusterUnreachable("The tunnel is ending.")
                loaded_for = (self._settings, self._demo)
                access = await self._load()
                if loaded_for == (self._settings, self._demo) and not self._closed:
                    access.is_one_of_several = self._is_one_of_several
                    self._session = _open(access, self._settings.dial, self._idle_timeout_s)
                else:  # other settings came meanwhile
                    await access.aclose()
            return self._session

    def has_told(self, error: KubeTunnelError) -> bool:
        """Whether the log has this already."""
        return self._last_error == str(error)

    async def mistake(self) -> KubeconfigError | None:
        """What is wrong with the kubeconfig or the context; nobody is asked, and no plugin run."""
        if self._demo is not None:
            return None
        settings = self._settings
        try:
            await asyncio.to_thread(
                read_kubeconfig,
                kubeconfig=settings.kubeconfig,
                context=settings.context,
                namespace=settings.namespace,
            )
        except KubeconfigError as e:
            return e
        return None

    async def _load(self) -> ClusterAccess:
        settings = self._settings
        try:
            await asyncio.to_thread(import_module, "kubetunnel.cluster.http_client")  # not while others wait for us
            kubeconfig = await self._demo.kubeconfig() if self._demo else settings.kubeconfig
            access = await load_access(kubeconfig=kubeconfig, context=settings.context, namespace=settings.namespace)
        except KubeTunnelError as e:
            if self._last_error != str(e):
                logger.warning("%s", e)
                self._last_error = str(e)
            raise
        self._last_error = ""
        logger.info("Cluster %s (context %s, namespace %s).", access.server, access.context, access.namespace)
        return access

    def _retire(self, session: Session) -> None:
        task = asyncio.get_running_loop().create_task(session.aclose(), name="retired cluster session")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def aclose(self) -> None:
        """Ends watches and forwards, for good."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()
        await asyncio.gather(*self._retiring)


class Clusters:
    """The clusters by their zones: that of the settings, and those of other contexts that they name.

    Each has credentials, catalog and port-forwards of its own, and is opened when a name of its zone is asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self._clusters: dict[str, Cluster] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.configure(settings, None)

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones that are ours; short names are in the first."""
        return tuple(self._clusters)

    def of(self, zone: str) -> Cluster:
        """The cluster of one of `zones`."""
        return self._clusters[zone]

    def sessions(self) -> dict[str, Session]:
        """The sessions that are open, by their zones; nothing is opened by asking."""
        return {zone: cluster.opened for zone, cluster in self._clusters.items() if cluster.opened is not None}

    @property
    def first(self) -> Cluster:
        return self._clusters[self.zones[0]]

    def configure(self, settings: Settings, demo: Demo | None) -> None:
        """Takes other settings; a cluster that they do not name any more is ended.

        Args:
            demo: stands in for the first cluster.
        """
        main = settings.cluster
        wanted = {_plain(main.zone): main}
        for other in settings.zones:
            wanted.setdefault(
                _plain(other.zone), replace(main, context=other.context, namespace=None, zone=other.zone, demo=False)
            )
        former, self._clusters = self._clusters, {}
        for zone, cluster_settings in wanted.items():
            cluster = former.pop(zone, None) or Cluster(cluster_settings)
            is_first = cluster_settings is main
            cluster.configure(cluster_settings, demo if is_first else None, settings.pool.idle_timeout_s)
            cluster.count(len(wanted))
            self._clusters[zone] = cluster
        for cluster in former.values():
            task = asyncio.get_running_loop().create_task(cluster.aclose(), name="cluster of a former zone")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def tell_mistakes(self) -> None:
        """A warning for each zone whose context cannot be used; the first cluster's is told when it is opened."""
        for zone, cluster in list(self._clusters.items())[1:]:
            mistake = await cluster.mistake()
            if mistake is not None and cluster is self._clusters.get(zone):
                logger.warning("zones: names in %s will be refused: %s", zone, mistake)

    async def aclose(self) -> None:
        """Ends all of them, for good."""
        await asyncio.gather(*(cluster.aclose() for cluster in self._clusters.values()), *self._ending)


def _plain(zone: str) -> str:
    return zone.lower().removesuffix(".")


def _open(access: ClusterAccess, dial: str, idle_timeout_s: float) -> Session:
    discovery = Discovery(access, idle_timeout_s=idle_timeout_s)
    forwards: PodStreams
    if dial == "direct":
        forwards = DirectConnections(idle_timeout_s=idle_timeout_s, of_context=lambda: access.of_context)
    else:
        forwards = PortForwards(access, idle_timeout_s=idle_timeout_s)
    known: dict[tuple[str, str], frozenset[str]] = {}

    def drain_vanished(namespace: str, service: str, state: ServiceState | None) -> None:
        # a pod that left the slices is ending, though its port-forwards would outlive it (no error comes by itself)
        slices = state.slices if state else ()
        pods = frozenset(e.pod for s in slices for e in s.endpoints if e.pod and not e.terminating)
        for pod in known.get((namespace, service), frozenset()) - pods:
            forwards.drain(namespace, pod)
        if state is None:
            known.pop((namespace, service), None)
        else:
            known[namespace, service] = pods

    discovery.subscribe(drain_vanished)
    return Session(access, discovery, forwards)
