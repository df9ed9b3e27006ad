"""The end of the tunnel, by SIGINT, SIGTERM or a closed terminal: no new connections, and time for what is under way.

mitmproxy would stop at once. A second signal does so here, too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakSet

from mitmproxy import ctx, http
from mitmproxy.connection import ConnectionState

from kubetunnel.proxy.service_connections import ServiceConnections

logger = logging.getLogger(__name__)

DRAIN_S = 60.0  # the contract's
CLOSE_S = 5.0
_SAME_SIGNAL_S = 0.1  # `timeout` and shells send one to the process and one more to its group
_UNREAD_S = 0.1  # a request may have come that nobody has read yet
_LOOK_INTERVAL_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """Takes the signals from mitmproxy.

    Args:
        connections: those to pods; what is in use is waited for.
        stop_listening: ends listeners other than mitmproxy's, and what they serve after the seconds that it is given.
        close: ends all that the tunnel has open; mitmproxy would not wait for it.

    `exit_status`: what the program is to end with, 0 or that of a program which a signal ended.
    """

    name = "kubetunnel_ending"

    def __init__(
        self,
        connections: ServiceConnections,
        stop_listening: Callable[[float], Coroutine[Any, Any, None]],
        close: Callable[[], Coroutine[Any, Any, None]],
        *,
        drain_s: float = DRAIN_S,
    ) -> None:
        self.exit_status = 0
        self._connections = connections
        self._stop_listening = stop_listening
        self._close = close
        self._drain_s = drain_s
        self._flows: WeakSet[http.HTTPFlow] = WeakSet()
        self._asked_s = 0.0
        self._draining: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._taken: list[signal.Signals] = []

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.live:
            self._flows.add(flow)

    def running(self) -> None:
        loop = asyncio.get_running_loop()
        self._taken = list(_SIGNALS)
        if hasattr(ctx.master, "prompt_for_exit"):  # the terminal's mitmproxy asks whether it shall end
            self._taken.remove(signal.SIGINT)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it goes on
            self._taken.append(signal.SIGHUP)
        for taken in self._taken:
            loop.add_signal_handler(taken, partial(self._asked, taken))

    def done(self) -> None:
        for taken in self._taken:
            asyncio.get_running_loop().add_signal_handler(taken, ctx.master.shutdown)
        for task in (self._draining, self._closing):
            if task is not None:
                task.cancel()

    @property
    def is_ending(self) -> bool:
        """What is under way has its time, and nobody is to begin something new."""
        return self._draining is not None

    def _asked(self, by: signal.Signals) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._draining is None:
            self._asked_s = now_s
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="ending")
        elif now_s - self._asked_s >= _SAME_SIGNAL_S:
            self.exit_status = 128 + by
            if self._closing is not None:  # it is closing, and that hangs
                ctx.master.shutdown()
                return
            self._draining.cancel()
            self._closing = asyncio.get_running_loop().create_task(self._finish(), name="closing")

    async def _drain(self) -> None:
        """Supervision point: whatever goes wrong here, the program ends."""
        try:
            async with asyncio.timeout(self._drain_s):
                async with asyncio.TaskGroup() as stopping:
                    stopping.create_task(_stop_servers())
                    stopping.create_task(self._stop_listening(self._drain_s))
                    stopping.create_task(self._wait())
        except TimeoutError:
            logger.warning("%d are still under way after %g s; they are cut.", self.under_way(), self._drain_s)
        except Exception:
            logger.exception("Ending in order failed; it ends at once.")
        await self._finish()

    async def _finish(self) -> None:
        """Supervision point: whatever goes wrong here, the program ends."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._close()
        except TimeoutError:
            logger.warning("Closing takes longer than %g s; the rest is left to the kernel.", CLOSE_S)
        except Exception:
            logger.exception("Closing failed.")
        ctx.master.shutdown()

    async def _wait(self) -> None:
        await asyncio.sleep(_UNREAD_S)
        told = False
        while count := self.under_way():
            if not told:
                told = True
                logger.info(
                    "Ending: %d requests or connections are under way, and have %g s. Ctrl-C once more: at once.",
                    count, self._drain_s,
                )  # fmt: skip
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def under_way(self) -> int:
        """Requests, connections to pods and clients that would lose something by the end."""
        handlers = ctx.master.addons.get("proxyserver").connections.values()
        clients = {handler.client.id for handler in handlers if _has_unsent(handler)}
        clients |= {flow.client_conn.id for flow in self._flows if _is_under_way(flow)}
        return max(len(clients), self._connections.in_use)


def _is_under_way(flow: http.HTTPFlow) -> bool:
    # a WebSocket is one of the connections in use
    gone = flow.error is not None or flow.client_conn.state is ConnectionState.CLOSED
    return flow.live and not gone and flow.websocket is None


def _has_unsent(handler: object) -> bool:
    io = handler.transports.get(handler.client)  # type: ignore[attr-defined]
    return isinstance(getattr(io, "writer", None), asyncio.StreamWriter) and bool(
        io.writer.transport.get_write_buffer_size()
    )


async def _stop_servers() -> None:
    for instance in ctx.master.addons.get("proxyserver").servers:
        if instance.is_running:
            await instance.stop()
