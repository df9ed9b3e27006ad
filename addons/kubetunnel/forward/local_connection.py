"""One client of a local listener, joined to a stream to a pod: bytes go from protocol to protocol, with no task or
StreamReader between.

Each direction waits for its own writer alone and ends alone; a reset on one side is a reset on the other. What the
client sent is kept until it is certain that the pod's port took the connection, so that another pod can be given it
instead: a runtime's "connection refused" comes after the first bytes have left (no sign of success comes before it).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import typing
from collections.abc import Callable

from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError
from kubetunnel.core.first_bytes import Protocol, recognise
from kubetunnel.forward.errors import StreamFailed

HELD_BYTES = 256 * 1024  # the contract's bound for bytes that may be sent again
# read at once, from asyncio's own socket transport; written on in an upstream's batches
READ_BUFFER_BYTES = 256 * 1024
WRITE_BUFFER_BYTES = 512 * 1024  # two of an upstream's reads, so that one fills while the other leaves

# a client that closes its socket sends the FIN just before the kernel marks it as nobody's; the later looks are for one
# that half-closes first. Each costs 10 us
FIRST_LOOK_S = 0.001
LAST_LOOK_S = 1.0
SILENT_LOOKS = 60
STALLED_S = 10.0  # a pod that takes nothing for so long, of a client that has left, will not take the rest

_LINGER_0_S = struct.pack("ii", 1, 0)  # struct linger of socket(7): on, 0 s: close() sends RST


class Listener(typing.Protocol):
    """What a client's side asks of its listener."""

    def accepted(self, client: LocalConnection) -> None: ...
    def is_departed(self, client: LocalConnection) -> bool | None: ...


class LocalConnection(asyncio.BufferedProtocol):
    """The client's side. Made by the listener's server, and told to it when it is connected.

    Args:
        buffer: READ_BUFFER_BYTES to read into. Connections of one event loop can share it: what was read is passed on
            before anything else is.

    `ended` is set when the client's socket is closed.
    """

    def __init__(self, listener: Listener, buffer: memoryview) -> None:
        self._buffer = buffer
        self.transport: asyncio.Transport | None = None
        self.peername: tuple[str, int] = ("", 0)
        self.sockname: tuple[str, int] = ("", 0)
        self.finished = False  # it sends no more
        self.ended = asyncio.get_running_loop().create_future()
        self.held: bytearray | None = bytearray()  # what was sent, None when it cannot be sent again
        self._listener = listener
        self._recognised = asyncio.get_running_loop().create_future()
        self._spoken: Protocol | None = None
        self._pod: PodConnection | None = None
        self._heard = False
        self._silent_looks = 0
        self._look_timer: asyncio.TimerHandle | None = None
        self._stalled_timer: asyncio.TimerHandle | None = None
        self._gave_up = False

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (asyncio's signature is wider than its calls)
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self.peername = tuple(transport.get_extra_info("peername")[:2])
        self.sockname = tuple(transport.get_extra_info("sockname")[:2])
        self._listener.accepted(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer[:nbytes]
        pod = self._pod
        if self.held is not None:
            self._hold(data)
        if pod is not None:
            pod.transport.write(data)

    def eof_received(self) -> bool:
        if self.finished:
            return True  # a socket tells it again when reading is resumed
        self.finished = True
        self._recognise(None)
        if self._pod is not None:
            self._pod.client_finished()
        self._look(FIRST_LOOK_S)
        return True

    def pause_writing(self) -> None:
        if self._pod is not None:
            self._pod.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._pod is not None:
            self._pod.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._recognise(None)
        for timer in (self._look_timer, self._stalled_timer):
            if timer is not None:
                timer.cancel()
        pod, self._pod = self._pod, None
        if pod is not None:
            if exc is None and not self._gave_up:
                pod.transport.close()
            else:
                pod.transport.abort()
        if not self.ended.done():
            self.ended.set_result(None)

    # -- the listener's side

    async def spoken(self, patience_s: float) -> Protocol | None:
        """What the client's first bytes speak; None where that is open after `patience_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._recognised)
        return self._spoken

    def join(self, pod: PodConnection) -> None:
        """The pod's side is there: what was sent before goes to it now."""
        assert self.transport is not None  # noqa: S101  (joined after it was accepted)
        if self.ended.done():
            pod.transport.abort()
            return
        self._pod = pod
        self.transport.resume_reading()  # before the write, which may pause it
        if self.held:
            pod.transport.write(bytes(self.held))
            if len(self.held) >= HELD_BYTES:
                self.held = None
        if self.finished:
            pod.client_finished()

    def pod_spoke(self) -> None:
        """The pod's port took the connection for sure."""
        self._heard = True
        self.held = None

    def hold_back(self) -> None:
        """The pod does not take what comes: no more is read. That the client leaves is not seen then, but asked for."""
        assert self.transport is not None  # noqa: S101
        self.transport.pause_reading()
        if self._stalled_timer is None:
            self._stalled_timer = asyncio.get_running_loop().call_later(STALLED_S, self._give_up_stalled)

    def go_on(self) -> None:
        """The pod takes more."""
        assert self.transport is not None  # noqa: S101
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None
        self.transport.resume_reading()

    def _give_up_stalled(self) -> None:
        assert self.transport is not None  # noqa: S101
        if self._listener.is_departed(self):
            self._gave_up = True
            self.transport.abort()
        else:
            self._stalled_timer = asyncio.get_running_loop().call_later(STALLED_S, self._give_up_stalled)

    def part(self) -> None:
        """The pod's side is gone, and another may come."""
        self._pod = None

    def reset(self) -> None:
        """Close with a RST: in raw TCP the only way to say that something failed."""
        assert self.transport is not None  # noqa: S101
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # gone already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0_S)
        self.transport.abort()

    def _look(self, next_s: float) -> None:
        """Whether a client that sends no more is gone for good: its stream would stay as long as the pod is silent.

        Where the machine cannot tell, a long silence counts for that.
        """
        assert self.transport is not None  # noqa: S101
        if self.transport.is_closing():
            return
        gone = self._listener.is_departed(self)
        self._silent_looks = 0 if self._heard or gone is not None else self._silent_looks + 1
        self._heard = False
        owes = self._pod is None and self.held  # a pod is to have what was sent, whoever waits for an answer
        if not owes and (gone or self._silent_looks > SILENT_LOOKS):
            self.transport.abort()
        else:
            self._look_timer = asyncio.get_running_loop().call_later(next_s, self._look, min(10 * next_s, LAST_LOOK_S))

    def _hold(self, data: memoryview) -> None:
        assert self.held is not None and self.transport is not None  # noqa: S101
        self.held += data
        if not self._recognised.done():
            spoken = recognise(bytes(self.held), destination_known=True)
            if spoken is not None:
                self._recognise(spoken)
        if len(self.held) >= HELD_BYTES:
            if self._pod is None:
                self.transport.pause_reading()  # until there is where to send it
            else:
                self.held = None

    def _recognise(self, spoken: Protocol | None) -> None:
        if not self._recognised.done():
            self._spoken = spoken
            self._recognised.set_result(None)


class PodConnection(asyncio.Protocol):
    """The pod's side, the protocol of a port-forward's stream.

    `ended` is set when the stream is over: None for a good end, else why. What was sent can be sent to another pod
    where `never_connected` is true then.

    Args:
        answered: called when the first bytes come.
    """

    transport: asyncio.Transport

    def __init__(self, client: LocalConnection, answered: Callable[[], None]) -> None:
        self.ended: asyncio.Future[KubeTunnelError | None] = asyncio.get_running_loop().create_future()
        self.never_connected = False
        self._client = client
        self._answered = answered
        self._finished = False
        self._silent = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        self._client.join(self)

    def data_received(self, data: bytes) -> None:
        client = self._client.transport
        assert client is not None  # noqa: S101
        if self._silent:
            self._silent = False
            self._answered()
            self._client.pod_spoke()
        elif self._client.finished:
            self._client.pod_spoke()
        client.write(data)

    def eof_received(self) -> bool:
        client = self._client
        assert client.transport is not None  # noqa: S101
        self._finished = True
        if client.finished:
            client.transport.close()
            self.transport.close()
        elif not client.transport.is_closing():
            with contextlib.suppress(OSError):  # no longer connected: `connection_lost` is about to come
                client.transport.write_eof()
        return True

    def client_finished(self) -> None:
        """The client sends no more. The pod does not learn of it: see the port-forward's stream."""
        assert self._client.transport is not None  # noqa: S101
        if self._finished:
            self.transport.close()
            self._client.transport.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()

    def pause_writing(self) -> None:
        self._client.hold_back()

    def resume_writing(self) -> None:
        self._client.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        client = self._client
        error = exc.error if isinstance(exc, StreamFailed) else None
        self.never_connected = isinstance(error, ConnectionRefused) and self._silent and client.held is not None
        client.part()
        if exc is None and client.transport is not None:
            client.transport.close()
        if not self.ended.done():
            self.ended.set_result(error)
