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
from kubetunnel.forward.direct_stream import DirectPod, DirectStream, no_answer, show
from kubetunnel.forward.facts import POD_ENDS, ForwardBooks, ForwardFacts
from kubetunnel.forward.pod_streams import PodStreams

CONNECT_TIMEOUT_S = 3.5  # a lost SYN is sent again after 1 s and after 3 s (RFC 6298 2.1, 5.5)
IDLE_TIMEOUT_S = 300.0  # the contract's pool.idle_timeout


class DirectConnections(PodStreams):
    """TCP connections to the pods of one cluster.

    Args:
        connect_timeout_s: how long an open waits for a pod's answer.
        idle_timeout_s: how long the facts of a pod to which nothing is open are kept.
        of_context: which cluster, for the log; "" where there is no other.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        of_context: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of_context = of_context
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._pods: dict[tuple[str, str], DirectPod] = {}
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

    async def warm_up(self, target: PodPort) -> None:
        """Nothing can be done: a connection is its pod's at once, and no right is needed for it."""

    def open_streams(self, namespace: str, pod: str) -> int:
        """Connections to the pod that are open now."""
        found = self._pods.get((namespace, pod))
        return len(found.connections) if found else 0

    def forwards(self) -> list[ForwardFacts]:
        """A copy of what there is to know of the connections to each pod in use."""
        self._forget_idle()
        return [pod.facts() for pod in self._pods.values()]

    def drain(self, namespace: str, pod: str, reason: str = POD_ENDS) -> None:
        """The pod ends. What is open runs on to its end; that it gets no more is the business of who chooses."""
        found = self._pods.get((namespace, pod))
        if found is not None and found.connections:
            found.books.change("draining", reason)
        elif found is not None and not found.dials:
            found.books.change("closed", reason)

    async def aclose(self) -> None:
        """Close everything; connections that still run end with UpstreamReset."""
        self._closed = True
        lost = []
        for pod in self._pods.values():
            for connection in list(pod.connections):
                lost.append(connection.lost)
                connection.cut("the tunnel ends")
        if lost:
            await asyncio.wait(lost)
        self._pods.clear()

    async def _connect[P: asyncio.Protocol](
        self, pod: DirectPod, target: PodPort, protocol_factory: Callable[[], P]
    ) -> tuple[asyncio.Transport, P]:
        loop = asyncio.get_running_loop()
        connecting = socket.socket(_family(target), socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.sock_connect(connecting, (target.address, target.port))
                self._refuse_if_closed()
                protocol = protocol_factory()
                _, stream = await loop.create_connection(lambda: DirectStream(pod, target, protocol), sock=connecting)
        except TimeoutError as error:
            connecting.close()
            raise no_answer(target, f"within {self._connect_timeout_s:g} s") from error
        except OSError as error:
            connecting.close()
            raise _why_not(error, target) from error
        except BaseException:
            connecting.close()
            raise
        return stream, protocol

    def _pod(self, namespace: str, name: str) -> DirectPod:
        self._refuse_if_closed()
        key = (namespace, name)
        if key not in self._pods:
            self._forget_idle()
            self._pods[key] = DirectPod(ForwardBooks(namespace, name, self._of_context), self._clock)
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


def _family(target: PodPort) -> socket.AddressFamily:
    try:
        address = ipaddress.ip_address(target.address)
    except ValueError as error:
        raise NotForwardable(f"The endpoint {target} has {target.address!r} as its address, no IP address.") from error
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def _why_not(error: OSError, target: PodPort) -> KubeTunnelError:
    """The refusal that a failed connect(2) stands for."""
    if error.errno == errno.ECONNREFUSED:
        return ConnectionRefused(f"Nothing listens on port {target.port} of pod {target.namespace}/{target.pod}.")
    if error.errno == errno.EHOSTUNREACH:
        return PodGone(f"Nobody has the address {target.address} of {target} any more.", command=show(target))
    reason = error.strerror or str(error)
    return UpstreamReset(f"No connection to {target} at {target.address}: {reason}.", command=show(target))
