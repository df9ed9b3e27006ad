"""The HTTP/1.1 request that turns a connection to the API server into a port-forward (RFC 9110 7.8, RFC 6455 4).

A refusal leaves the connection as it is, so that the next protocol is tried on it without another handshake.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import h11

from kubetunnel.cluster.answers import retry_after_s
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError, Unauthenticated, UpstreamProtocol
from kubetunnel.forward.upstream import Upstream

MAX_BODY_BYTES = 64 * 1024  # of a refusal: a Status is 1 KiB
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

type HeaderList = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Any answer but 101."""

    status: int
    body: bytes
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One upgrade request: what is asked for, and what the answer must say."""

    method: str
    upgrade: str
    target: str
    headers: tuple[tuple[str, str], ...]
    accept: str = ""  # Sec-WebSocket-Accept


def spdy_offer(path: str) -> Offer:
    """SPDY/3.1 for port-forwards (apimachinery's portforward.k8s.io)."""
    headers = (("X-Stream-Protocol-Version", "portforward.k8s.io"), ("Content-Length", "0"))
    return Offer("POST", "SPDY/3.1", path, headers)


def websocket_offer(path: str, port: int, subprotocols: Sequence[str]) -> Offer:
    """WebSocket with one of `subprotocols`. v4.channel.k8s.io wants the port in the query; the tunnel does not mind."""
    key = base64.b64encode(os.urandom(16))
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())
    headers = (
        ("Sec-WebSocket-Key", key.decode()),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", ", ".join(subprotocols)),
    )
    return Offer("GET", "websocket", f"{path}?ports={port}", headers, accept.decode())


class UpgradeConnection(asyncio.Protocol):
    """A fresh connection: offers in turn, until one is taken and the connection is the upstream's."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Upstream | Refusal] | None = None
        self._make: Callable[[str], Upstream] | None = None
        self._accept = ""
        self._status = 0
        self._retry_after_s: float | None = None
        self._body = bytearray()

    @property
    def reusable(self) -> bool:
        """Whether another offer can be made on this connection."""
        open_ = self._transport is not None and not self._transport.is_closing()
        return open_ and self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE

    async def request(self, offer: Offer, headers: HeaderList, make: Callable[[str], Upstream]) -> Upstream | Refusal:
        """Make an offer.

        Args:
            headers: Host and what says who we are.
            make: the upstream for the protocol that was taken, as the answer names it. Raises UpstreamProtocol.
        Raises:
            ClusterUnreachable: the connection ended before an answer.
            UpstreamProtocol: the answer is no HTTP, or no answer to the offer.
            Unauthenticated: the credentials do not fit into a header.
        """
        assert self._transport is not None  # noqa: S101  (made by ClusterAccess.connect)
        self._answer = asyncio.get_running_loop().create_future()
        self._make, self._accept = make, offer.accept
        self._body.clear()
        fields = [*headers, ("Connection", "Upgrade"), ("Upgrade", offer.upgrade), *offer.headers]
        raw = [(name.encode(), value.encode()) for name, value in fields]  # a user to impersonate may be no ASCII
        try:
            request = h11.Request(method=offer.method, target=offer.target, headers=raw)
        except h11.LocalProtocolError:  # h11's message quotes the header, which may be the token
            raise Unauthenticated("The credentials have characters that no HTTP header can carry.") from None
        if self._transport.is_closing():
            raise ClusterUnreachable("The API server closed the connection.")
        self._transport.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        return await self._answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # by its interface: asyncio's signature is wider

    def data_received(self, data: bytes) -> None:
        self._advance(data)

    def eof_received(self) -> None:
        self._advance(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc else "."
        self._fail(ClusterUnreachable(f"The API server closed the connection before it answered{reason}"))

    def _advance(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()
            return
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
                if self._take(event):
                    return
        except h11.RemoteProtocolError as error:
            if data:
                self._fail(UpstreamProtocol(f"The API server's answer to a port-forward is no HTTP: {error}."))
            else:
                self._fail(ClusterUnreachable("The API server closed the connection before it answered."))
            self.abort()

    def _take(self, event: object) -> bool:
        """True when the request is answered."""
        if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            self._switch(dict(event.headers))
            return True
        if isinstance(event, h11.Response):
            self._status = event.status_code
            self._retry_after_s = retry_after_s(dict(event.headers).get(b"retry-after", b"").decode("latin-1"))
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > MAX_BODY_BYTES:
                self._fail(UpstreamProtocol("The API server's refusal of a port-forward has no end."))
                self.abort()
                return True
        elif isinstance(event, h11.EndOfMessage):
            self._end(Refusal(self._status, bytes(self._body), self._retry_after_s))
            return True
        return False

    def _end(self, refusal: Refusal) -> None:
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(refusal)

    def _switch(self, headers: dict[bytes, bytes]) -> None:
        assert self._transport is not None and self._make is not None and self._answer is not None  # noqa: S101
        try:
            if self._accept and headers.get(b"sec-websocket-accept", b"").decode("latin-1") != self._accept:
                raise UpstreamProtocol("The API server's WebSocket answer is none to our request.")
            taken = headers.get(b"sec-websocket-protocol", b"") if self._accept else headers.get(b"upgrade", b"")
            upstream = self._make(taken.decode("latin-1"))
        except KubeTunnelError as error:
            self._fail(error)
            self.abort()
            return
        trailing = self._http.trailing_data[0]
        self._transport.set_protocol(upstream)
        upstream.connection_made(self._transport)
        self._answer.set_result(upstream)
        if trailing:
            upstream.receive(memoryview(trailing))

    def _fail(self, error: KubeTunnelError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
