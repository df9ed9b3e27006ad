"""A kubectl-style local listener: `svc/api 5432` on 127.0.0.1:5432, a pod chosen anew for each connection.

What differs from `kubectl port-forward`: a Service's pods are followed and balanced, a connection that fails costs
nobody else his, and where the port is taken a free one is found.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from kubetunnel.cluster.workloads import Reachable, Workloads
from kubetunnel.core.backoff import Backoff
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.endpoints import Target
from kubetunnel.core.errors import (
    ConnectionRefused,
    Forbidden,
    KubeTunnelError,
    Unauthenticated,
    UpstreamProtocol,
)
from kubetunnel.core.first_bytes import Protocol
from kubetunnel.core.local_forward import ObjectRef, PortPair
from kubetunnel.forward.attempts import Attempts, Choices
from kubetunnel.forward.departed import ClientSockets
from kubetunnel.forward.local_connection import READ_BUFFER_BYTES, LocalConnection, PodConnection
from kubetunnel.forward.local_sockets import LOOPBACK, bind
from kubetunnel.forward.pod_streams import PodStreams

logger = logging.getLogger(__name__)

# whoever speaks HTTP does so at once: on loopback the first bytes are there 0.1 ms after the connection. A server that
# speaks first, or a client that hesitates, waits for no longer than this
FIRST_BYTES_PATIENCE_S = 0.004
DRAIN_S = 2.0
RETRIES = 2  # the contract's retry.max and base delay
RETRY_DELAY_S = 0.1
TOLD_AGAIN_S = 60.0  # who tries by hand is to see the reason again; a client that tries on and on has told it already
_MAX_TOLD = 100

type IsUnhealthy = Callable[[PodStreams, PodPort], bool]


def _unchecked(forwards: PodStreams, pod_port: PodPort) -> bool:
    return False


class LocalListener:
    """Listens for one port of one object.

    Args:
        addresses: where to listen; of several only those that the machine has.
        retries, retry_delay_s: of a connection of which no byte has been taken yet.
        is_unhealthy: whether connections had better go to another pod of this cluster.

    `addresses` are the sockets' once it is started, `port` the object's own number where it is known.
    """

    def __init__(
        self,
        workloads: Workloads,
        forwards: PodStreams,
        ref: ObjectRef,
        pair: PortPair,
        *,
        addresses: Sequence[str] = LOOPBACK,
        retries: int = RETRIES,
        retry_delay_s: float = RETRY_DELAY_S,
        is_unhealthy: IsUnhealthy = _unchecked,
        rng: random.Random | None = None,
    ) -> None:
        self.ref = ref
        self.pair = pair
        self.addresses: tuple[tuple[str, int], ...] = ()
        self.port = pair.remote if isinstance(pair.remote, int) else 0
        self._hosts = addresses
        self._workloads = workloads
        self._forwards = forwards
        self._choices = Choices(rng or random.Random())  # noqa: S311 - balancing, no secret
        self._choices.is_unhealthy = is_unhealthy
        self._backoff = Backoff(retry_delay_s, cap_s=10 * retry_delay_s, retries=retries)
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], LocalConnection] = {}
        self._client_sockets: ClientSockets | None = None
        self._told: dict[str, float] = {}
        self._used_s: float | None = None
        self._closed = False

    def __str__(self) -> str:
        return f"{self.ref}:{self.pair.remote} of namespace {self.ref.namespace}{self._workloads.of_context}"

    def is_used_since(self, then_s: float) -> bool:
        """Whether a connection was led to a pod since this monotonic time, or is still there.

        Never of an object that was not found, nor of one without a ready pod.
        """
        return self._used_s is not None and (self._used_s >= then_s or bool(self._connections))

    async def start(self, *, check: bool = True) -> None:
        """Listen.

        Args:
            check: refuse where no connection would work now. Otherwise that is told to each connection alone.

        Raises:
            OSError: the local port that was asked for is taken, or not ours to take.
            KubeTunnelError: as `Workloads.reachable`; Forbidden where the right to forward is missing.
        """
        if check or not self.port:
            reachable = await self._workloads.reachable(self.ref, self.pair.remote)
            self.port = reachable.port
            if check:
                await self._check_right(reachable)
        wanted = self.port if self.pair.local is None else self.pair.local
        sockets = bind(self._hosts, wanted, or_free=self.pair.local is None)
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._client_sockets = ClientSockets()
        for listening in sockets:
            try:
                connection = partial(LocalConnection, self, buffer)
                server = await loop.create_server(connection, sock=listening, start_serving=False)
                self._servers.append(server)  # before it serves: who is cancelled then closes it, too
                await server.start_serving()
            except BaseException:
                for unused in sockets[len(self._servers) :]:
                    unused.close()
                await self.aclose(drain_s=0)
                raise
        names = [listening.getsockname() for listening in sockets]
        self.addresses = tuple((name[0], name[1]) for name in names)
        for host, port in self.addresses:
            logger.info("%s: requested %s -> %s", self, wanted or "any port", _shown(host, port))
        for host in {host for host, _ in self.addresses if host not in LOOPBACK and not host.startswith("127.")}:
            logger.warning("%s: %s is open to other machines, with your rights in the cluster.", self, host)

    async def _check_right(self, reachable: Reachable) -> None:
        """A right that is missing is told of now; what else fails with this pod may do with others, or later."""
        try:
            await self._forwards.warm_up(self._choices.rng.choice(reachable.targets).pod_port)
        except (Forbidden, Unauthenticated):
            raise
        except KubeTunnelError as error:
            logger.warning("%s: a connection would fail now: %s", self, error)

    async def aclose(self, *, drain_s: float = DRAIN_S) -> None:
        """Take no more connections, and end those that are there after `drain_s`."""
        self._closed = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        try:
            if self._connections:
                await asyncio.wait(self._connections, timeout=drain_s)
        finally:  # also where nobody waits for them any more
            for task in list(self._connections):
                task.cancel()
            if self._client_sockets is not None:
                self._client_sockets.close()
        if self._connections:
            await asyncio.wait(self._connections)
        if self.addresses:
            logger.info("%s: no longer on %s", self, ", ".join(_shown(*address) for address in self.addresses))
            self.addresses = ()

    # -- local_connection.Listener

    def accepted(self, client: LocalConnection) -> None:
        if self._closed:  # it was in the queue when the listener closed
            client.reset()
            return
        task = asyncio.get_running_loop().create_task(self._serve(client), name=f"local connection to {self}")
        if not task.done():
            self._connections[task] = client
            task.add_done_callback(lambda done: self._connections.pop(done))

    def is_departed(self, client: LocalConnection) -> bool | None:
        sockets = self._client_sockets
        return sockets.is_departed(client.peername, client.sockname) if sockets else None

    async def _serve(self, client: LocalConnection) -> None:
        """One connection, to its end. Supervision point: its failure is its own."""
        try:
            error = await self._relay(client)
            if error is None:
                await client.ended
        except KubeTunnelError as refusal:
            error = refusal
        except Exception:
            logger.exception("%s: a connection from %s failed unexpectedly", self, _shown(*client.peername))
            error = UpstreamProtocol("The connection failed in the tunnel itself.")
        except asyncio.CancelledError:
            client.reset()
            raise
        if error is not None and not client.ended.done():
            error.command = error.command or self._workloads.describe(self.ref)
            level = self._level(logging.WARNING, f"reset: {error}")
            logger.log(level, "%s: the connection from %s was reset: %s", self, _shown(*client.peername), error)
            client.reset()

    async def _relay(self, client: LocalConnection) -> KubeTunnelError | None:
        """Opens a stream, and another where that one is refused unheard. Why the last one ended, None for well."""
        shared = await client.spoken(FIRST_BYTES_PATIENCE_S) is Protocol.HTTP1
        reachable = await self._workloads.reachable(self.ref, self.pair.remote)
        self.port, self._used_s = reachable.port, time.monotonic()
        attempts = Attempts(
            _Place(reachable.targets, self._forwards),
            lambda _: self._choices,
            self._find_anew,
            self._backoff,
            client=client.peername[0] if reachable.sticky else None,
            shared=shared,
            tell=self._tell_again,
        )
        connection = partial(PodConnection, client, partial(self._heard, attempts))
        refused: ConnectionRefused | None = None
        while not client.ended.done():
            opening = attempts.open_another(refused, connection) if refused else attempts.open(connection)
            pod = await opening
            logger.debug("%s: %s goes to %s", self, _shown(*client.peername), attempts.target.pod_port)
            try:
                error = await pod.ended
            except asyncio.CancelledError:
                pod.transport.abort()
                raise
            if not (isinstance(error, ConnectionRefused) and pod.never_connected):
                if error is not None:
                    attempts.lost(error)
                return error
            refused = error
        return None

    async def _find_anew(self) -> _Place:
        reachable = await self._workloads.reachable(self.ref, self.pair.remote, fresh=True)
        return _Place(reachable.targets, self._forwards)

    def _heard(self, attempts: Attempts) -> None:
        """The pod answers: what fails from now on is news."""
        attempts.answered()
        self._told.clear()

    def _tell_again(self, line: str) -> None:
        logger.log(self._level(logging.INFO, line), "%s: %s", self, line)

    def _level(self, level: int, reason: str) -> int:
        """At which level this is told: DEBUG where it was told a moment ago, and no pod has answered since."""
        now = asyncio.get_running_loop().time()
        if now - self._told.get(reason, float("-inf")) < TOLD_AGAIN_S:
            return logging.DEBUG
        if len(self._told) >= _MAX_TOLD:
            self._told.clear()
        self._told[reason] = now
        return level


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a connection may go to, for `Attempts`."""

    targets: tuple[Target, ...]
    forwards: PodStreams

    def explain(self, target: Target, error: KubeTunnelError) -> None:
        """The listener does, whatever failed."""


class LocalForwards:
    """The local listeners of one cluster.

    Args:
        workloads, forwards: of the cluster; neither is closed by `aclose`.
        addresses, retries, retry_delay_s, is_unhealthy: as for a LocalListener.
    """

    def __init__(
        self,
        workloads: Workloads,
        forwards: PodStreams,
        *,
        addresses: Sequence[str] = LOOPBACK,
        retries: int = RETRIES,
        retry_delay_s: float = RETRY_DELAY_S,
        is_unhealthy: IsUnhealthy = _unchecked,
    ) -> None:
        self._workloads = workloads
        self._forwards = forwards
        self._addresses = addresses
        self._retries = retries
        self._retry_delay_s = retry_delay_s
        self._is_unhealthy = is_unhealthy
        self._listeners: list[LocalListener] = []

    @property
    def listeners(self) -> tuple[LocalListener, ...]:
        return tuple(self._listeners)

    async def open(self, ref: ObjectRef, pairs: Iterable[PortPair], *, check: bool = True) -> tuple[LocalListener, ...]:
        """A listener for each pair, or none at all. Raises as `LocalListener.start`."""
        opened: list[LocalListener] = []
        try:
            for pair in pairs:
                listener = LocalListener(
                    self._workloads, self._forwards, ref, pair,
                    addresses=self._addresses, retries=self._retries, retry_delay_s=self._retry_delay_s,
                    is_unhealthy=self._is_unhealthy,
                )  # fmt: skip
                await listener.start(check=check)
                opened.append(listener)
        except BaseException:
            for listener in opened:
                await listener.aclose(drain_s=0)
            raise
        self._listeners += opened
        return tuple(opened)

    async def close(self, listener: LocalListener) -> None:
        """One listener, with its connections."""
        self._listeners = [each for each in self._listeners if each is not listener]
        await listener.aclose()

    async def aclose(self, *, drain_s: float = DRAIN_S) -> None:
        listeners, self._listeners = self._listeners, []
        await asyncio.gather(*(listener.aclose(drain_s=drain_s) for listener in listeners))


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
