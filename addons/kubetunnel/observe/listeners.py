"""Local listeners that somebody asked for while the tunnel runs, as `kube-tunnel forward` opens them.

They last until they are closed, or until the session of their cluster ends because the settings changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kubetunnel.cluster.workloads import Workloads
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.settings import Settings
from kubetunnel.forward.listener import LocalForwards, LocalListener
from kubetunnel.forward_specs import parse_forward
from kubetunnel.observe.sources import Sessions
from kubetunnel.proxy.clusters import Session

logger = logging.getLogger(__name__)

MAX_LISTENERS = 100
OPEN_TIMEOUT_S = 10.0


class TooManyListeners(KubeTunnelError):  # noqa: N818 - named as the rest of the tree
    """There are as many as there may be."""

    title = "Too many local listeners"


@dataclass(frozen=True, slots=True)
class ListenerFacts:
    """One listener. `address`: host:port, an IPv6 one in brackets; `port`: the object's own."""

    id: str
    address: str
    target: str
    zone: str
    namespace: str
    port: int | str


@dataclass(slots=True)
class _OfSession:
    session: Session
    workloads: Workloads
    forwards: LocalForwards

    async def aclose(self) -> None:
        await self.forwards.aclose()
        await self.workloads.aclose()


class Listeners:
    """Opens, lists and closes them.

    Args:
        settings: as they are now.
    """

    def __init__(self, clusters: Sessions, settings: Callable[[], Settings]) -> None:
        self._clusters = clusters
        self._settings = settings
        self._of_zone: dict[str, _OfSession] = {}
        self._open: dict[str, tuple[_OfSession, LocalListener, ListenerFacts]] = {}
        self._last_id = 0
        self._changing = asyncio.Lock()

    def facts(self) -> list[ListenerFacts]:
        return [facts for _, _, facts in self._open.values()]

    async def open(self, zone: str, namespace: str, target: str, ports: Sequence[str]) -> list[ListenerFacts]:
        """Opens one for each port, or none at all.

        Args:
            zone: one of the clusters', "" for the first.
            namespace: "" for the context's.
            target: as for kubectl: `svc/api`, `deploy/api`, a Pod's name.
            ports: `5432`, `8080:80`, `:80`, a port's name.

        Raises:
            ValueError: target or ports make no sense; its text says what goes.
            OSError: the local port is taken.
            KubeTunnelError: nothing can be forwarded to, or there are too many.
        """
        spec = parse_forward(target, ports, namespace)
        async with self._changing, asyncio.timeout(OPEN_TIMEOUT_S):
            if len(self._open) + len(spec.pairs) > MAX_LISTENERS:
                raise TooManyListeners(f"There are {len(self._open)} local listeners; close some first.")
            of_session = await self._session(zone or self._clusters.zones[0])
            spec = spec.in_namespace(of_session.session.access.namespace)
            opened = await of_session.forwards.open(spec.ref, spec.pairs)
            return [self._keep(of_session, listener, zone or self._clusters.zones[0]) for listener in opened]

    async def close(self, listener_id: str) -> ListenerFacts | None:
        """Closes one; None where there is none of that id."""
        async with self._changing:
            found = self._open.pop(listener_id, None)
            if found is None:
                return None
            of_session, listener, facts = found
            await of_session.forwards.close(listener)
            return facts

    async def follow(self, sessions: Mapping[str, Session]) -> None:
        """Closes those of sessions that ended."""
        ended = [zone for zone, each in self._of_zone.items() if sessions.get(zone) is not each.session]
        if not ended:
            return
        async with self._changing:
            for zone in ended:
                of_session = self._of_zone.pop(zone)
                self._open = {key: found for key, found in self._open.items() if found[0] is not of_session}
                await of_session.aclose()

    async def aclose(self) -> None:
        """Closes all."""
        await self.follow({})

    async def _session(self, zone: str) -> _OfSession:
        session = await self._clusters.of(zone).session()
        found = self._of_zone.get(zone)
        if found is not None and found.session is session:
            return found
        settings = self._settings()
        workloads = Workloads(session.access, session.discovery)
        forwards = LocalForwards(
            workloads, session.forwards, addresses=(settings.forward.ip,),
            retries=settings.retry.max, retry_delay_s=settings.retry.delay_s,
        )  # fmt: skip
        if found is not None:
            self._open = {key: each for key, each in self._open.items() if each[0] is not found}
            await found.aclose()
        self._of_zone[zone] = _OfSession(session, workloads, forwards)
        return self._of_zone[zone]

    def _keep(self, of_session: _OfSession, listener: LocalListener, zone: str) -> ListenerFacts:
        self._last_id += 1
        host, port = listener.addresses[0]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        namespace, remote = listener.ref.namespace, listener.port or listener.pair.remote
        facts = ListenerFacts(str(self._last_id), address, str(listener.ref), zone, namespace, remote)
        self._open[facts.id] = of_session, listener, facts
        return facts
