"""SOCKS5 (RFC 1928) into the cluster: names are resolved by us, refusals are told by reply code.

A layer of our own, because mitmproxy's tells every failure as 4, ends a refused greeting with bytes that are not in the
RFC, and takes non-ASCII names for others. Its `proxyauth` option holds here too (RFC 1929).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.modes import Socks5AuthData, Socks5AuthHook

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.destination import open_asked_for
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.raw.layer import Transports, show_refusal
from kubetunnel.proxy.refusals import CODES

VERSION = 5

NO_AUTHENTICATION = 0x00
USERNAME_PASSWORD = 0x02
NO_ACCEPTABLE_METHODS = 0xFF
_AUTHENTICATION_VERSION = 1  # RFC 1929 section 2

_CONNECT = 1
_IPV4, _DOMAIN_NAME, _IPV6 = 1, 3, 4

SUCCEEDED = 0
HOST_UNREACHABLE = 4
COMMAND_NOT_SUPPORTED = 7
ADDRESS_TYPE_NOT_SUPPORTED = 8

_NO_ADDRESS = bytes([0, _IPV4, 0, 0, 0, 0, 0, 0])  # RSV, and a BND.ADDR and BND.PORT that no client has a use for


class Socks5Error(Exception):
    """The client's request cannot be served. `reply`: the bytes to answer, none where it does not speak SOCKS5."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Message[T]:
    """What was read at the beginning of a buffer, and how many bytes it took there."""

    value: T
    size: int


def read_greeting(data: bytes) -> Message[bytes] | None:
    """The methods that the client offers (section 3); None: more bytes are needed. Raises Socks5Error."""
    if data and data[0] != VERSION:
        raise Socks5Error(f"SOCKS version {data[0]} instead of 5.")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return Message(data[2 : 2 + data[1]], 2 + data[1])


def read_credentials(data: bytes) -> Message[tuple[str, str]] | None:
    """User name and password (RFC 1929 section 2); None: more bytes are needed. Raises Socks5Error."""
    if data and data[0] != _AUTHENTICATION_VERSION:
        raise Socks5Error(f"Version {data[0]} of the password authentication instead of 1.")
    texts = []
    end = 1
    for _ in range(2):
        if len(data) <= end or len(data) < end + 1 + data[end]:
            return None
        texts.append(data[end + 1 : end + 1 + data[end]].decode("utf-8", "backslashreplace"))
        end += 1 + data[end]
    return Message((texts[0], texts[1]), end)


def read_request(data: bytes) -> Message[tuple[str, int]] | None:
    """Host and port to connect to (section 4); None: more bytes are needed. Raises Socks5Error."""
    if data and data[0] != VERSION:
        raise Socks5Error(f"SOCKS version {data[0]} in a request instead of 5.")
    if len(data) < 5:
        return None
    command, address_type = data[1], data[3]
    sizes = {_IPV4: 4, _IPV6: 16, _DOMAIN_NAME: 1 + data[4]}
    if address_type not in sizes:
        raise Socks5Error(f"Address type {address_type} is unknown.", reply(ADDRESS_TYPE_NOT_SUPPORTED))
    end = 4 + sizes[address_type]
    if len(data) < end + 2:
        return None
    if command != _CONNECT:
        raise Socks5Error(f"Command {command} is not CONNECT.", reply(COMMAND_NOT_SUPPORTED))
    host = _host(address_type, data[4:end])
    return Message((host, int.from_bytes(data[end : end + 2])), end + 2)


def _host(address_type: int, address: bytes) -> str:
    if address_type != _DOMAIN_NAME:
        return str(ipaddress.ip_address(address))
    try:
        host = address[1:].decode("ascii")
    except UnicodeDecodeError as e:
        raise Socks5Error(f"The name {address[1:]!r} is not ASCII.", reply(HOST_UNREACHABLE)) from e
    if not host:
        raise Socks5Error("The name is empty.", reply(HOST_UNREACHABLE))
    return host


def reply(code: int) -> bytes:
    """The answer to a request (section 6)."""
    return bytes([VERSION, code]) + _NO_ADDRESS


class Socks5Layer(layer.Layer):
    """Reads the handshake, opens the destination, and hands on to a `FirstBytesLayer`.

    Args:
        failures: why an upstream did not open.
        transports: resets the client where there is no reply code for the failure.
    """

    def __init__(self, context: Context, failures: Failures, transports: Transports) -> None:
        super().__init__(context)
        self.failures = failures
        self.transports = transports
        self.child: layer.Layer | None = None
        self.state: Callable[[], layer.CommandGenerator[None]] = self.greeting
        self._buffer = b""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.child is not None:
            yield from self.child.handle_event(event)
        elif isinstance(event, events.DataReceived):
            self._buffer += event.data
            try:
                yield from self.state()
            except Socks5Error as e:
                yield commands.Log(f"SOCKS5: {e}")
                yield from self._end(e.reply)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._end()

    def _take(self, size: int) -> None:
        self._buffer = self._buffer[size:]

    def greeting(self) -> layer.CommandGenerator[None]:
        offered = read_greeting(self._buffer)
        if offered is None:
            return
        self._take(offered.size)
        options = self.context.options
        wanted = USERNAME_PASSWORD if "proxyauth" in options and options.proxyauth else NO_AUTHENTICATION
        if wanted not in offered.value:
            raise Socks5Error(f"The client does not offer method {wanted}.", bytes([VERSION, NO_ACCEPTABLE_METHODS]))
        yield commands.SendData(self.context.client, bytes([VERSION, wanted]))
        self.state = self.request if wanted == NO_AUTHENTICATION else self.authentication
        yield from self.state()

    def authentication(self) -> layer.CommandGenerator[None]:
        credentials = read_credentials(self._buffer)
        if credentials is None:
            return
        self._take(credentials.size)
        data = Socks5AuthData(self.context.client, *credentials.value)
        yield Socks5AuthHook(data)
        if not data.valid:
            raise Socks5Error("The password is wrong.", bytes([_AUTHENTICATION_VERSION, 1]))
        yield commands.SendData(self.context.client, bytes([_AUTHENTICATION_VERSION, 0]))
        self.state = self.request
        yield from self.state()

    def request(self) -> layer.CommandGenerator[None]:
        destination = read_request(self._buffer)
        if destination is None:
            return
        self._take(destination.size)
        self.context.server.address = destination.value
        error = yield from open_asked_for(self.context, self.failures)
        if error is not None:
            yield from self._refuse(error)
            return
        yield commands.SendData(self.context.client, reply(SUCCEEDED))
        self.child = FirstBytesLayer(self.context)
        yield from self.child.handle_event(events.Start())
        if self._buffer:
            yield from self.child.handle_event(events.DataReceived(self.context.client, self._buffer))
            self._take(len(self._buffer))

    def _refuse(self, error: KubeTunnelError) -> layer.CommandGenerator[None]:
        code = CODES[error.reason].socks5
        if code is None:
            self.transports.reset(self.context.client)
        else:
            yield commands.SendData(self.context.client, reply(code))
        yield from show_refusal(self.context, error)
        yield from self._end()

    def _end(self, last: bytes = b"") -> layer.CommandGenerator[None]:
        if last:
            yield commands.SendData(self.context.client, last)
        yield commands.CloseConnection(self.context.client)
        self.state = self._ignore

    def _ignore(self) -> layer.CommandGenerator[None]:
        self._take(len(self._buffer))
        yield from ()
