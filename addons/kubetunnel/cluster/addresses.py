"""Where the API server's name leads, and led: a tunnel that works goes on working when its resolver does not.

A look-up that hangs holds one of the event loop's few threads, so there is one at a time, and who knows where the
server was does not wait for it. Who answers there is checked by TLS as ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Any

logger = logging.getLogger(__name__)

PATIENCE_S = 0.3  # where it is known what the answer was the last time

type AddressInfos = list[tuple[Any, ...]]  # as of socket.getaddrinfo
type Key = tuple[str, int]


class ResolverSilentError(socket.gaierror):
    """Nobody says where the name leads."""


class Addresses:
    """Resolves names, and remembers what the last answer was."""

    def __init__(self) -> None:
        self._known: dict[Key, AddressInfos] = {}
        self._lookups: dict[Key, asyncio.Task[AddressInfos]] = {}

    async def resolve(self, host: str, port: int, *, patience_s: float) -> AddressInfos:
        """The addresses of a host, for TCP; the last known ones where the resolver fails or hangs.

        Args:
            patience_s: for a name of which nothing is known.

        Raises:
            OSError: it fails, and nothing is known.
            UnicodeError: this is no name that could be looked up.
        """
        key = host, port
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(key), name=f"kube-tunnel resolve {host}")
            self._lookups[key] = lookup
            # by callback, not at the task's end: an eager task may have ended before it was put into the table
            lookup.add_done_callback(partial(self._ended, key))
        known = self._known.get(key)
        await asyncio.wait({lookup}, timeout=min(PATIENCE_S, patience_s) if known else patience_s)
        if lookup.done() and not lookup.cancelled() and not lookup.exception():
            return lookup.result()
        if known:
            logger.debug("%s is not resolved now: the last known addresses have to do", host)
            return known
        if lookup.done():
            return lookup.result()
        raise ResolverSilentError(socket.EAI_AGAIN, "the resolver does not answer")

    async def aclose(self) -> None:
        """End look-ups that are under way."""
        lookups = set(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        if lookups:
            await asyncio.wait(lookups)

    async def _look_up(self, key: Key) -> AddressInfos:
        found: AddressInfos = await asyncio.get_running_loop().getaddrinfo(*key, type=socket.SOCK_STREAM)
        self._known[key] = found
        return found

    def _ended(self, key: Key, lookup: asyncio.Task[AddressInfos]) -> None:
        del self._lookups[key]
        if not lookup.cancelled():
            lookup.exception()  # read in any case, or asyncio would complain where nobody waited any longer
