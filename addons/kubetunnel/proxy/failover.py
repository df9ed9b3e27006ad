"""A stream to the first pod that takes the connection.

That nothing listens on a port is known only after the stream was opened and bytes went (forward/stream.py); but it
proves that the pod has seen none of them. So the first ones are held until something is heard, and another pod gets
them where the first one refused (the contract's section 3).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError
from kubetunnel.forward.attempts import Attempts
from kubetunnel.forward.errors import PodReset, StreamFailed
from kubetunnel.proxy.explained import own_failure

logger = logging.getLogger(__name__)

MAX_HELD_BYTES = 256 << 10  # the design's bound on what may be sent again
CONNECTED_TIMEOUT_S = 1.0  # for a sign of one pod's port; what gives none is taken for connected

type Bytes = bytes | bytearray | memoryview


class FailoverStream(asyncio.Transport, asyncio.Protocol):
    """A transport to its protocol, and the protocol of one port-forward stream after the other.

    Once something is heard of a pod, its stream and the protocol know each other directly.
    """

    def __init__(self, attempts: Attempts, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._attempts = attempts
        self._protocol: asyncio.Protocol = protocol
        self._stream: asyncio.Transport | None = None
        self._held: list[bytes] | None = []  # None: settled
        self._held_bytes = 0
        self._is_new = True
        self._is_paused = False
        self._writers_wait = False
        self._stream_waits = False  # what was held may have filled it
        self._is_closing = False
        self._eof_written = False
        self._reopening: asyncio.Task[None] | None = None
        self._error: KubeTunnelError | None = None  # that it ended with before it was settled

    async def open(self) -> None:
        """Opens the first stream; the protocol has its transport then. Raises as `Attempts.open`."""
        await self._attempts.open(lambda: self)

    async def connected(self) -> None:
        """Waits until a pod's port has taken the connection, as far as that can be told: see `ForwardStream`.

        Raises what the last of them failed for; not that it was reset by the pod, which had taken it then.
        """
        while self._held is not None:
            if self._stream is None:
                assert self._reopening is not None  # noqa: S101 - it has been opened, and is not lost
                await asyncio.wait([self._reopening])
                continue
            stream, sign = self._stream, self._stream.get_extra_info("probably_connected")
            if sign is not None:  # a connection of the pod network has been accepted
                await asyncio.wait([sign], timeout=CONNECTED_TIMEOUT_S)
            if stream is self._stream:
                return
        if self._error is not None and not isinstance(self._error, PodReset):
            raise self._error

    # the protocol's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._stream is None:
            return default
        if name == "crowded" and self._attempts.is_needlessly_alone:
            return True  # in the other sense, but a new stream serves better here, too
        return self._stream.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError("only a Protocol is told of every byte at once")
        self._protocol = protocol
        if self._held is None and self._stream is not None:
            self._stream.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        if self._is_closing or self._held is not None:
            return self._is_closing  # a stream that ends before it is settled may be followed by another
        return self._stream is None or self._stream.is_closing()

    def is_reading(self) -> bool:
        return not self._is_paused and not self.is_closing()

    def write(self, data: Bytes) -> None:
        if self._held is not None and not self._is_closing:
            self._hold(data)
        if self._stream is not None:
            self._stream.write(data)

    def _hold(self, data: Bytes) -> None:
        self._held_bytes += len(data)
        if self._held is not None and (self._held_bytes <= MAX_HELD_BYTES or self._stream is None):
            self._held.append(bytes(data))
        else:
            self._settle()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_written = True
        if self._stream is not None:
            self._stream.write_eof()

    def close(self) -> None:
        self._end(abort=False)

    def abort(self) -> None:
        self._end(abort=True)

    def _end(self, *, abort: bool) -> None:
        was_closing, self._is_closing = self._is_closing, True
        if self._stream is not None:
            (self._stream.abort if abort else self._stream.close)()
        elif self._reopening is not None and not was_closing:
            self._reopening.cancel()
            asyncio.get_running_loop().call_soon(self._lose, None)

    def pause_reading(self) -> None:
        self._is_paused = True
        if self._stream is not None:
            self._stream.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if self._stream is not None:
            self._stream.resume_reading()

    def get_write_buffer_size(self) -> int:
        return 0 if self._stream is None else self._stream.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._stream is not None:
            self._stream.set_write_buffer_limits(high, low)

    # the stream's side, until it is settled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams are
        self._stream, self._stream_waits = transport, False
        if self._is_paused:
            transport.pause_reading()
        for data in self._held or ():
            transport.write(data)
        if self._eof_written:
            transport.write_eof()
        if self._is_new:
            self._is_new = False
            self._protocol.connection_made(self)
        self._hold_writers(self._stream_waits)

    def data_received(self, data: bytes) -> None:
        self._attempts.answered()
        self._settle()
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        self._settle()
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._stream_waits = True
        self._hold_writers(True)

    def resume_writing(self) -> None:
        self._stream_waits = False
        self._hold_writers(False)

    def _hold_writers(self, wait: bool) -> None:
        if wait is not self._writers_wait:
            self._writers_wait = wait
            (self._protocol.pause_writing if wait else self._protocol.resume_writing)()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream = None
        error = exc.error if isinstance(exc, StreamFailed) else None
        if self._is_closing or not isinstance(error, ConnectionRefused):
            self._lose(exc)
            return
        self._hold_writers(True)
        self._reopening = asyncio.get_running_loop().create_task(self._reopen(error), name="fail-over")

    async def _reopen(self, refused: ConnectionRefused) -> None:
        """Supervision point: whatever goes wrong here ends the stream, and whoever waits for it is told."""
        try:
            await self._attempts.open_another(refused, lambda: self)
        except KubeTunnelError as e:
            self._lose(StreamFailed(e))
        except Exception as e:
            logger.exception("Opening another stream in the place of one to %s failed.", self._attempts.target.pod_port)
            self._lose(StreamFailed(own_failure(e)))

    def _settle(self) -> None:
        self._held = None
        if self._stream is not None:
            self._stream.set_protocol(self._protocol)

    def _lose(self, exc: Exception | None) -> None:
        if self._is_new:
            return  # `open` tells of it
        if self._held is not None and isinstance(exc, StreamFailed):
            self._error = exc.error
        self._held, self._is_closing = None, True
        self._protocol.connection_lost(exc)
