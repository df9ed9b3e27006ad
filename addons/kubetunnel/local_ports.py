"""The local listeners of a running tunnel, in one list whoever asked: the setting `forwards`, a command, the dashboard.

Each is there from when its cluster and its port are, until nobody wants it any more; of those that a user asks for the
object has to be there, too. They open side by side, and close without waiting for another's opening. When the session
of its cluster is another, because the settings changed, a listener is opened anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from kubetunnel.cluster.workloads import Workloads
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError
from kubetunnel.core.local_forward import ObjectRef, PortPair
from kubetunnel.core.settings import RetrySettings
from kubetunnel.forward.listener import DRAIN_S, IsUnhealthy, LocalForwards, LocalListener
from kubetunnel.forward_specs import ForwardSpec, parse_entry, parse_forward
from kubetunnel.proxy.clusters import Clusters, Session

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 10.0  # of one that could not be opened: its object or its port may come
OPEN_TIMEOUT_S = 10.0
MAX_ASKED = 100  # while it runs; the settings may have more
NO_CLUSTER = "There is no cluster yet; the log says why."

type AskedBy = Literal["settings", "user"]


class TooManyListeners(KubeTunnelError):  # noqa: N818 - named as the rest of the tree
    """There are as many as there may be."""

    title = "Too many local listeners"


@dataclass(eq=False, slots=True)
class LocalPort:
    """One port that is wanted.

    Attributes:
        entry: as it was asked for, `svc/api -n shop 5432`; several ports of one entry are several of these.
        zone: "" for the first cluster's. The namespace of `ref` is "" for the context's, until it is open.
        listener: None while it is not open; `failure`: why.
    """

    id: str
    asked_by: AskedBy
    entry: str
    zone: str
    ref: ObjectRef
    pair: PortPair
    listener: LocalListener | None = None
    failure: str = ""
    tried_s: float = float("-inf")

    @property
    def addresses(self) -> list[str]:
        """Where it listens: host:port, an IPv6 one in brackets."""
        found = self.listener.addresses if self.listener is not None else ()
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found]


@dataclass(eq=False, slots=True)
class _OfZone:
    """What one session has open, made for one address and one policy of retries."""

    session: Session
    made_for: tuple[str, RetrySettings]
    workloads: Workloads
    forwards: LocalForwards
    open: dict[LocalPort, LocalListener] = field(default_factory=dict)

    async def aclose(self, drain_s: float = DRAIN_S) -> None:
        try:
            await self.forwards.aclose(drain_s=drain_s)
        finally:  # who opens a port ends the former session's, and may be cancelled meanwhile
            await self.workloads.aclose()


class LocalPorts:
    """All of them. What is asked for synchronously is done soon, by a task of its own."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._made_for = ("127.0.0.1", RetrySettings())
        self._wanted: dict[str, LocalPort] = {}
        self._of_zone: dict[str, _OfZone] = {}
        self._last_id = 0
        self._opening: dict[str, asyncio.Task[None]] = {}  # by the port's id
        self._replacing = asyncio.Lock()  # of what a former session has open by what the next one opens
        self._is_ending = False
        self._news = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._is_unhealthy: IsUnhealthy = lambda forwards, pod_port: False

    def avoid(self, is_unhealthy: IsUnhealthy) -> None:
        """Connections go to a pod of which this is true only where there is no other."""
        self._is_unhealthy = is_unhealthy

    def configure(self, entries: Sequence[str], *, address: str, retry: RetrySettings) -> None:
        """Takes the settings: their entries, and where all listen. Those that are open elsewhere are opened anew."""
        self._made_for = (address, retry)
        ours = {port.entry: port for port in self._wanted.values() if port.asked_by == "settings"}
        for entry in ours.keys() - set(entries):
            self._drop(port for port in list(self._wanted.values()) if _is_of(port, "settings", entry))
            logger.info("The forward %r is closed: the settings have it no more.", entry)
        for entry in dict.fromkeys(entries):
            if entry not in ours:
                self._want("settings", entry, "", parse_entry(entry))
        self._news.set()

    def ports(self) -> list[LocalPort]:
        """All that are wanted, in the order in which they were asked for."""
        return list(self._wanted.values())

    def ask(self, entry: str) -> None:
        """Has listeners from soon on: `svc/api -n shop 5432`; who asks again wants another try now.

        Raises:
            ValueError: what was given, and what goes.
            TooManyListeners
        """
        spec = parse_entry(entry)
        asked = [port for port in self._wanted.values() if _is_of(port, "user", entry)]
        if not asked:
            self._check_room(len(spec.pairs))
            asked = self._want("user", entry, "", spec)
        for port in asked:
            port.tried_s = float("-inf")
        self._news.set()

    def withdraw(self, ports: Iterable[LocalPort]) -> None:
        """Has these no more; their connections end within seconds."""
        self._drop(ports)
        self._news.set()

    async def open(self, zone: str, namespace: str, target: str, ports: Sequence[str]) -> list[LocalPort]:
        """Opens one for each port, or none at all.

        Args:
            zone: one of the clusters', "" for the first.
            namespace: "" for the context's.
            target: as for kubectl: `svc/api`, `deploy/api`, a Pod's name.
            ports: `5432`, `8080:80`, `:80`, a port's name.

        Raises:
            ValueError: target or ports make no sense; its text says what goes.
            OSError: the local port is taken.
            TimeoutError: the cluster does not answer.
            KubeTunnelError: nothing can be forwarded to, or there are too many.
        """
        spec = parse_forward(target, ports, namespace)
        self._check_room(len(spec.pairs))
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            of_zone, listeners = await self._listen(zone, spec.ref, spec.pairs, check=True)
            try:
                self._check_room(len(spec.pairs))  # others were asked for meanwhile
            except TooManyListeners:
                for listener in listeners:
                    await of_zone.forwards.close(listener)
                raise
        spec = spec.in_namespace(listeners[0].ref.namespace)
        opened = self._want("user", f"{target} -n {spec.ref.namespace} {' '.join(ports)}", zone, spec)
        for port, listener in zip(opened, listeners, strict=True):
            port.listener = of_zone.open[port] = listener
        return opened

    async def close(self, port: LocalPort) -> None:
        """Has it no more, and no connection of it, when it returns."""
        self._drop([port])
        await self._close_unwanted()

    def start(self) -> None:
        """Begins to look after them."""
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="local ports")

    async def aclose(self, *, drain_s: float = DRAIN_S) -> None:
        """Closes all; connections that are there have `drain_s`."""
        task, self._keeping = self._keeping, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._is_ending = True
        self._drop(self.ports())
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        async with self._replacing:
            await asyncio.gather(*(self._end(zone, drain_s) for zone in list(self._of_zone)))

    async def _keep(self) -> None:
        """Supervision point: a defect costs one look."""
        while True:
            self._news.clear()
            try:
                await self.apply()
            except Exception:
                logger.exception("Looking after the local ports failed; it goes on.")
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def apply(self) -> None:
        """One look: closes what is not wanted, and begins to open what is, each port in a task of its own."""
        async with self._replacing:
            sessions = self._clusters.sessions()
            for zone, of_zone in list(self._of_zone.items()):
                if sessions.get(zone) is not of_zone.session or of_zone.made_for != self._made_for:
                    await self._end(zone)
        await self._close_unwanted()
        for port in self.ports():
            is_due = time.monotonic() - port.tried_s >= RETRY_INTERVAL_S
            if port.listener is None and port.id not in self._opening and is_due:
                self._begin(port)

    def _begin(self, port: LocalPort) -> None:
        task = asyncio.get_running_loop().create_task(self._try(port), name=f"opening of {port.entry}")
        self._opening[port.id] = task
        task.add_done_callback(lambda done: self._opening.pop(port.id))

    async def _try(self, port: LocalPort) -> None:
        """What cannot be opened is told of once, and tried again. Supervision point: a defect costs one try."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                try:
                    await self._zone(port.zone)
                except KubeTunnelError:
                    self._failed(port, NO_CLUSTER)  # the cluster tells why; the next look tries again
                    return
                # the settings' are there before their objects are, and nothing is asked of the cluster until they are
                # used; who types a name is to hear that there is no such thing
                is_typed = port.asked_by == "user"
                of_zone, (listener,) = await self._listen(port.zone, port.ref, [port.pair], check=is_typed)
        except (KubeTunnelError, OSError) as e:
            self._failed(port, _words(e))
            port.tried_s = time.monotonic()
        except Exception:
            logger.exception("Opening the forward %r failed; it is tried again.", port.entry)
            port.tried_s = time.monotonic()
        else:
            port.listener, port.failure = listener, ""
            of_zone.open[port] = listener

    def _failed(self, port: LocalPort, failure: str) -> None:
        if failure != port.failure and (failure != NO_CLUSTER or port.asked_by == "user"):
            logger.warning("The forward %r cannot be opened yet, and is tried again: %s", port.entry, failure)
        port.failure = failure

    async def _listen(
        self, zone: str, ref: ObjectRef, pairs: Sequence[PortPair], *, check: bool
    ) -> tuple[_OfZone, tuple[LocalListener, ...]]:
        """Listeners of the session that there is when they are open. Raises as `open`, but for the room."""
        while True:
            of_zone = await self._zone(zone)
            found = ref if ref.namespace else replace(ref, namespace=of_zone.session.access.namespace)
            listeners = await of_zone.forwards.open(found, pairs, check=check)
            if of_zone in self._of_zone.values():
                return of_zone, listeners
            await of_zone.forwards.aclose(drain_s=0)  # it was ended meanwhile, before these were in it

    async def _zone(self, zone: str) -> _OfZone:
        """What the session of this zone has. Raises KubeTunnelError: there is no session."""
        zone = zone or self._clusters.zones[0]
        if zone not in self._clusters.zones:
            raise KubeTunnelError(f"{zone!r} is no zone of ours.")
        cluster = self._clusters.of(zone)
        await cluster.session()  # while one waits for it, others can go on
        async with self._replacing:
            session = await cluster.session()
            found = self._of_zone.get(zone)
            if found is None or found.session is not session or found.made_for != self._made_for:
                await self._end(zone)
                if self._is_ending:
                    raise ClusterUnreachable("The tunnel is ending.")
                address, retry = self._made_for
                workloads = Workloads(session.access, session.discovery)
                forwards = LocalForwards(
                    workloads, session.forwards, addresses=(address,), retries=retry.max, retry_delay_s=retry.delay_s,
                    is_unhealthy=lambda forwards, pod_port: self._is_unhealthy(forwards, pod_port),
                )  # fmt: skip
                found = self._of_zone[zone] = _OfZone(session, self._made_for, workloads, forwards)
            return found

    async def _end(self, zone: str, drain_s: float = DRAIN_S) -> None:
        """Closes all of a session; what is wanted is opened anew in the next one."""
        of_zone = self._of_zone.pop(zone, None)
        if of_zone is not None:
            for port in of_zone.open:
                port.listener, port.tried_s = None, float("-inf")
            await of_zone.aclose(drain_s)

    async def _close_unwanted(self) -> None:
        closing = []
        for of_zone in self._of_zone.values():
            for port in [port for port in of_zone.open if port.id not in self._wanted]:
                port.listener = None
                closing.append(of_zone.forwards.close(of_zone.open.pop(port)))
        await asyncio.gather(*closing)

    def _want(self, asked_by: AskedBy, entry: str, zone: str, spec: ForwardSpec) -> list[LocalPort]:
        made = []
        for pair in spec.pairs:
            self._last_id += 1
            port = LocalPort(str(self._last_id), asked_by, entry, zone, spec.ref, pair)
            self._wanted[port.id] = port
            made.append(port)
        return made

    def _check_room(self, more: int) -> None:
        asked = sum(port.asked_by == "user" for port in self._wanted.values())
        if asked + more > MAX_ASKED:
            raise TooManyListeners(f"There are {asked} local listeners; close some first.")

    def _drop(self, ports: Iterable[LocalPort]) -> None:
        for port in ports:
            self._wanted.pop(port.id, None)
            if (opening := self._opening.get(port.id)) is not None:
                opening.cancel()


def _is_of(port: LocalPort, asked_by: AskedBy, entry: str) -> bool:
    return port.asked_by == asked_by and port.entry == entry


def _words(error: KubeTunnelError | OSError) -> str:
    if isinstance(error, OSError) and error.filename:  # of the sockets: the address
        return f"Cannot listen on {error.filename}: {error.strerror}."
    return str(error) or "The cluster does not answer."
