"""One TCP connection to a pod's address as a stream, and what is open to one pod.

Its users change its protocol as they like (`start_tls`, a fail-over that is settled): what is told to the protocol, and
what the books need, goes by here in any case.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError, UpstreamReset
from kubetunnel.forward.errors import DialTimeout, StreamFailed
from kubetunnel.forward.facts import ForwardBooks, ForwardFacts
from kubetunnel.forward.stream import Bytes, hand_over

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received
_TCP_INFO_BYTES = struct.Struct("=120xQQ")


class DirectPod:
    """What is open to one pod."""

    def __init__(self, books: ForwardBooks, clock: Callable[[], float]) -> None:
        self.books = books
        self._clock = clock
        books.protocol = "tcp"
        self.connections: set[DirectStream] = set()
        self.dials = 0  # under way
        self.used_at = self._clock()

    def ended(self, connection: DirectStream, error: KubeTunnelError | None) -> None:
        self.connections.discard(connection)
        self.used_at = self._clock()
        sent, received = connection.payload_bytes()
        self.books.bytes_sent += sent
        self.books.bytes_received += received
        if error is not None:
            self.books.cut(str(error))
        if not self.connections:
            self.books.drained()

    def facts(self) -> ForwardFacts:
        counted = [connection.payload_bytes() for connection in self.connections]
        return self.books.facts(
            upstreams=len(self.connections),
            streams=len(self.connections),
            bytes_sent=sum(sent for sent, _ in counted),
            bytes_received=sum(received for _, received in counted),
        )


class DirectStream(asyncio.Transport, asyncio.Protocol):
    """A transport to its user's protocol, and the protocol of the socket's transport.

    A failure reaches the user's protocol as `connection_lost(StreamFailed)`. `lost` is set when the connection is over.
    """

    _start_tls_compatible = True  # for loop.start_tls

    def __init__(self, pod: DirectPod, target: PodPort, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pod = pod
        self._target = target
        self._protocol = protocol
        self._socket: asyncio.Transport
        self._closed_for: str | None = None
        self._counted = (0, 0)

    # -- the protocol's side (asyncio.Transport)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def is_reading(self) -> bool:
        return self._socket.is_reading()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def write(self, data: Bytes) -> None:
        """As a port-forward's stream does: `data` is the caller's again when this returns."""
        # a socket's transport keeps what it cannot send at once, and copies none of it
        self._socket.write(data if isinstance(data, bytes) else bytes(data))

    def can_write_eof(self) -> bool:
        return self._socket.can_write_eof()

    def write_eof(self) -> None:
        self._socket.write_eof()

    def close(self) -> None:
        self._socket.close()

    def abort(self) -> None:
        self._socket.abort()

    def _force_close(self, exc: BaseException | None) -> None:
        """What asyncio's TLS calls in place of `abort` (asyncio.sslproto)."""
        self._socket.abort()

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._socket.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    # -- the socket's side (asyncio.Protocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (asyncio's signature is wider than its calls)
        self._socket = transport
        self._pod.connections.add(self)
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        hand_over(self._protocol, data)

    def eof_received(self) -> bool | None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol):
            return protocol.eof_received()
        return None

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        error: KubeTunnelError | None = None
        if self._closed_for is not None:
            error = UpstreamReset(f"The connection to {self._target} was closed: {self._closed_for}.")
        elif isinstance(exc, TimeoutError):
            error = no_answer(self._target, "any more")
        elif exc is not None:
            error = UpstreamReset(f"The pod reset the connection to {self._target}.")
        self._pod.ended(self, error)
        if not self.lost.done():
            self.lost.set_result(None)
        self._protocol.connection_lost(StreamFailed(error) if error else None)

    # -- the pod's side

    def cut(self, reason: str) -> None:
        self._closed_for = reason
        self._socket.abort()

    def payload_bytes(self) -> tuple[int, int]:
        """Sent (and acknowledged by the pod) and received, as the kernel counts; zeros where it does not tell."""
        connection: socket.socket | None = self._socket.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0 and hasattr(socket, "TCP_INFO"):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES.size)
            if len(info) == _TCP_INFO_BYTES.size:
                acked, received = _TCP_INFO_BYTES.unpack(info)
                self._counted = max(acked - 1, 0), received  # the SYN counts as one
        return self._counted


def no_answer(target: PodPort, when: str) -> DialTimeout:
    return DialTimeout(f"Pod {target} does not answer at {target.address} {when}.", command=show(target))


def show(target: PodPort) -> str:
    return f"kubectl -n {target.namespace} get pod {target.pod} -o wide"
