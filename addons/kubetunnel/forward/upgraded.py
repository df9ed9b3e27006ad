"""One upgraded connection to the API server as an asyncio protocol: batched writes, pings, and its end.

What its bytes mean is said by the protocols (`spdy_upstream`, `channel_upstream`), what its streams are by `upstream`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from typing import cast
from weakref import WeakKeyDictionary

from kubetunnel.core.errors import KubeTunnelError, UpstreamProtocol
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.liveness import Liveness
from kubetunnel.forward.spdy import SpdyError
from kubetunnel.forward.websocket import WebSocketError

logger = logging.getLogger(__name__)

READ_BUFFER_BYTES = 256 * 1024  # asyncio's own TLS read size
# TLS is decrypted into it and handed on in one go, so that all connections of an event loop can use the same
_read_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()
WRITE_BUFFER_BYTES = 256 * 1024  # one batch and what TCP holds keep 300 MB/s going; more is only latency
BATCH_BYTES = 64 * 1024  # written at once, not at the end of the turn: a fast writer must meet the backpressure


class UpgradedConnection(asyncio.BufferedProtocol, ABC):
    """The connection of an upstream, which owns its transport."""

    one_stream = False  # of a protocol whose connection ends with its stream: an end is no accident

    def __init__(self, facts: UpstreamFacts) -> None:
        self.facts = facts
        self.lost = False
        self.broken = False  # its end was neither our wish nor a stream's good end
        self.closed = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(b"")
        self._batch_bytes = 0
        self._flush_handle: asyncio.Handle | None = None
        self._close_reason = ""
        self._liveness = Liveness(self._loop.time())
        self._read_until = -math.inf  # when the last ping that was answered was sent
        self._proof_timer: asyncio.TimerHandle | None = None
        self._doubted = False  # the pool was told that it is silent

    # -- what a protocol is

    @abstractmethod
    def _take_output(self) -> bytes:
        """Everything queued, as bytes for the transport."""

    @abstractmethod
    def _receive(self, data: memoryview) -> None:
        """Bytes from the transport. Raises SpdyError, WebSocketError."""

    @abstractmethod
    def _queue_ping(self) -> None: ...

    @abstractmethod
    def _queue_close(self) -> None:
        """Queue the protocol's good-bye."""

    # -- what its streams are

    @abstractmethod
    def _retired(self, reason: str) -> None:
        """It takes no new streams any more."""

    @abstractmethod
    def _end_lanes(self, error: KubeTunnelError | None) -> None:
        """All streams that still run end, with this error or, None, with that of a connection that was cut."""

    @abstractmethod
    def _unanswered(self) -> None:
        """It was asked, and does not answer as every live peer does."""

    @abstractmethod
    def _answered(self) -> None:
        """It was doubted, and lives."""

    # -- the pool's side

    @property
    def retired(self) -> str:
        """Why it is closed or about to be, "" while it is of use."""
        return self._close_reason

    def opened_in(self, took_s: float) -> None:
        """The upgrade took so long, which a round trip takes at most."""
        self._liveness.is_far(took_s)

    def close(self, reason: str) -> None:
        """Close the connection; streams that still run end with UpstreamReset."""
        if self._retire(reason):
            self._queue_close()
            self.flush()
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Cut the connection at once; streams that still run end with UpstreamReset."""
        self._retire(reason)
        self._transport.abort()

    def fail(self, error: KubeTunnelError) -> None:
        """The connection is of no more use."""
        self._retire(error.detail, broken=True)
        self._end_lanes(error)
        self._transport.abort()

    # -- asyncio's side (BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # by its interface: asyncio's signature is wider
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        if transport.get_extra_info("ssl_object") is None:
            # the event loop of Windows takes a buffer for a socket and fills it later
            self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
            return
        if self._loop not in _read_buffers:
            _read_buffers[self._loop] = memoryview(bytearray(READ_BUFFER_BYTES))
        self._buffer = _read_buffers[self._loop]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.receive(self._buffer[:nbytes])

    def receive(self, data: memoryview) -> None:
        """Bytes of the connection; the first ones may come with the answer to the upgrade."""
        try:
            self._receive(data)
        except (SpdyError, WebSocketError) as error:
            self.fail(UpstreamProtocol(f"The port-forward of {self.facts.namespace}/{self.facts.pod} broke: {error}."))
        else:
            self.flush()

    def eof_received(self) -> None:
        self._retire("the API server closed it", broken=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._retire(str(exc) if exc else "the connection ended", broken=True)
        self.lost = True
        for handle in (self._flush_handle, self._proof_timer):
            if handle is not None:
                handle.cancel()
        self._end_lanes(None)
        self._buffer = memoryview(b"")  # what still refers to us is not to keep it
        self.closed.set_result(None)

    # -- for subclasses

    def flush(self) -> None:
        """Write what is queued, in one write."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._batch_bytes = 0
        output = self._take_output()
        if output and not self._transport.is_closing():
            self._transport.write(output)

    def _schedule(self, count: int) -> None:
        """`count` bytes were queued: they leave with the rest of this turn of the event loop."""
        self._batch_bytes += count
        if self._batch_bytes >= BATCH_BYTES:
            self.flush()
        elif self._flush_handle is None and not self.lost:
            self._flush_handle = self._loop.call_soon(self.flush)

    def _retire(self, reason: str, *, broken: bool = False) -> bool:
        """Who finds the end of the connection first tells its reason; before any stream ends, so that none opens."""
        if self._close_reason:
            return False
        self._close_reason = reason
        self.broken = broken and not self.one_stream
        facts = self.facts
        facts.state = "closed"
        logger.debug("Upstream %s closed with %d streams open: %s", facts, facts.streams, reason.rstrip("."))
        self._retired(reason)
        return True

    def _heard(self) -> None:
        self._liveness.heard(self._loop.time())
        if self._doubted:
            self._doubted = False
            self._answered()

    def _ask(self) -> None:
        """What leaves now is answered by a live peer at once: a new stream, a ping."""
        self._liveness.ask(self._loop.time())
        if self._proof_timer is None and self._liveness.asked_at is not None:
            self._proof_timer = self._loop.call_later(self._liveness.proof_s, self._prove)

    def _prove(self) -> None:
        self._proof_timer = None
        asked_at, now = self._liveness.asked_at, self._loop.time()
        if asked_at is None or self._close_reason:
            return
        unanswered = self._liveness.unanswered(now)
        again_at = (now if unanswered else asked_at) + self._liveness.proof_s
        self._proof_timer = self._loop.call_at(again_at, self._prove)
        if unanswered:
            self._unanswered()
