"""Upstreams as port-forward streams of this process, for any proxy mode.

A `ProxyConnectionHandler` of mitmproxy dials TCP. For names of ours the stream to the pod is put in the socket's place,
so that all of mitmproxy's layers (TLS, HTTP/2, WebSocket) work on it as they are, with no loopback listener in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from copy import copy
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from weakref import WeakKeyDictionary, ref

from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.proxy import commands, events, server, server_hooks
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from kubetunnel.cluster.connection import keep_alive
from kubetunnel.core.endpoints import Target
from kubetunnel.core.errors import KubeTunnelError, OutsideName
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.spoken import Http
from kubetunnel.forward.attempts import Attempts
from kubetunnel.proxy import untraced
from kubetunnel.proxy.destination import OpenForClient, OpenUntilConnected
from kubetunnel.proxy.explained import own_failure
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.reading import PausableReaders
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.outside import OutsideNames
from kubetunnel.proxy.routing import Destination, Router, error_of
from kubetunnel.proxy.service_connections import ServiceConnections
from kubetunnel.proxy.virtual_destinations import VirtualDestinations

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Opened:
    """One upstream of a client connection. `error`: why it ended, once it has."""

    destination: Destination
    attempts: Attempts
    setup_s: float
    reader: asyncio.StreamReader | None
    error: KubeTunnelError | None = None

    @property
    def target(self) -> Target:
        """The endpoint that it goes to: another one later, where this one refuses."""
        return self.attempts.target

    @property
    def retries(self) -> int:
        """How many attempts were before this endpoint's."""
        return self.attempts.retries

    def explain(self, error: KubeTunnelError) -> None:
        """Gives a failure of this upstream a command that shows it, where it has none."""
        self.destination.explain(self.target, error)

    def end(self) -> None:
        """Lets go of all that leads back to the connection: a traceback's frames do, and a reader's exception has one.

        `Upstreams` knows this for as long as anybody knows the connection, which would be for ever.
        """
        if self.reader is not None and (exception := self.reader.exception()):
            exception.__traceback__ = None
            error = error_of(exception)
            self.error = error and copy(error)
        self.reader = None


class Upstreams:
    """Opens upstreams for all client connections, and remembers where each went for as long as anyone knows it.

    Args:
        virtual: what addresses stand for.
    """

    def __init__(self, router: Router, virtual: VirtualDestinations | None = None) -> None:
        self._router = router
        self.virtual = virtual or VirtualDestinations()
        self.readers = PausableReaders()
        self.connections = ServiceConnections(lambda: router.settings.pool)
        self.lanes = Lanes(self.connections)
        self._opened: WeakKeyDictionary[Connection, Opened] = WeakKeyDictionary()
        self._settled: WeakKeyDictionary[Client, set[tuple[str, int]]] = WeakKeyDictionary()
        self._unopened: WeakKeyDictionary[Connection, KubeTunnelError] = WeakKeyDictionary()
        self.outside = OutsideNames()

    def attach(self, handler: ProxyConnectionHandler) -> None:
        """Stands in for this handler's `open_connection`, whatever its mode is."""
        untraced.attach(handler)
        # weak, since one that is part of a cycle would wait for the garbage collector with all its layers
        handler.open_connection = partial(self._open_connection, ref(handler))  # type: ignore[method-assign]
        client = handler.transports[handler.client]
        if isinstance(client.writer, asyncio.StreamWriter) and not ip_address(handler.client.peername[0]).is_loopback:
            # without an end that anybody hears of, what it has open would hold its places for days
            keep_alive(client.writer.get_extra_info("socket"))
        if client.reader is not None:
            client.reader = self.readers.wrap(handler.client, client.reader)  # type: ignore[assignment]

    def settle(self, client: Client, destination: Destination) -> None:
        """What this client asked for was found: an upstream to its address is for exactly that port."""
        self._settled.setdefault(client, set()).add(destination.address)

    def is_settled(self, client: Client, address: tuple[str, int]) -> bool:
        """Whether that is what `settle` was told of."""
        return address in self._settled.get(client, ())

    def opened(self, connection: Connection) -> Opened | None:
        """Where this upstream went; None for one that is not ours."""
        return self._opened.get(connection)

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        """Why this upstream did not open."""
        return self.outside.open_error(connection) or self._unopened.get(connection)

    def take_open_error(self, connection: Connection) -> KubeTunnelError | None:
        """As `open_error`; once, so that who is told of it may try again."""
        return self._unopened.pop(connection, None)

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        """Why this upstream ended; None where it simply closed."""
        opened = self._opened.get(connection)
        if opened is None:
            return None
        error = error_of(opened.reader.exception()) if opened.reader else opened.error
        if error is not None:
            opened.attempts.lost(error)  # before anybody who asks repeats his request
            self.lanes.explain(connection, error)
        return error

    async def _open_connection(
        self, handler_ref: ref[ProxyConnectionHandler], command: commands.OpenConnection
    ) -> None:
        """As `ConnectionHandler.open_connection`: opens, reports, and serves the connection until it ends."""
        handler = handler_ref()
        assert handler is not None  # noqa: S101 - it is who calls
        # the handler enters this task into its table after it started it, and mitmproxy's tasks start eagerly
        await asyncio.sleep(0)
        connection = command.connection
        if not connection.address or not self.is_ours(handler.client, connection.address[0]):
            await ProxyConnectionHandler.open_connection(handler, command)
            return
        if outside := self.outside.to(handler.client, connection.address):
            await self.outside.dial(handler, command, outside)
            return
        hook_data = server_hooks.ServerConnectionHookData(client=handler.client, server=connection)
        await handler.handle_hook(server_hooks.ServerConnectHook(hook_data))
        if killed := connection.error:
            await _fail(handler, command, hook_data, f"Connection killed: {killed}")
            return
        connection.timestamp_start = time.time()
        async with AsyncExitStack() as held:
            await self._open_and_serve(handler, command, hook_data, held)

    async def _open_and_serve(
        self,
        handler: ProxyConnectionHandler,
        command: commands.OpenConnection,
        hook_data: server_hooks.ServerConnectionHookData,
        held: AsyncExitStack,
    ) -> None:
        """`held`: has what the connection has to let go of at its end."""
        connection = command.connection
        assert connection.address is not None  # noqa: S101 - it is what to open
        address = connection.address[0], connection.address[1]
        try:
            opened, writer = await self._open(command, address, handler.client, held)
        except OutsideName as e:
            self.outside.let(handler.client, e)
            await self.outside.dial(handler, command, e)
            return
        except KubeTunnelError as e:
            self._unopened[connection] = copy(e)  # which has no traceback: see `Opened.end`
            await _fail(handler, command, hook_data, str(e))
            return
        except asyncio.CancelledError:
            await _fail(handler, command, hook_data, "connection cancelled")
            raise
        except Exception as e:
            logger.exception("Opening %s:%d failed.", *address)
            self._unopened[connection] = own_failure(e)
            await _fail(handler, command, hook_data, str(e))
            return
        self._opened[connection] = opened
        self.lanes.opened(connection, writer.transport, opened.explain)
        is_bounded = not isinstance(command, OpenForClient)
        self.connections.opened(connection, opened.destination.service, writer.close, is_bounded=is_bounded)
        try:
            await _serve(handler, command, hook_data, opened, writer, self.readers)
        finally:
            writer.close()
            opened.end()
            self.lanes.closed(connection)
            self.connections.closed(connection)

    def is_ours(self, client: Client, host: str) -> bool:
        """Whether what this client asks for under that host is the cluster's."""
        # in our own mode nothing but the cluster is ever dialled
        return isinstance(client.proxy_mode, KubeMode) or self._router.owns(host) or self.virtual.is_a_names(host)

    async def _open(
        self, command: commands.OpenConnection, address: tuple[str, int], client: Client, held: AsyncExitStack
    ) -> tuple[Opened, asyncio.StreamWriter]:
        started, connection = time.monotonic(), command.connection
        if self.is_settled(client, address):
            request = PortRequest(address[1], explicit=True, scheme="")
        else:
            request = port_request(address[1])
        name = await self._router.parse(self.virtual.host(address[0]))
        connection.address = str(name), address[1]  # as it is shown, where it is refused
        destination = await self._router.find(name, request)
        connection.address = destination.address
        wait_s = None if isinstance(command, OpenForClient) else self._router.settings.http.response_header_timeout_s
        await held.enter_async_context(self.connections.room(destination.service, wait_s))
        if not destination.spoken.tls:  # with TLS, ALPN tells
            version = await self._router.http_version(destination, client_http2=client.alpn == b"h2")
            connection.alpn = b"h2" if version is Http.HTTP2 else None
        upstream = await self._router.open(
            destination,
            client.peername[0],
            shared=self.lanes.is_shared(connection),
            until_connected=isinstance(command, OpenUntilConnected),
        )
        setup_s = time.monotonic() - started
        return Opened(destination, upstream.attempts, setup_s, upstream.reader), upstream.writer


def port_request(number: int) -> PortRequest:
    """The port of a destination that came without a scheme: a client that gave none asks for its scheme's default."""
    scheme = {80: "http", 443: "https"}.get(number, "")
    return PortRequest(number, explicit=not scheme, scheme=scheme)


async def _serve(
    handler: ProxyConnectionHandler,
    command: commands.OpenConnection,
    hook_data: server_hooks.ServerConnectionHookData,
    opened: Opened,
    writer: asyncio.StreamWriter,
    readers: PausableReaders,
) -> None:
    connection, pod_port = command.connection, opened.target.pod_port
    assert opened.reader is not None  # noqa: S101 - it has just been opened
    connection.timestamp_tcp_setup = time.time()
    connection.state = ConnectionState.OPEN
    connection.peername = (pod_port.address, pod_port.port)
    handler.log(f"server connect {connection.address} -> {pod_port}", logging.DEBUG)
    await handler.handle_hook(server_hooks.ServerConnectedHook(hook_data))
    # from now on this task is cancelled when its writer breaks, and the layers have to hear of both beginning and end
    handler.transports[connection] = server.ConnectionIO(
        handler=asyncio.current_task(),
        reader=readers.wrap(connection, opened.reader),  # type: ignore[arg-type]
        writer=writer,
    )
    try:
        await untraced.tell(handler, events.OpenConnectionCompleted(command, None))
        await handler.handle_connection(connection)
    except asyncio.CancelledError:
        await untraced.tell_end(handler, connection)
        raise
    finally:
        connection.timestamp_end = time.time()
        await handler.handle_hook(server_hooks.ServerDisconnectedHook(hook_data))


async def _fail(
    handler: ProxyConnectionHandler,
    command: commands.OpenConnection,
    hook_data: server_hooks.ServerConnectionHookData,
    message: str,
) -> None:
    command.connection.error = command.connection.error or message
    await handler.handle_hook(server_hooks.ServerConnectErrorHook(hook_data))
    await handler.server_event(events.OpenConnectionCompleted(command, message))
