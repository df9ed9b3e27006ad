"""What opens streams to pods: port-forwards (`pool.PortForwards`), or connections of the pod network (`direct`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from kubetunnel.core.catalog import PodPort
from kubetunnel.forward.facts import POD_ENDS, ForwardFacts


class PodStreams(Protocol):
    """The two have this in common; what each does beyond it, they say."""

    async def open[P: asyncio.Protocol](
        self, target: PodPort, protocol_factory: Callable[[], P], *, shared: bool = False
    ) -> tuple[asyncio.Transport, P]:
        """Open a stream to a port of a pod."""
        ...

    async def open_connection(
        self, target: PodPort, *, shared: bool = False
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`open` with asyncio's streams, as `asyncio.open_connection`. Raises as `open`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, protocol = await self.open(
            target, lambda: asyncio.StreamReaderProtocol(reader, loop=loop), shared=shared
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def warm_up(self, target: PodPort) -> None:
        """Do what can be done for a stream before it is opened; raises as `open` where none could be."""
        ...

    def open_streams(self, namespace: str, pod: str) -> int:
        """Streams to the pod that are open now."""
        ...

    def forwards(self) -> list[ForwardFacts]:
        """What there is to know of the connections to each pod in use."""
        ...

    def drain(self, namespace: str, pod: str, reason: str = POD_ENDS) -> None:
        """The pod ends, or there is another `reason` to give nothing new to what is open to it."""
        ...

    async def aclose(self) -> None:
        """Close everything."""
        ...
