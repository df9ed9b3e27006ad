"""Keeps a copy of the objects that a query selects: lists once, watches from there, lists again when it must.

client-go's tools/cache Reflector, with the fall-backs of the contract's section 2.5: without the right to watch or to
list, the copy is fetched anew at each use (for at most FRESH_S it is taken as fresh).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from kubetunnel.cluster.answers import GoneError, NotKubernetesError
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import ApiObject
from kubetunnel.cluster.resource import Query
from kubetunnel.cluster.rights import Rights
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, Timeout, Unauthenticated

logger = logging.getLogger(__name__)

FRESH_S = 1.0  # a burst of requests costs one get; nobody sees a second's delay in a rollout
RECONNECT = Backoff(base_s=0.2, cap_s=5.0)  # for as long as the Service is used; 5 s after a long outage is soon enough
STEADY_S = 5.0  # a watch that lasted so long worked: the next failure starts from the shortest delay


class AbsentError(Exception):
    """The server has no such resource (404 to a list)."""


class Reflector[T: ApiObject]:
    """A copy of the objects that `query` selects, by name."""

    def __init__(
        self, api: ApiServer, query: Query[T], rights: Rights, rng: random.Random, on_change: Callable[[], None]
    ) -> None:
        self.objects: dict[str, T] = {}
        self.connected = False  # a watch is open: what is not in the copy is not there
        self.live = False  # the copy is kept up by a watch, or one is being tried for
        self.fallen_back = False  # a right is missing for the best way
        self.read_at = 0.0  # Unix seconds: while no watch is open, the copy is as it was then
        self._api = api
        self._query = query
        self._rights = rights
        self._rng = rng
        self._on_change = on_change
        self._resource_version = ""  # "" where only a get was allowed: nothing to watch from
        self._refreshed_at = float("-inf")
        self._broken = ""  # how, as it was logged
        self._wanted = asyncio.Event()

    def __str__(self) -> str:
        selected = self._query.name or self._query.labels
        return f"{self._query.resource} {self._query.namespace}/{selected}{self._api.access.of_context}"

    @property
    def due(self) -> bool:
        """Whether the copy has to be fetched before it is used."""
        return not self.live and asyncio.get_running_loop().time() - self._refreshed_at > FRESH_S

    async def refresh(self) -> None:
        """List, or where that is refused get, and replace the copy.

        Raises:
            Forbidden: every way was refused; names the right to list.
            AbsentError: the server has no such resource.
            KubeTunnelError: Unauthenticated, ClusterUnreachable, Timeout.
        """
        query = self._query
        verbs = ["list", "get"] if query.name else ["list"]
        # those known to be refused last, but not left out
        order = sorted(verbs, key=lambda verb: not self._rights.allows(query.namespace, query.resource, verb))
        refusals: dict[str, Forbidden] = {}
        for verb in order:
            try:
                await (self._list() if verb == "list" else self._get())
            except Forbidden as error:
                self._rights.refuse(query.namespace, query.resource, verb)
                refusals[verb] = error
                continue
            self.fallen_back = verb != "list"
            self._refreshed_at = asyncio.get_running_loop().time()
            return
        raise refusals["list"]

    def wanted(self) -> None:
        """Somebody uses the copy: a watch that waits for other credentials is tried again."""
        self._wanted.set()

    def postpone(self) -> None:
        """The fetch failed: what is known counts as fresh for a moment, so that not every request waits for it."""
        self._refreshed_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Watch, and go on after every failure, for ever; ends only where there is no right to watch.

        While the credentials are refused only a use (`wanted`) leads to another attempt: each may run a plugin, which
        may open a browser that nobody sits at.

        Raises:
            Forbidden, AbsentError: the right to list was taken away, or the resource is no more.
        """
        if not self._resource_version or not self._rights.allows(self._query.namespace, self._query.resource, "watch"):
            self.fallen_back = True
            return
        self.live = True
        try:
            await self._watch_for_ever()
        finally:
            self.live = self.connected = False

    async def _watch_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        delays = RECONNECT.delays_s(self._rng)
        while True:
            started = clock()
            failure = await self._watch_once()
            self._api.restarted_watch()
            if self.connected:
                self.connected, self.read_at = False, time.time()
            if isinstance(failure, Forbidden):
                self._rights.refuse(self._query.namespace, self._query.resource, "watch")
                self.fallen_back = True
                logger.info("%s is fetched at each use from now on: %s", self, failure)
                return
            if failure is not None:
                # one line for an outage, not one for every attempt
                how = "rests until it is used" if isinstance(failure, Unauthenticated) else "broke"
                level = logging.DEBUG if self._broken == how else logging.WARNING
                logger.log(level, "The watch on %s %s: %s", self, how, failure)
                self._broken = how
            if clock() - started > STEADY_S:
                delays = RECONNECT.delays_s(self._rng)
                if failure is None:
                    continue  # the server's timeoutSeconds
            self._wanted.clear()
            await self._api.access.reach.rest(next(delays))
            if isinstance(failure, Unauthenticated):
                await self._wanted.wait()

    async def _watch_once(self) -> Exception | None:
        """One watch; before it a list, where the last version is of no more use. None: the server ended it in order."""
        try:
            if not self._resource_version:
                await self._list(background=True)
            await self._follow()
        except (GoneError, NotKubernetesError) as error:
            self._resource_version = ""
            return error
        except Forbidden as error:
            if not self._resource_version:
                raise  # of the list: whoever owns this copy has to find another source
            return error
        except (ClusterUnreachable, Timeout, Unauthenticated) as error:
            return error
        return None

    async def _follow(self) -> None:
        async with self._api.watch(self._query, self._resource_version) as events:
            self.connected = True
            if self._broken:
                logger.info("The watch on %s is back", self)
                self._broken = ""
            async for event in events:
                self._resource_version = event.resource_version or self._resource_version
                if event.object is not None:
                    self._apply(event.type, event.object)

    def _apply(self, kind: str, found: T) -> None:
        before = dict(self.objects)
        if kind == "DELETED":
            self.objects.pop(found.metadata.name, None)
        else:
            self.objects[found.metadata.name] = found
        if self.objects != before:
            self._on_change()

    async def _list(self, *, background: bool = False) -> None:
        listing = await self._api.list_objects(self._query, background=background)
        if listing is None:
            self._rights.refuse("", self._query.resource, "list")
            raise AbsentError(str(self._query.resource))
        self._replace(listing.items)
        self._resource_version = listing.resource_version

    async def _get(self) -> None:
        found = await self._api.get_object(self._query)
        self._replace(() if found is None else (found,))
        self._resource_version = ""

    def _replace(self, items: tuple[T, ...]) -> None:
        objects = {item.metadata.name: item for item in items}
        self.read_at = time.time()
        if objects != self.objects:
            self.objects = objects
            self._on_change()
