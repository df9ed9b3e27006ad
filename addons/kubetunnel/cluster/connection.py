"""Opens one connection to an API server: TCP, through the kubeconfig's proxy-url where there is one, then TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import aiofastnet
from aiohappyeyeballs import start_connection

from kubetunnel.cluster.addresses import Addresses
from kubetunnel.cluster.kubeconfig import Cluster

RESOLVE_SHARE = 0.8  # of the time that a connection may take
CLOSE_TIMEOUT_S = 1.0  # for the peer's close_notify; asyncio's 30 s would hold up the end of the program


async def open_connection[P: asyncio.BaseProtocol](
    cluster: Cluster,
    addresses: Addresses,
    context: ssl.SSLContext | None,
    protocol_factory: Callable[[], P],
    *,
    bulk: bool = False,
    timeout_s: float,
) -> tuple[asyncio.Transport, P]:
    """A connection without HTTP/2.

    Args:
        addresses: resolves the server's name where there is no proxy to do it.
        context: None for an http:// server.
        bulk: for a connection that carries port-forwards.
        timeout_s: that the caller grants: a name that is not resolved by then is to blame, and not the server.

    Raises:
        OSError, ValueError: see `why_failed`.
    """
    loop = asyncio.get_running_loop()
    url = urlsplit(cluster.server)
    host, port = url.hostname or "", url.port or (443 if context else 80)
    name = (cluster.tls_server_name or host) if context else None
    close_timeout_s = CLOSE_TIMEOUT_S if context else None
    if cluster.proxy_url:
        from kubetunnel.cluster.proxied import open_through_proxy  # late: few have a proxy

        connected = await open_through_proxy(cluster.proxy_url, host, port)
    else:
        # not create_connection's own: asyncio's staggered race fails under eager tasks (cpython 3.12, 3.13.0)
        found = await addresses.resolve(host, port, patience_s=RESOLVE_SHARE * timeout_s)
        connected = await start_connection(found, happy_eyeballs_delay=0.25)  # RFC 8305 section 5
    try:
        # for bulk aiofastnet: 10 to 20 % less CPU and a third of the memory a connection; but asyncio's tells what the
        # server's TLS alert says of our certificate, and the API's first request comes before any port-forward
        create_connection = partial(aiofastnet.create_connection, loop) if bulk else loop.create_connection
        transport, protocol = await create_connection(
            protocol_factory,
            sock=connected,
            ssl=context,
            server_hostname=name,
            ssl_shutdown_timeout=close_timeout_s,
        )
    except asyncio.CancelledError:
        # TLS may have begun: its transport says good-bye for a while, on a descriptor that would be another's by then
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
        raise
    except BaseException:
        connected.close()
        raise
    if (connection := transport.get_extra_info("socket")) is not None:
        keep_alive(connection)
    return transport, protocol


def why_failed(error: OSError | ValueError) -> str:
    """A clause for a person, e.g. "Connection refused"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted, {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it, {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"its name is not resolved, {error.strerror}"
    if isinstance(error, ValueError):  # UnicodeError too: what the resolver or TLS cannot take
        return f"its address cannot be used, {error}"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def keep_alive(connection: socket.socket) -> None:
    """For what sits idle for minutes: NAT boxes must not forget it, and a dead peer is noticed in 30 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # macOS and Windows name some of them differently, and keep their defaults
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
