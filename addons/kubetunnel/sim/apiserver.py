"""The simulated API server: TLS connections, authentication, authorisation, and the hand-over of port-forwards.

The order of the checks is that of kube-apiserver's handler chain: who is it (401), may they (403), is there such a
thing (404). The answers themselves are in answers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kubetunnel.sim.answers import Answers
from kubetunnel.sim.connection import TEXT_TYPE, Connection, ProtocolError, Request
from kubetunnel.sim.credentials import Credentials
from kubetunnel.sim.listoptions import RequestInfo, parse_request
from kubetunnel.sim.rbac import User
from kubetunnel.sim.status import StatusError, forbidden, forbidden_resource
from kubetunnel.sim.store import Store

logger = logging.getLogger(__name__)

KEPT_REQUESTS = 10_000  # bounds the memory of a long --demo
TLS_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 1.0
READ_BUFFER_BYTES = 256 * 1024  # bulk through port-forwards; a request's head may be as long

# takes over the connection of an upgrade: the request, its connection, namespace and name of the pod; or StatusError
type PortForward = Callable[[Request, Connection, str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request as the server saw it; `connection` numbers the TLS connections, to count round trips by."""

    verb: str  # get, list, watch, create, …
    path: str
    user: str  # "" where the credentials were refused
    connection: int


class ApiServer:
    """Serves `store` to the users of `credentials`. The attributes without underscore are switches of the tests."""

    def __init__(self, store: Store, credentials: Credentials, context: ssl.SSLContext, forward: PortForward) -> None:
        self.requests: list[ApiRequest] = []
        self.latency_s = 0.0  # added before each answer
        self.websocket_needs_create = False  # the right to `create` also for a GET, as from Kubernetes 1.35
        self.answers = Answers(store)
        self._credentials = credentials
        self._context = context
        self._forward = forward
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._accepted = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (that given, or a free one for 0)."""
        # not at once: start_server cancelled in its last step would leave a listening socket that nobody knows
        self._server = await asyncio.start_server(
            self._accept, host, port, ssl=self._context, limit=READ_BUFFER_BYTES, start_serving=False,
            ssl_handshake_timeout=TLS_TIMEOUT_S, ssl_shutdown_timeout=TLS_TIMEOUT_S,
        )  # fmt: skip
        await self._server.start_serving()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and cut every connection, those of port-forwards too."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await self.cut_connections()
        with contextlib.suppress(TimeoutError):  # a TLS handshake under way ends at its own timeout at the latest
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await server.wait_closed()

    async def cut_connections(self) -> None:
        """Cut every connection, as a load balancer that fails over."""
        tasks = list(self._connections)
        for task, connection in list(self._connections.items()):
            connection.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # the handshake was under way when the server stopped
            writer.transport.abort()
            return
        self._accepted += 1
        connection = Connection(reader, writer)
        task = asyncio.get_running_loop().create_task(self._serve(connection, self._accepted))
        self._connections[task] = connection
        task.add_done_callback(self._connection_ended)

    def _connection_ended(self, task: asyncio.Task[None]) -> None:
        """The supervision point: what a connection failed of is logged, and no other connection suffers."""
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()):
            logger.error("simulated API server: a connection failed", exc_info=error)

    async def _serve(self, connection: Connection, number: int) -> None:
        try:
            try:
                while request := await connection.read_request():
                    if await self._answer(connection, request, number):
                        break
            except ProtocolError as e:
                await connection.respond(e.code, f"{e}\n".encode(), TEXT_TYPE, [("Connection", "close")])
        except OSError as e:  # TimeoutError too
            logger.debug("simulated API server: connection %s ended: %s", number, e)
        finally:
            await connection.aclose()

    async def _answer(self, connection: Connection, request: Request, number: int) -> bool:
        """Answer one request; True where the connection was taken over."""
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        info = parse_request(request.method, request.path, request.query)
        name = ""
        try:
            try:
                user = self._authenticate(connection, request)
                name = user.name
            finally:
                self._record(ApiRequest(info.verb, info.path, name, number))
            self._authorize(user, info)
            if (info.group, info.resource, info.subresource) == ("", "pods", "portforward"):
                await self._forward(request, connection, info.namespace, info.name)
                return True
            await self.answers.answer(connection, request, info, user)
        except StatusError as e:
            await connection.respond_json(e.code, e.status(), [("Retry-After", "1")] if e.code == 504 else ())
        return False

    def _authenticate(self, connection: Connection, request: Request) -> User:
        user = self._credentials.authenticate(request.headers.get("authorization", ""), connection.peer_certificate())
        name = request.headers.get("impersonate-user")
        if name is None:
            return user
        if not user.may("impersonate", "users", name=name):
            raise forbidden_resource(user.name, "impersonate", "", "users", name=name)
        return self._credentials.user(name)

    def _authorize(self, user: User, info: RequestInfo) -> None:
        if not info.resource:
            if not user.may_get_path(info.path):
                raise forbidden(user.name, info.verb, info.path)
            return
        verb = "create" if info.subresource == "portforward" and self.websocket_needs_create else info.verb
        where = {"subresource": info.subresource, "namespace": info.namespace, "name": info.name}
        if not user.may(verb, info.resource, **where):
            raise forbidden_resource(user.name, verb, info.group, info.resource, **where)

    def _record(self, request: ApiRequest) -> None:
        self.requests.append(request)
        if len(self.requests) > KEPT_REQUESTS:
            del self.requests[: KEPT_REQUESTS // 2]
