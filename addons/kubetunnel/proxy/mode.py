"""The `kube` proxy mode: one listening port for the cluster's Services, on loopback unless told otherwise.

mitmproxy takes modes of others: the two classes register themselves when this module is imported. It parses `--mode`,
and begins to open the listeners of the default mode, before it loads a script; `Listening` puts our mode in their place
before a socket is bound.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Iterable
from typing import Any, ClassVar, Literal

from mitmproxy import ctx, optmanager
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import layer, mode_servers, mode_specs
from mitmproxy.proxy.context import Context

from kubetunnel.doctor.port_owners import owner_of
from kubetunnel.listening_ports import DEFAULT_PORTS, another_port
from kubetunnel.proxy.connection import KubeConnection
from kubetunnel.redirection import LOOPBACK, LOOPBACK_IPV6
from netsetup.errors import StateError
from netsetup.state import State, read_state

logger = logging.getLogger(__name__)

# mitmproxy's own would end a stream that idles for minutes, which gRPC and WebSocket streams may well do
_LONG_LIVED = {"tcp_timeout": 7 * 24 * 3600, "http2_ping_keepalive": 0}


class KubeMode(mode_specs.ProxyMode):
    """`kube[@[address:]port]`."""

    description = "Kubernetes Services"
    transport_protocol: ClassVar[Literal["tcp"]] = "tcp"

    def __post_init__(self) -> None:
        if self.data:
            raise ValueError("mode takes no arguments")

    def listen_host(self, default: str | None = None) -> str:
        """Loopback where the user asked for no address, unlike mitmproxy's own modes."""
        return super().listen_host(default) or LOOPBACK

    def get_state(self) -> str:
        # recorded flows name the mode of their client; mitmproxy without this addon would not load "kube"
        return mode_specs.RegularMode.type_name


class KubeServerInstance(mode_servers.AsyncioServerInstance[KubeMode]):
    """The listener. What a connection speaks is decided in the `next_layer` hook."""

    def make_top_layer(self, context: Context) -> layer.Layer:
        return KubeConnection(context)

    async def _start(self) -> None:
        await asyncio.sleep(0)  # options for us that were given before we were loaded are set by then
        host = self.mode.listen_host(ctx.options.listen_host)
        machine = _machine()
        *others, last = self._ports(machine)
        for port in others:
            try:
                self._servers = await self.listen(host, port)
                break
            except OSError as e:
                logger.info("Port %d may not be had (%s), so it is another one.", port, _reason(e, host, port))
        else:
            self._servers = await self._listen(host, last)
        if host == LOOPBACK and machine is not None and machine.redirected and machine.dns_ip.version == 6:
            port = self.listen_addrs[0][1]
            self._servers = [*self._servers, *await self._listen(LOOPBACK_IPV6, port)]
        _warn_of([host])

    def _ports(self, machine: State | None) -> tuple[int, ...]:
        """Those to try, in order: what the user asked for, else that which virtual IPs lead to, else the contract's."""
        asked_for = (self.mode.custom_listen_port, ctx.options.listen_port, ctx.options.kube_proxy_port)
        awaited = (machine.proxy_port,) if machine is not None and machine.redirected else DEFAULT_PORTS
        return next(((port,) for port in asked_for if port is not None), awaited)

    async def _listen(self, host: str, port: int) -> list[Any]:
        try:
            return await self.listen(host, port)
        except OSError as e:
            where = f"[{host}]" if ":" in host else host
            raise OSError(
                f"Cannot listen on {where}:{port}: {_reason(e, host, port)}. Another port: --port {another_port(port)}"
            ) from e


def _reason(error: OSError, host: str, port: int) -> str:
    # asyncio's own text repeats address and errno
    reason = os.strerror(error.errno) if error.errno else str(error)
    owner = owner_of("tcp", host, port) if error.errno == errno.EADDRINUSE else None
    return f"{reason}, by {owner}" if owner else reason


def _machine() -> State | None:
    try:
        return read_state()
    except StateError:
        return None  # told of by who looks at it each second


def listening_addresses() -> tuple[tuple[str, int], ...]:
    """Where the mode listens now, (host, port); none outside mitmproxy, in other modes, and before the start."""
    master = getattr(ctx, "master", None)
    proxyserver = master.addons.get("proxyserver") if master is not None else None
    instances = proxyserver.servers if proxyserver is not None else ()
    return tuple(
        (address[0], address[1])
        for instance in instances
        if isinstance(instance, KubeServerInstance)
        for address in instance.listen_addrs
    )


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves a connection that a listener of ours accepted elsewhere, as one that came to the listening port."""
    for instance in ctx.master.addons.get("proxyserver").servers:
        if isinstance(instance, KubeServerInstance):
            await instance.handle_stream(reader, writer)
            return
    writer.close()


class Listening:
    """Takes the place of mitmproxy's default mode, where the user asked for none."""

    name = "kubetunnel_listening"

    def __init__(self) -> None:
        self._started: asyncio.Task[bool] | None = None

    def load(self, loader: Any) -> None:
        proxyserver: Proxyserver = ctx.master.addons.get("proxyserver")
        if proxyserver.is_running:
            return
        for option, value in _LONG_LIVED.items():
            if not _was_set(option):
                ctx.options.update(**{option: value})
        if _was_set("mode"):
            if "transparent" in ctx.options.mode and not _was_set("connection_strategy"):
                # a Service is found by its Host; before that, mitmproxy would dial an address that nobody has
                ctx.options.update(connection_strategy="lazy")
                logger.info("Transparent mode: connection_strategy is lazy, so that requests are routed by their Host.")
            return
        _withdraw_default_mode(proxyserver)
        ctx.options.update(mode=[KubeMode.type_name])
        self._started = asyncio.get_running_loop().create_task(proxyserver.setup_servers(), name="kube mode starts")

    def running(self) -> Awaitable[bool] | None:
        if self._started is None:  # mitmproxy's own modes listen on every address, unless told otherwise
            proxyserver: Proxyserver = ctx.master.addons.get("proxyserver")
            _warn_of(address[0] for instance in proxyserver.servers for address in instance.listen_addrs)
        # awaited at the start: a port that is taken ends the program; a reload has nothing to wait for
        return self._started

    def done(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.cancel()


def _was_set(option: str) -> bool:
    """Whether the user gave this option a value, be it the default one."""
    return ctx.options._options[option].value is not optmanager.unset  # noqa: SLF001 - no public question for it


def _withdraw_default_mode(proxyserver: Proxyserver) -> None:
    """Cancels listeners that are starting: mitmproxy's default would listen on every address of the machine."""
    starting = {id(instance) for instance in proxyserver.servers}
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and id(frame.f_locals.get("self")) in starting:
            _close_half_started(coroutine)
            task.cancel("superseded by the kube mode")
    logging.getLogger("mitmproxy.addons.proxyserver").addFilter(_not_superseded)


def _close_half_started(coroutine: Any) -> None:
    """With a literal address asyncio has bound the socket by now, and cancelling alone would leave it listening."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        server = frame.f_locals.get("server") if frame is not None else None
        if isinstance(server, asyncio.Server):
            server.close()
        coroutine = getattr(coroutine, "cr_await", None)


def _not_superseded(record: logging.LogRecord) -> bool:
    # Servers.update logs the result of each start as an error, a cancelled one as an empty one, and errors end mitmdump
    return record.getMessage() not in ("", "superseded by the kube mode")


def _warn_of(hosts: Iterable[str]) -> None:
    for host in dict.fromkeys(hosts):
        if not _is_loopback(host):
            logger.warning(
                "Listening on %s: everyone who can reach this address uses the cluster with your rights.", host
            )


def _is_loopback(host: str) -> bool:
    try:
        addresses = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return host == "localhost"
    return all(str(sockaddr[0]).startswith("127.") or sockaddr[0] == "::1" for *_, sockaddr in addresses)
