"""Pods dialled by their address, for a tunnel that runs inside the cluster (`cluster.dial: direct`).

There the API server needs not be in the way of the bytes. To its users this is what `PortForwards` is: the same
methods, the same refusals, and a failure of an open connection comes as `connection_lost(StreamFailed)`. Two things are
better than through a runtime: a port that refuses is told by `open` itself, and a half-close arrives (RFC 9293 3.6).

The API server admits no loopback and no link-local address into an EndpointSlice (its ValidateNonSpecialIP), so none is
looked for here.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Callable

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import (
    ClusterUnreachable,
    ConnectionRefused,
    KubeTunnelError,
    NotForwardable,
    PodGone,
    UpstreamReset,
)
from kubetunnel.forward.errors import DialTimeout, StreamFailed
from kubetunnel.forward.facts import ForwardBooks, ForwardFacts

CONNECT_TIMEOUT_S = 1.5  # a lost SYN is sent again after 1 s (RFC 6298 2.1), and a refusal is due within 2 s
IDLE_TIMEOUT_S = 300.0  # the contract's pool.idle_timeout

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received
_TCP_INFO_BYTES = struct.Struct("=120xQQ")


class DirectConnections:
    """TCP connections to the pods of one cluster.

    Args:
        connect_timeout_s: how long an open waits for a pod's answer.
        idle_timeout_s: how long the facts of a pod to which nothing is open are kept.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._pods: dict[tuple[str, str], _Pod] = {}
        self._closed = False

    async def open[P: asyncio.Protocol](
        self, target: PodPort, protocol_factory: Callable[[], P], *, shared: bool = False
    ) -> tuple[asyncio.Transport, P]:
        """Connect to a port of a pod. `shared` changes nothing: each connection is one of its own.

        Raises:
            ConnectionRefused: nothing listens there.
            DialTimeout: no answer. As PodGone, it is the endpoint's; another one may be tried.
            PodGone: nobody has the address any more.
            UpstreamReset: the connection ended while it was made, or there is no way to it.
            NotForwardable: the endpoint's address is not an IP address.
            ClusterUnreachable: the session was closed.
        """
        pod = self._pod(target.namespace, target.pod)
        pod.books.dialling()
        try:
            opened = await self._connect(pod, target, protocol_factory)
        except KubeTunnelError as error:
            pod.books.dial_failed(str(error))
            raise
        finally:
            pod.dials -= 1
            pod.used_at = self._clock()
        pod.books.streams_opened += 1
        pod.books.change("ready", "a connection is open")  # also after "draining": there is a pod of its name again
        return opened

    async def open_connection(
        self, target: PodPort, *, shared: bool = False
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`open` with asyncio's streams, as `asyncio.open_connection`. Raises as `open`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, protocol = await self.open(
            target, lambda: asyncio.StreamReaderProtocol(reader, loop=loop), shared=shared
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def open_streams(self, namespace: str, pod: str) -> int:
        """Connections to the pod that are open now."""
        found = self._pods.get((namespace, pod))
        return len(found.connections) if found else 0

    def forwards(self) -> list[ForwardFacts]:
        """A copy of what there is to know of the connections to each pod in use."""
        self._forget_idle()
        return [pod.facts() for pod in self._pods.values()]

    def drain(self, namespace: str, pod: str) -> None:
        """The pod ends. What is open runs on to its end; that it gets no more is the business of who chooses."""
        found = self._pods.get((namespace, pod))
        if found is not None and found.connections:
            found.books.change("draining", "its pod ends")

    async def aclose(self) -> None:
        """Close everything; connections that still run end with UpstreamReset."""
        self._closed = True
        lost = []
        for pod in self._pods.values():
            for connection in list(pod.connections):
                lost.append(connection.lost)
                connection.abort("the tunnel ends")
        if lost:
            await asyncio.wait(lost)
        self._pods.clear()

    async def _connect[P: asyncio.Protocol](
        self, pod: _Pod, target: PodPort, protocol_factory: Callable[[], P]
    ) -> tuple[asyncio.Transport, P]:
        loop = asyncio.get_running_loop()
        connecting = socket.socket(_family(target), socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.sock_connect(connecting, (target.address, target.port))
                self._refuse_if_closed()
                protocol = protocol_factory()
                transport, _ = await loop.create_connection(lambda: _Connection(pod, target, protocol), sock=connecting)
        except TimeoutError as error:
            connecting.close()
            raise _no_answer(target, f"within {self._connect_timeout_s:g} s") from error
        except OSError as error:
            connecting.close()
            raise _why_not(error, target) from error
        except BaseException:
            connecting.close()
            raise
        return transport, protocol

    def _pod(self, namespace: str, name: str) -> _Pod:
        self._refuse_if_closed()
        key = (namespace, name)
        if key not in self._pods:
            self._forget_idle()
            self._pods[key] = _Pod(ForwardBooks(namespace, name), self._clock)
        pod = self._pods[key]
        pod.dials += 1
        return pod

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClusterUnreachable("The session to the cluster was closed: its settings changed.")

    def _forget_idle(self) -> None:
        now = self._clock()
        for key, pod in list(self._pods.items()):
            if not pod.dials and not pod.connections and now - pod.used_at >= self._idle_timeout_s:
                pod.books.change("closed", "nobody uses it")
                del self._pods[key]


class _Pod:
    """What is open to one pod."""

    def __init__(self, books: ForwardBooks, clock: Callable[[], float]) -> None:
        self.books = books
        self._clock = clock
        books.protocol = "tcp"
        self.connections: set[_Connection] = set()
        self.dials = 0  # under way
        self.used_at = self._clock()

    def ended(self, connection: _Connection, error: KubeTunnelError | None) -> None:
        self.connections.discard(connection)
        self.used_at = self._clock()
        sent, received = connection.payload_bytes()
        self.books.bytes_sent += sent
        self.books.bytes_received += received
        if error is not None:
            self.books.cut(str(error))

    def facts(self) -> ForwardFacts:
        books = self.books
        counted = [connection.payload_bytes() for connection in self.connections]
        return ForwardFacts(
            namespace=books.namespace,
            pod=books.pod,
            state=books.state,
            reason=books.reason,
            since=books.since,
            protocol=books.protocol,
            upstreams=len(self.connections),
            streams=len(self.connections),
            streams_opened=books.streams_opened,
            bytes_sent=books.bytes_sent + sum(sent for sent, _ in counted),
            bytes_received=books.bytes_received + sum(received for _, received in counted),
            dials=books.dials,
            retries=books.retries,
            redials=books.redials,
            last_error=books.last_error,
            last_error_at=books.last_error_at,
        )


class _Connection(asyncio.Protocol):
    """Stands between the socket and its user's protocol, to tell a failure in the words of the contract.

    One that puts its own protocol in this one's place (`set_protocol`) is told of a reset by asyncio's OSError, as long
    as it does not pass `connection_lost` on to the former protocol.
    """

    transport: asyncio.Transport

    def __init__(self, pod: _Pod, target: PodPort, protocol: asyncio.Protocol) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pod = pod
        self._target = target
        self._protocol = protocol
        self._aborted: str | None = None
        self._counted = (0, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (asyncio's signature is wider than its calls)
        self.transport = transport
        self._pod.connections.add(self)
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        error: KubeTunnelError | None = None
        if self._aborted is not None:
            error = UpstreamReset(f"The connection to {self._target} was closed: {self._aborted}.")
        elif isinstance(exc, TimeoutError):
            error = _no_answer(self._target, "any more")
        elif exc is not None:
            error = UpstreamReset(f"The pod reset the connection to {self._target}.")
        self._pod.ended(self, error)
        if not self.lost.done():
            self.lost.set_result(None)
        self._protocol.connection_lost(StreamFailed(error) if error else None)

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self.transport.abort()

    def payload_bytes(self) -> tuple[int, int]:
        """Sent (and acknowledged by the pod) and received, as the kernel counts; zeros where it does not tell."""
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0 and hasattr(socket, "TCP_INFO"):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES.size)
            if len(info) == _TCP_INFO_BYTES.size:
                acked, received = _TCP_INFO_BYTES.unpack(info)
                self._counted = max(acked - 1, 0), received  # the SYN counts as one
        return self._counted


def _family(target: PodPort) -> socket.AddressFamily:
    try:
        address = ipaddress.ip_address(target.address)
    except ValueError as error:
        raise NotForwardable(f"The endpoint {target} has {target.address!r} as its address, no IP address.") from error
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def _no_answer(target: PodPort, when: str) -> DialTimeout:
    return DialTimeout(f"Pod {target} does not answer at {target.address} {when}.", command=_show(target))


def _why_not(error: OSError, target: PodPort) -> KubeTunnelError:
    """The refusal that a failed connect(2) stands for."""
    if error.errno == errno.ECONNREFUSED:
        return ConnectionRefused(f"Nothing listens on port {target.port} of pod {target.namespace}/{target.pod}.")
    if error.errno == errno.EHOSTUNREACH:
        return PodGone(f"Nobody has the address {target.address} of {target} any more.", command=_show(target))
    reason = error.strerror or str(error)
    return UpstreamReset(f"No connection to {target} at {target.address}: {reason}.", command=_show(target))


def _show(target: PodPort) -> str:
    return f"kubectl -n {target.namespace} get pod {target.pod} -o wide"
