"""All client connections: runs the relays of raw ones, shows their counts, ends what nobody needs any more.

mitmproxy learns of a client's end by reading, and reads nothing while a pod does not take what was read before. So a
client that leaves then, or one that had only finished sending when it was last looked at, has to be looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from weakref import WeakValueDictionary

from mitmproxy import ctx
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.hooks import UpdateHook
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from kubetunnel.proxy.http.reading import PausableReader
from kubetunnel.proxy.raw.departed import departed
from kubetunnel.proxy.raw.relay import Relay, can_be_taken, is_reset, reset
from kubetunnel.proxy.raw.traffic import Traffic

logger = logging.getLogger(__name__)

SHOW_INTERVAL_S = 2.0

# for a client to close the whole of its connection after it has finished sending, before it is looked for
DEPARTURE_S = 0.1

# A runtime does not pass on the end of a stream before it is closed, so a pod cannot know that its client has finished.
# Where it cannot be told whether the client is still there, a pod that is silent for so long has nothing more to say.
HALF_CLOSED_SILENCE_S = 30.0

# what a client sent before it left may be meant for a pod that reads slowly, but not for one that takes none of it
STALLED_SILENCE_S = 10.0

IDLE_TIMEOUT_S = 7 * 24 * 3600  # of an open raw connection: none to speak of


@dataclass(slots=True)
class _Watched:
    """A raw connection. `moved_s`: when bytes passed; `changed_s`: that, or the client was not done yet."""

    handler: ProxyConnectionHandler
    server: Server
    total_bytes: int
    changed_s: float
    moved_s: float
    relay: Relay | None = None


class Relays:
    """An addon, and what the layers know as `Transports`.

    Args:
        show_interval_s: between two looks at all raw connections.
        half_closed_silence_s: how long a pod may be silent after its client has finished.
        stalled_silence_s: how long a raw pod may take nothing after its client has left.
    """

    name = "kubetunnel_relays"

    def __init__(
        self,
        *,
        show_interval_s: float = SHOW_INTERVAL_S,
        half_closed_silence_s: float = HALF_CLOSED_SILENCE_S,
        stalled_silence_s: float = STALLED_SILENCE_S,
    ) -> None:
        self._show_interval_s = show_interval_s
        self._half_closed_silence_s = half_closed_silence_s
        self._stalled_silence_s = stalled_silence_s
        self._handlers: WeakValueDictionary[str, ProxyConnectionHandler] = WeakValueDictionary()
        self._watched: dict[Traffic, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()  # some client has

    def attach(self, handler: ProxyConnectionHandler) -> None:
        """To be called for every client connection, before its first layer."""
        self._handlers[handler.client.id] = handler
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="client connections")

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
        relay = Relay(client, server, traffic)
        if watched := self._watched.get(traffic):
            watched.relay = relay
        return relay

    def reset(self, client: Client) -> None:
        handler = self._handlers[client.id]
        io = handler.transports.get(client)
        if io is not None and isinstance(io.writer, asyncio.StreamWriter):
            reset(io.writer.transport)

    def is_closed(self, context: Context, connection: Connection) -> bool:
        io = self._handlers[context.client.id].transports.get(connection)
        return io is None or io.writer is None or io.writer.is_closing()

    def watch(self, context: Context, traffic: Traffic) -> None:
        now_s = asyncio.get_running_loop().time()
        handler = self._handlers[context.client.id]
        # mitmproxy's watchdog rests while a hook runs, but once more looks at the clock if it fell asleep before
        handler.timeout_watchdog.timeout = IDLE_TIMEOUT_S
        traffic.on_client_done = self._finished.set
        self._watched[traffic] = _Watched(handler, context.server, 0, now_s, now_s)

    def forget(self, traffic: Traffic) -> None:
        self._watched.pop(traffic, None)

    # -- what nobody needs any more

    async def _look(self) -> None:
        while self._open_handlers():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._show_interval_s):
                    await self._finished.wait()
                    await asyncio.sleep(DEPARTURE_S)
            self._finished.clear()
            self._end_useless()
            await self._end_deserted()
            changed = [traffic.flow for traffic in self._watched if traffic.show()]
            if changed:
                await ctx.master.addons.trigger_event(UpdateHook(changed))

    def _open_handlers(self) -> list[ProxyConnectionHandler]:
        return [handler for handler in list(self._handlers.values()) if handler.client in handler.transports]

    def _end_useless(self) -> None:
        """Closes upstreams of raw clients that have finished, and have gone away or heard nothing of the pod for long.

        Also those that take nothing, and whose clients have left.
        """
        now_s = asyncio.get_running_loop().time()
        stalled = [t for t, watched in self._watched.items() if watched.relay and watched.relay.is_stalled]
        gone = departed([t.flow.client_conn for t in self._watched if t.client_done or t in stalled])
        for traffic, watched in self._watched.items():
            if watched.total_bytes != traffic.total_bytes:
                watched.total_bytes, watched.changed_s, watched.moved_s = traffic.total_bytes, now_s, now_s
            if not traffic.client_done:
                watched.changed_s = now_s
            client = traffic.flow.client_conn
            is_stalled = traffic in stalled
            # of one that has finished nothing is read, so nothing tells of a reset, and the kernel keeps no socket then
            by_reset = (is_stalled or traffic.client_done) and _is_reset(watched.handler)
            if watched.relay and is_stalled and (by_reset or (client in gone and self._is_stuck(watched))):
                watched.relay.client_left(by_reset=by_reset)
                continue
            silent = now_s - watched.changed_s >= self._half_closed_silence_s
            io = watched.handler.transports.get(watched.server)
            has_left = not is_stalled and (by_reset or client in gone)
            if (silent or has_left) and io is not None and io.writer is not None:
                io.writer.close()

    async def _end_deserted(self) -> None:
        """Ends connections that mitmproxy reads itself, and whose clients have left without its knowledge."""
        raw = {watched.handler.client.id: watched for watched in self._watched.values()}
        suspects = {}
        for handler in self._open_handlers():
            watched = raw.get(handler.client.id)
            settled = watched is not None and (watched.relay or handler.client.state is ConnectionState.CAN_WRITE)
            if not settled and not _would_notice(handler):
                suspects[handler.client] = handler
        gone = departed(list(suspects))
        for client, handler in suspects.items():
            io = handler.transports.get(client)  # it may have ended while another one was
            if io is None or (not _is_reset(handler) and not (client in gone and self._is_stuck(raw.get(client.id)))):
                continue
            logger.debug("The client %s has left; what it asked for ends.", client.peername)
            if client.state is ConnectionState.CAN_WRITE:  # its end was no news, see `KubeHttpLayer`
                client.state = ConnectionState.CLOSED
                await handler.server_event(events.ConnectionClosed(client))
            elif io.handler is not None:
                io.handler.cancel("the client has left")  # which tells the layers
                _abort_upstreams(handler)

    def _is_stuck(self, watched: _Watched | None) -> bool:
        """Whether nothing of what a client has left behind gets through; half a request is of no use to anybody."""
        now_s = asyncio.get_running_loop().time()
        return watched is None or now_s - watched.moved_s >= self._stalled_silence_s


def _would_notice(handler: ProxyConnectionHandler) -> bool:
    """Whether the client's end would be noticed by itself."""
    reader = handler.transports[handler.client].reader
    return not isinstance(reader, PausableReader) or reader.is_reading


def _abort_upstreams(handler: ProxyConnectionHandler) -> None:
    """Drops what they have not taken; to close them would be to wait for that."""
    for connection, io in handler.transports.items():
        if connection is not handler.client and isinstance(io.writer, asyncio.StreamWriter):
            io.writer.transport.abort()


def _is_reset(handler: ProxyConnectionHandler) -> bool:
    io = handler.transports.get(handler.client)
    return io is not None and isinstance(io.writer, asyncio.StreamWriter) and is_reset(io.writer.transport)
