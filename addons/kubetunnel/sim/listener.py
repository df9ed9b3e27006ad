"""A listening port of a simulated pod and the connections on it, each of them a task that is owned here.

`asyncio.start_server` keeps neither its tasks nor its connections, and a pod that is killed drops all at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 18  # of a connection's reader: bulk goes through in large pieces

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """One port: `serve` is called for each connection, which is closed when it returns.

    Args:
        serve: the program behind the port. An OSError of its ends the connection in silence: the peer is gone.
        host: the loopback address to listen on; the port is an ephemeral one.
        ssl_context: for a port that speaks TLS.
    """

    def __init__(self, serve: Serve, host: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._host = host
        self._ssl_context = ssl_context
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> tuple[str, int]:
        """Listen. Returns the address; raises OSError where there is none to be had."""
        # not serving at once: start_server cancelled in its last step would leave a socket that nobody knows
        self._server = await asyncio.start_server(
            self._accept, self._host, 0, limit=BUFFER_BYTES, ssl=self._ssl_context, backlog=1024, start_serving=False
        )
        await self._server.start_serving()
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def kill(self) -> None:
        """Stop listening and drop every connection, as when the process dies."""
        if self._server is not None:
            self._server.close()
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()

    async def aclose(self) -> None:
        """As `kill`; returns when nothing is left."""
        self.kill()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(reader, writer))
        if not task.done():  # with eager tasks the connection may be over already
            self._connections[task] = writer
            task.add_done_callback(self._connections.pop)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except OSError as e:
            logger.debug("connection ended: %s", e)
        finally:
            if not writer.is_closing():  # closed twice, a TLS transport can no longer be aborted
                writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP RST (SO_LINGER of zero seconds)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
