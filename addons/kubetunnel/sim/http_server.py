"""HTTP/1.1, HTTP/2 (by ALPN, prior knowledge or `Upgrade: h2c`) and WebSocket for a simulated pod, by Hypercorn.

Hypercorn's own `serve` owns listeners, signals and shutdown, which here belong to the pod, and in HTTP/2 it leaves a
client waiting whose answer stopped half-way. So its protocol classes run on connections of ours: the ASGI application
is told of a lost client by OSError from `send`, and an answer that stops half-way is reset, as Go's net/http does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import h2.errors
import h2.events
import h2.settings
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError, H11Protocol
from hypercorn.typing import ConnectionState, LifespanState

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 18
# net/http's DefaultMaxHeaderBytes, and the number that the real demo's echo.go gives to its http2.Server
MAX_HEADER_BYTES, MAX_STREAMS = 1 << 20, 1000
WINDOW_BYTES = 1 << 20  # Go's http2.Server: MaxUploadBufferPerConnection and …PerStream
NO_LIMIT = 1 << 40

type Application = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


def server_config() -> Config:
    """Hypercorn's settings, as near to Go's net/http as they come: requests a connection are not limited."""
    config = Config()
    config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = MAX_STREAMS
    config.keep_alive_max_requests = NO_LIMIT
    config.websocket_max_message_size = NO_LIMIT
    config.max_app_queue_size = 0  # a bounded one deadlocks when an answer ends before its request's body
    return config


class _ResettingH2(H2Protocol):
    """HTTP/2 that resets what ends early, as net/http does; Hypercorn forgets such streams, and the client waits.

    INTERNAL_ERROR for an answer that stops half-way, NO_ERROR for a request that its answer overtook (RFC 9113 8.1).
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._uploading: set[int] = set()

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        await super().initiate(headers, settings)
        self.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES})
        self.connection.increment_flow_control_window(WINDOW_BYTES)
        await self._flush()

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, StreamClosed) and event.stream_id in self.streams:
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete:  # noqa: SLF001 - Hypercorn has no name for it
                if buffer.buffer:
                    await buffer.drain()
                await self._reset(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await super().stream_send(event)

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        if stream_id not in self.stream_buffers and stream_id in self._uploading:
            await self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)

    async def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        self._uploading.discard(stream_id)
        self.connection.reset_stream(stream_id, code)
        await self._flush()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                self._uploading.add(event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._uploading.discard(event.stream_id)
            if not isinstance(event, h2.events.DataReceived) or event.stream_id in self.streams:
                await super()._handle_events([event])
        await self._flush()


class HttpServer:
    """The HTTP side of one pod's ports.

    Args:
        application: an ASGI application (http and websocket).
    """

    def __init__(self, application: Application) -> None:
        self._app = ASGIWrapper(application)  # type: ignore[arg-type]
        self._config = server_config()
        self.open_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end, also where that is the client's cutting it."""
        self.open_connections += 1
        try:
            await _Connection(self._app, self._config, reader, writer).run()
        except* OSError as group:
            logger.debug("HTTP connection ended: %s", group.exceptions)
        finally:
            self.open_connections -= 1


class _Connection:
    def __init__(
        self, app: ASGIWrapper, config: Config, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._app = app
        self._config = config
        self._context = WorkerContext(None)
        self._reader = reader
        self._writer = writer
        self._tls = writer.get_extra_info("ssl_object")

    async def run(self) -> None:
        async with TaskGroup(asyncio.get_running_loop()) as tasks:
            self._tasks = tasks
            alpn = self._tls.selected_alpn_protocol() if self._tls is not None else None
            self._protocol = self._speak(_ResettingH2 if alpn == "h2" else H11Protocol)
            await self._protocol.initiate()
            while not self._writer.is_closing():
                data = await self._reader.read(READ_BYTES)
                await self._handle(RawData(data))
                if not data:
                    break
            await self._handle(Closed())

    def _speak(self, protocol: type[H11Protocol] | type[_ResettingH2]) -> H11Protocol | _ResettingH2:
        client = self._writer.get_extra_info("peername")[:2]
        server = self._writer.get_extra_info("sockname")[:2]
        state = ConnectionState(LifespanState({}))
        tls = self._tls is not None
        return protocol(self._app, self._config, self._context, self._tasks, state, tls, client, server, self._send)

    async def _handle(self, event: Event) -> None:
        try:
            await self._protocol.handle(event)
        except H2ProtocolAssumedError as e:
            self._protocol = self._speak(_ResettingH2)
            await self._protocol.initiate()
            await self._handle(RawData(e.data))
        except H2CProtocolRequiredError as e:
            self._protocol = self._speak(_ResettingH2)
            if isinstance(self._protocol, _ResettingH2):
                await self._protocol.initiate(e.headers, e.settings)
            if e.data:
                await self._handle(RawData(e.data))

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            self._writer.write(event.data)
            await self._writer.drain()
        elif isinstance(event, Closed) and not self._writer.is_closing():
            self._writer.close()
