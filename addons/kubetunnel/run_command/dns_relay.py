"""DNS out of CMD's network to the DNS server outside: datagrams one by one, TCP as it comes.

The server knows sockets of its own network only, and need not know of others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0  # resolv.conf(5): by then the client asks anew
MAX_OPEN = 200  # questions; a client that asks more is told by silence

type Address = tuple[str, int]


class DatagramRelay(asyncio.DatagramProtocol):
    """Passes on what comes to a socket, each datagram by a socket of its own, and its answer back."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self, bound: socket.socket) -> None:
        """Takes over the socket."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=bound)

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        for task in self._asking:
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(self._asking) < MAX_OPEN:
            task = asyncio.create_task(self._ask(data, addr))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, question: bytes, client: Address) -> None:
        answer = _Answer()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: answer, remote_addr=self._server)
        try:
            transport.sendto(question)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found = await answer.future
        except (OSError, TimeoutError) as e:
            logger.info("A DNS question got no answer: %s", e)
            return
        finally:
            transport.abort()
        if self._transport is not None:
            self._transport.sendto(found, client)


class _Answer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.future.done():
            self.future.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(exc)
