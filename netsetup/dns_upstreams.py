"""Questions that are not ours: passed on to the resolvers that the system had before, as they came but for the id.

RFC 5452 9: an id that cannot be guessed, a source port of its own for every query (the kernel picks it), only the
server's own address is heard, and a reply counts if it repeats the question. RFC 7766 5: TCP for who came by TCP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from kubetunnel.core.errors import KubeTunnelError
from netsetup.dns_records import Rcode
from netsetup.dns_wire import is_reply, rcode_of
from netsetup.shared_calls import SharedCalls

logger = logging.getLogger(__name__)

TIMEOUT_S = 4.5  # a little less than the 5 s after which glibc asks again (resolv.conf(5), timeout)
NEXT_AFTER_S = 1.0  # a resolver this slow gets company
SHUNNED_S = 30.0  # one that did not answer is asked last, for so long
MAX_ASKED = 3  # glibc's MAXNS

type Server = tuple[str, int]


class NoUpstreamAnswered(KubeTunnelError):  # noqa: N818 - named as the rest of the tree
    """None of the system's resolvers gave an answer in time."""

    title = "No resolver answered"


class Upstreams:
    """The system's former resolvers.

    Args:
        servers: addresses and ports, the preferred one first.
        timeout_s: how long all of them together may take.
        next_after_s: how long one is waited for until the next is asked as well.
    """

    def __init__(
        self, servers: Sequence[Server], *, timeout_s: float = TIMEOUT_S, next_after_s: float = NEXT_AFTER_S
    ) -> None:
        self.servers = tuple(servers)
        self._timeout_s = timeout_s
        self._next_after_s = next_after_s
        self._shunned_until: dict[Server, float] = {}
        self._calls: SharedCalls[tuple[bytes, bool], bytes] = SharedCalls()
        self._waiting: dict[tuple[str, int], asyncio.Future[bytes]] = {}

    async def ask(self, query: bytes, *, tcp: bool) -> bytes:
        """The reply to a well-formed query, with the query's id.

        Raises:
            NoUpstreamAnswered
        """
        reply = await self._calls.run((query[2:], tcp), lambda: self._race(query, tcp))
        return query[:2] + reply[2:]

    def refuse_own(self, sender: tuple[str, int]) -> bool:
        """Whether a packet that came to us is one of ours: that resolver is ourselves, and its exchange fails."""
        reply = self._waiting.get(sender)
        if reply is not None and not reply.done():
            reply.set_exception(ConnectionError("it passes our questions back to us"))
        return reply is not None

    async def aclose(self) -> None:
        """Give up all that is under way."""
        await self._calls.aclose()

    async def _race(self, query: bytes, tcp: bool) -> bytes:
        """The first good reply; the servers start one after another. A refusal counts only if nothing better comes."""
        clock = asyncio.get_running_loop().time
        started = clock()
        preferred = sorted(self.servers, key=lambda server: self._shunned_until.get(server, 0.0) > started)
        order = (preferred * 2)[:MAX_ASKED]  # a second time: datagrams get lost
        asked: dict[asyncio.Task[bytes | None], tuple[Server, float]] = {}
        refusal: bytes | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while order or asked:
                    if order:
                        server = order.pop(0)
                        asked[asyncio.create_task(self._exchange(server, query, tcp))] = (server, clock())
                    patience_s = self._next_after_s if order else None
                    done, _ = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        (server, _), reply = asked.pop(task), task.result()
                        if reply and rcode_of(reply) not in (Rcode.SERVFAIL, Rcode.REFUSED):
                            self._shunned_until.pop(server, None)
                            return reply
                        refusal = reply or refusal
                        order = [other for other in order if other != server]
        except TimeoutError:
            pass  # what is said of it comes below
        finally:
            await self._give_up(asked)
        if refusal is not None:
            return refusal
        tried = ", ".join(f"{host} port {port}" for host, port in self.servers) or "there is none"
        raise NoUpstreamAnswered(f"None of the system's resolvers answered ({tried}).")

    async def _give_up(self, asked: dict[asyncio.Task[bytes | None], tuple[Server, float]]) -> None:
        now = asyncio.get_running_loop().time()
        for task, (server, since) in asked.items():
            if now - since >= self._next_after_s:
                self._shun(server, "no answer")
            task.cancel()
        if asked:
            await asyncio.wait(asked)

    def _shun(self, server: Server, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._shunned_until.get(server, 0.0) <= now:
            logger.debug("Resolver %s port %s is asked last for %g s: %s", *server, SHUNNED_S, reason)
        self._shunned_until[server] = now + SHUNNED_S

    async def _exchange(self, server: Server, query: bytes, tcp: bool) -> bytes | None:
        """The server's reply, None where it cannot be asked."""
        own = secrets.token_bytes(2) + query[2:]
        try:
            return await (self._by_tcp(server, own) if tcp else self._by_udp(server, own))
        except (OSError, asyncio.IncompleteReadError) as error:
            self._shun(server, str(error))
            return None

    async def _by_udp(self, server: Server, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        transport, reply = await loop.create_datagram_endpoint(lambda: _Reply(query), remote_addr=server)
        local = transport.get_extra_info("sockname")[:2]
        self._waiting[local] = reply.came
        try:
            transport.sendto(query)
            return await reply.came
        finally:
            del self._waiting[local]
            transport.abort()

    async def _by_tcp(self, server: Server, query: bytes) -> bytes | None:
        reader, writer = await asyncio.open_connection(*server)
        try:
            writer.write(len(query).to_bytes(2) + query)
            reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            return reply if is_reply(reply, query) else None
        finally:
            writer.transport.abort()


class _Reply(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers the query; whatever else comes is not heard."""

    def __init__(self, query: bytes) -> None:
        self._query = query
        self.came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.came.done() and is_reply(data, self._query):
            self.came.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.came.done():
            self.came.set_exception(exc)  # nobody listens there (ICMP): no need to wait

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.error_received(exc)
