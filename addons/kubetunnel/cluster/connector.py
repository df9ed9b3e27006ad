"""Opens the connections to one API server, and learns from each how far away it is, or that it is away."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from kubetunnel.cluster.addresses import Addresses, ResolverSilentError
from kubetunnel.cluster.connection import open_connection
from kubetunnel.cluster.kubeconfig import Cluster
from kubetunnel.cluster.reach import LONGEST_S, Reach


class Connector:
    """Of one kubeconfig context.

    Args:
        first_s: to connect for the first time.

    Attributes:
        reach: whether the API server answers, and how long that is to be waited for.
    """

    def __init__(self, first_s: float) -> None:
        self.reach = Reach(first_s)
        self._addresses = Addresses()
        self._limits: dict[asyncio.Timeout, float] = {}  # of those under way: since when
        self._probe: asyncio.Task[None] | None = None

    async def open[P: asyncio.BaseProtocol](
        self, cluster: Cluster, context: ssl.SSLContext | None, protocol_factory: Callable[[], P], *, bulk: bool
    ) -> tuple[asyncio.Transport, P]:
        """A connection within the time that is usual; `context` and `bulk` as of `open_connection`.

        What others take meanwhile counts: in a burst, or on a busy machine, all are slow together.

        Raises:
            OSError, ValueError: as `open_connection`; a TimeoutError tells how long it was waited.
        """
        timeout_s = self.reach.timeout_s
        try:
            return await self._open(cluster, context, protocol_factory, timeout_s, bulk=bulk)
        except (OSError, ValueError) as error:  # TimeoutError is one
            silent = isinstance(error, TimeoutError | ResolverSilentError)
            self.reach.failed(silent=silent)
            if silent and self._probe is None and timeout_s < LONGEST_S:
                self._probe = asyncio.create_task(self._measure(cluster, context), name="kube-tunnel probe")
                self._probe.add_done_callback(self._measured)
            raise

    async def aclose(self) -> None:
        """End what nobody waits for: a measurement, look-ups."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self._addresses.aclose()

    async def _open[P: asyncio.BaseProtocol](
        self,
        cluster: Cluster,
        context: ssl.SSLContext | None,
        protocol_factory: Callable[[], P],
        timeout_s: float,
        *,
        bulk: bool,
    ) -> tuple[asyncio.Transport, P]:
        clock = asyncio.get_running_loop().time
        started = clock()
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                self._limits[limit] = started
                opened = await open_connection(
                    cluster, self._addresses, context, protocol_factory, bulk=bulk, timeout_s=timeout_s
                )
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {(limit.when() or started) - started:.3g} s") from error
        finally:
            self._limits.pop(limit, None)
        self._learn(clock() - started)
        return opened

    def _learn(self, took_s: float) -> None:
        self.reach.succeeded(took_s)
        for limit, since in self._limits.items():
            if not limit.expired():
                limit.reschedule(max(limit.when() or since, since + self.reach.timeout_s))

    async def _measure(self, cluster: Cluster, context: ssl.SSLContext | None) -> None:
        """Whether the server is dead or the way to it became long: nobody waits for this, so it may take its time."""
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is one; who asks next finds out for himself
            transport, _ = await self._open(cluster, context, asyncio.Protocol, LONGEST_S, bulk=False)
            transport.abort()

    def _measured(self, probe: asyncio.Task[None]) -> None:
        self._probe = None
