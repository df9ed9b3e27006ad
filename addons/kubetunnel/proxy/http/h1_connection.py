"""What our HTTP/1 client and server have in common: bodies with trailers, and errors that end the connection once.

mitmproxy's own raise NotImplementedError at a trailer (RFC 9112 section 7.1.2).
"""

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy

from __future__ import annotations

from abc import abstractmethod

import h11
from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestTrailers, ResponseTrailers
from mitmproxy.proxy.layers.http._http1 import Http1Connection, make_body_reader

from kubetunnel.proxy.http.h1_message import MAX_HEAD_BYTES, Framing


class KubeHttp1Connection(Http1Connection):
    """One side's messages; a layer without I/O."""

    ReceiveTrailers: type[RequestTrailers | ResponseTrailers]

    def expect_body(self, size: Framing) -> None:
        """To be called after a head."""
        self.body_reader = make_body_reader(-1 if size == "close" else size)
        self.state = self.read_body

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        assert self.stream_id is not None
        while True:
            try:
                part = self._read_part(event)
            except h11.ProtocolError as e:
                yield from self.message_broken(str(e), ended=isinstance(event, events.ConnectionClosed))
                return
            if part is None:
                return
            if isinstance(part, h11.EndOfMessage):
                if trailers := part.headers:
                    yield ReceiveHttp(self.ReceiveTrailers(self.stream_id, http.Headers(trailers.raw_items())))
                yield from self.message_ended()
                return
            if data := bytes(part.data):
                yield ReceiveHttp(self.ReceiveData(self.stream_id, data))

    def _read_part(self, event: events.Event) -> h11.Data | h11.EndOfMessage | None:
        if isinstance(event, events.ConnectionClosed):
            return self.body_reader.read_eof()
        part = self.body_reader(self.buf)
        if part is None and len(self.buf) > MAX_HEAD_BYTES:
            # data is taken as it comes, so this is the line of a chunk or the trailers
            raise h11.RemoteProtocolError("chunk line or trailers too long")
        return part

    def make_pipe(self) -> layer.CommandGenerator[None]:
        """What follows is not HTTP. mitmproxy takes line ends at its beginning for superfluous; here they are data."""
        self.state = self.passthrough
        if rest := self.buf.maybe_extract_at_most(len(self.buf)):
            yield from self.passthrough(events.DataReceived(self.conn, bytes(rest)))

    def close(self) -> layer.CommandGenerator[None]:
        """Ends the connection; what still comes of it concerns nobody."""
        self.state = self.done
        yield commands.CloseConnection(self.conn)

    def done(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()

    @abstractmethod
    def message_ended(self) -> layer.CommandGenerator[None]:
        """The message that is read is complete."""

    @abstractmethod
    def message_broken(self, message: str, *, ended: bool) -> layer.CommandGenerator[None]:
        """The message that is read will never be complete. `ended`: since the connection was closed."""
