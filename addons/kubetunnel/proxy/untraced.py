"""Ends of connections that are told for certain, and without tracebacks, so that all that one had is freed with it.

A reader, a writer and a frame of mitmproxy's `handle_connection` keep the exception that ended them. Its traceback has
frames (and by `f_back` those that called them) that hold the connection's handler, layers and buffers, and these hold
the exception: a cycle of up to a megabyte, which would wait for a collection of the oldest generation.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from weakref import ref

from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import events
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

CLOSE_TIMEOUT_S = 1.0  # of a transport that has nothing to send; the next round of the event loop does it


def attach(handler: ProxyConnectionHandler) -> None:
    """Stands in for this handler's `handle_connection`, for the client and for each upstream."""
    handler.handle_connection = partial(_handle_connection, ref(handler))  # type: ignore[method-assign]


async def _handle_connection(handler_ref: ref[ProxyConnectionHandler], connection: Connection) -> None:
    handler = handler_ref()
    assert handler is not None  # noqa: S101 - it is who calls
    writer = handler.transports[connection].writer
    try:
        await ProxyConnectionHandler.handle_connection(handler, connection)
    except asyncio.CancelledError as e:
        e.__traceback__ = None
        await tell_end(handler, connection)
        raise
    finally:
        if isinstance(writer, asyncio.StreamWriter):
            await _forget_failure(writer)


async def tell_end(handler: ProxyConnectionHandler, connection: Connection) -> None:
    """Tells the layers of the end where the task was cancelled while it waited for its turn to tell of an event.

    An upstream would be taken for open, and all that is sent on it would wait for ever. No effect where they know.
    """
    transport = handler.transports.pop(connection, None)  # first, so that nobody finds its writer broken once more
    if transport is None:
        return
    connection.state = ConnectionState.CLOSED
    if transport.writer is not None:
        transport.writer.close()
    await tell(handler, events.ConnectionClosed(connection))


async def tell(handler: ProxyConnectionHandler, event: events.Event) -> None:
    """As the handler's `server_event`, and nothing keeps the layers from hearing of it: a cancellation waits for that.

    Each task of the connection that drains the writers cancels that of a broken one, so it comes several times. It is
    a short wait: whoever holds the handler's lock does no I/O.
    """
    telling = asyncio.create_task(handler.server_event(event), name="tell an event")
    cancelled: asyncio.CancelledError | None = None
    while not telling.done():
        try:
            await asyncio.wait([telling])
        except asyncio.CancelledError as e:
            cancelled = e
    try:
        telling.result()
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # its traceback has this frame


async def _forget_failure(writer: asyncio.StreamWriter) -> None:
    if writer.transport.get_write_buffer_size():
        return  # it is still there; what may fail from now on fails in frames that know nothing of us
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            try:
                await writer.wait_closed()  # which takes the traceback from the writer's future
            except OSError as e:
                e.__traceback__ = None
