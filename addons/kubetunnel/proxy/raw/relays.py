"""All raw connections: runs their relays, shows their counts now and then, ends those that nobody needs any more."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from weakref import WeakValueDictionary

from mitmproxy import ctx
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.hooks import UpdateHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from kubetunnel.proxy.raw.departed import departed
from kubetunnel.proxy.raw.relay import Relay, can_be_taken, reset
from kubetunnel.proxy.raw.traffic import Traffic

SHOW_INTERVAL_S = 2.0

# for a client to close the whole of its connection after it has finished sending, before it is looked for
DEPARTURE_S = 0.1

# A runtime does not pass on the end of a stream before it is closed, so a pod cannot know that its client has finished.
# Where it cannot be told whether the client is still there, a pod that is silent for so long has nothing more to say.
HALF_CLOSED_SILENCE_S = 30.0


@dataclass(slots=True)
class _Watched:
    handler: ProxyConnectionHandler
    server: Server
    total_bytes: int
    changed_s: float


class Relays:
    """An addon, and what the layers know as `Transports`.

    Args:
        show_interval_s: between two looks at all raw connections.
        half_closed_silence_s: how long a pod may be silent after its client has finished.
    """

    name = "kubetunnel_relays"

    def __init__(
        self, *, show_interval_s: float = SHOW_INTERVAL_S, half_closed_silence_s: float = HALF_CLOSED_SILENCE_S
    ) -> None:
        self._show_interval_s = show_interval_s
        self._half_closed_silence_s = half_closed_silence_s
        self._handlers: WeakValueDictionary[str, ProxyConnectionHandler] = WeakValueDictionary()
        self._watched: dict[Traffic, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()  # some client has

    def attach(self, handler: ProxyConnectionHandler) -> None:
        """To be called for every client connection, before its first layer."""
        self._handlers[handler.client.id] = handler

    async def kube_relay(self, relay: Relay) -> None:
        """The hook of `KubeRelayHook`: lasts as long as the connection. mitmproxy's idle timeout is off in a hook."""
        await relay.run()

    def done(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    # -- Transports

    def take(self, context: Context, traffic: Traffic) -> Relay | None:
        handler = self._handlers[context.client.id]
        client, server = handler.transports.get(context.client), handler.transports.get(context.server)
        if client is None or server is None or not (can_be_taken(client) and can_be_taken(server)):
            return None
        return Relay(client, server, traffic)

    def reset(self, client: Client) -> None:
        handler = self._handlers[client.id]
        io = handler.transports.get(client)
        if io is not None and isinstance(io.writer, asyncio.StreamWriter):
            reset(io.writer.transport)

    def is_closed(self, context: Context, connection: Connection) -> bool:
        io = self._handlers[context.client.id].transports.get(connection)
        return io is None or io.writer is None or io.writer.is_closing()

    def watch(self, context: Context, traffic: Traffic) -> None:
        loop = asyncio.get_running_loop()
        handler = self._handlers[context.client.id]
        traffic.on_client_done = self._finished.set
        self._watched[traffic] = _Watched(handler, context.server, 0, loop.time())
        if self._looking is None or self._looking.done():
            self._looking = loop.create_task(self._look(), name="raw connections")

    def forget(self, traffic: Traffic) -> None:
        self._watched.pop(traffic, None)

    async def _look(self) -> None:
        while self._watched:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._show_interval_s):
                    await self._finished.wait()
                    await asyncio.sleep(DEPARTURE_S)
            self._finished.clear()
            self._end_useless()
            changed = [traffic.flow for traffic in self._watched if traffic.show()]
            if changed:
                await ctx.master.addons.trigger_event(UpdateHook(changed))

    def _end_useless(self) -> None:
        """Closes upstreams whose client has finished, and has gone away or heard nothing of the pod for long."""
        now_s = asyncio.get_running_loop().time()
        gone = departed([traffic.flow.client_conn for traffic in self._watched if traffic.client_done])
        for traffic, watched in self._watched.items():
            if watched.total_bytes != traffic.total_bytes or not traffic.client_done:
                watched.total_bytes, watched.changed_s = traffic.total_bytes, now_s
            silent = now_s - watched.changed_s >= self._half_closed_silence_s
            io = watched.handler.transports.get(watched.server)
            if (silent or traffic.flow.client_conn in gone) and io is not None and io.writer is not None:
                io.writer.close()
