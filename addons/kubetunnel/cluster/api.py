"""Get, list and watch on one API server, over aiohttp and slim structs.

Sources: the Kubernetes API concepts page (chunked lists, watches, bookmarks, 410 Gone), the API conventions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.answers import Answer, CutError, GoneError, NotKubernetesError, Status, refusal
from kubetunnel.cluster.decode import ApiObject, Named
from kubetunnel.cluster.resource import Query
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.errors import KubeTunnelError

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

# until an answer's head; the API server itself gives up on etcd after 60 s. Nobody waits so long for his refusal
# (`Reach.patience_s`), but an API server whose own webhooks are cold must be given the time to answer
ANSWER_TIMEOUT_S = 5.0
WATCH_TIMEOUT_S = 300.0  # asked of the server; its own default is 30 to 60 min, which hides a dead connection too long
WATCH_GRACE_S = 10.0
PAGE_SIZE = 500  # client-go's default
# gets and lists; watches have connections of their own, which they take over from these. 20 Services that are used at
# once ask 40 times: with 8 slots they waited for one another for half a second at 50 ms of round trip. An API server
# takes 400 at a time by default (--max-requests-inflight)
CONCURRENT_REQUESTS = 64
RETRIES = Backoff(base_s=0.2, cap_s=0.8, retries=2)
RETRY_SHARE = 0.8  # of the patience of who waits: he is to be told why, and not that it takes too long
MAX_EVENT_BYTES = 16 << 20  # etcd holds objects of 1.5 MiB


@dataclass(frozen=True, slots=True)
class Listing[T: ApiObject]:
    """A consistent list, and the resourceVersion that a watch goes on from."""

    items: tuple[T, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Event[T: ApiObject]:
    """A change: ADDED, MODIFIED, DELETED, or BOOKMARK (a new resourceVersion alone, `object` None)."""

    type: str
    object: T | None
    resource_version: str


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class ApiServer:
    """One API server. Errors are those of `core/errors.py`; an object or resource that is not there is None."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        watch_timeout_s: float = WATCH_TIMEOUT_S,
        watch_grace_s: float = WATCH_GRACE_S,
        rng: random.Random | None = None,
    ) -> None:
        self.access = access
        self.watch_restarts = 0
        from kubetunnel.cluster.http_client import HttpClient  # late: it has aiohttp, a tenth of a second

        self._http = HttpClient(access, answer_timeout_s=answer_timeout_s)
        self._watch_timeout_s = watch_timeout_s
        self._watch_grace_s = watch_grace_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._slots = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def get_object[T: ApiObject](self, query: Query[T]) -> T | None:
        """The object `query.name`; None where it, or the resource, is not there (404)."""
        answer = await self._exchange("get", query, query.object_path, {})
        return None if answer is None else self._decode(answer.body, query.type)

    async def list_objects[T: ApiObject](self, query: Query[T], *, background: bool = False) -> Listing[T] | None:
        """All objects that the query selects, page by page; None where the server has no such resource (404).

        With `background` (nobody waits for it) credentials are renewed once for each that is refused, as for a watch.
        """
        try:
            return await self._list_pages(query, {"limit": str(PAGE_SIZE)}, background=background)
        except GoneError:
            # the pages took longer than the server keeps old versions: all at once, as client-go's pager does
            logger.debug("The list of %s outlived its continue token and is asked for whole", query.resource)
        try:
            return await self._list_pages(query, {}, background=background)
        except GoneError as error:
            raise NotKubernetesError(f"The API server {self.access.server} answered 410 to a list.") from error

    @asynccontextmanager
    async def watch[T: ApiObject](
        self, query: Query[T], resource_version: str
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """Changes after `resource_version`, until the server ends the watch (timeoutSeconds). Entered when it is open.

        Raises:
            GoneError: list again; the resourceVersion is too old, or the server cannot go on from it.
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout
        """
        parameters = query.selectors | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(self._watch_timeout_s))),
        }
        response = await self._http.send(query.path, parameters, background=True)
        try:
            if response.status != 200:
                answer = await self._http.read(response)
                error = refusal(self.access, "watch", query, answer)
                if answer.status in (401, 403, 429):
                    raise error
                raise GoneError(error.detail)
            yield self._events(response, query)
        finally:
            response.close()

    def restarted_watch(self) -> None:
        """To be called by whoever begins a watch again."""
        self.watch_restarts += 1

    @property
    def renewals(self) -> int:
        """How often a 401 made us renew the credentials."""
        return self._http.renewals

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _list_pages[T: ApiObject](
        self, query: Query[T], parameters: dict[str, str], *, background: bool
    ) -> Listing[T] | None:
        items: list[T] = []
        token = ""
        while True:
            page = parameters | query.selectors | ({"continue": token} if token else {})
            answer = await self._exchange("list", query, query.path, page, background=background)
            if answer is None:
                return None
            found = self._decode(answer.body, _List)
            items += [self._decode(item, query.type) for item in found.items or ()]
            token = found.metadata.continue_
            if not token:
                return Listing(tuple(items), found.metadata.resource_version)

    async def _exchange[T: ApiObject](
        self, verb: str, query: Query[T], path: str, parameters: dict[str, str], *, background: bool = False
    ) -> Answer | None:
        """One answer of status 200, or None for 404. Overload and cuts are tried again, within the budget."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + RETRY_SHARE * self.access.reach.patience_s
        delays = RETRIES.delays_s(self._rng)
        while True:
            wait_s: float | None = None
            failure: KubeTunnelError
            try:
                async with self._slots:
                    answer = await self._http.read(await self._http.send(path, parameters, background=background))
                if answer.status == 200:
                    return answer
                if answer.status == 404:
                    return None
                if answer.status == 410 and verb == "list":
                    raise GoneError
                failure = refusal(self.access, verb, query, answer)
                if not answer.worth_a_retry:
                    raise failure
                wait_s = answer.retry_after_s
            except CutError as error:
                failure = error
            delay_s = next(delays, None)
            if delay_s is None or clock() + max(delay_s, wait_s or 0.0) > give_up_at:
                raise failure
            logger.debug("%s %s is tried again: %s", verb, query.resource, failure)
            await asyncio.sleep(max(delay_s, wait_s or 0.0))

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        buffer = bytearray()
        # the server ends the watch by itself: longer silence than that is a dead connection
        async for chunk in self._http.chunks(response, silence_s=self._watch_timeout_s + self._watch_grace_s):
            buffer += chunk
            if len(buffer) > MAX_EVENT_BYTES:
                raise self._garbage(f"an event of more than {MAX_EVENT_BYTES} bytes")
            if b"\n" in chunk:
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    if line.strip():
                        yield bytes(line)

    async def _events[T: ApiObject](self, response: aiohttp.ClientResponse, query: Query[T]) -> AsyncIterator[Event[T]]:
        async for line in self._lines(response):
            yield self._event(line, query)

    def _event[T: ApiObject](self, line: bytes, query: Query[T]) -> Event[T]:
        event = self._decode(line, _WatchEvent)
        if event.type == "ERROR":
            status = self._decode(event.object, Status)
            raise GoneError(status.message[:300] or f"error {status.code} in the watch")
        if event.type == "BOOKMARK":
            metadata = self._decode(event.object, Named).metadata
            return Event("BOOKMARK", None, metadata.resource_version)
        found = self._decode(event.object, query.type)
        if event.type not in ("ADDED", "MODIFIED", "DELETED") or not found.metadata.name:
            raise self._garbage(f"an event of type {event.type[:40]!r}")
        return Event(event.type, found, found.metadata.resource_version)

    def _decode[D](self, body: bytes | msgspec.Raw, kind: type[D]) -> D:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            # the decoder's message tells a place and a type, never a value
            raise self._garbage(str(error)) from error

    def _garbage(self, what: str) -> NotKubernetesError:
        return NotKubernetesError(
            f"{self.access.server} (context {self.access.context}) answers unlike a Kubernetes API server: {what}.",
            command=self.access.kubectl("cluster-info"),
        )
