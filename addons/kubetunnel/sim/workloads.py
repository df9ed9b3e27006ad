"""What runs in a pod of the simulated cluster: the programs of the real demo's echo.go, on real loopback sockets.

Each pod has listeners of its own on ephemeral ports; `listen_address` says where a port of the pod really is. The
runtime's side of a port-forward (runtime.py) dials it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Callable
from functools import cache
from typing import Final

from kubetunnel.sim import tcp_echo
from kubetunnel.sim.certs import CertificateAuthority, KeyPair
from kubetunnel.sim.grpc_echo import GrpcEcho
from kubetunnel.sim.http_echo import HttpEcho
from kubetunnel.sim.http_server import HttpServer
from kubetunnel.sim.listener import Listener, Serve

logger = logging.getLogger(__name__)

HTTP_PORT: Final = 8080
HTTPS_PORT: Final = 8443
GRPC_PORT: Final = 9090
GRPCS_PORT: Final = 9443
RESET_PORT: Final = 9002
IPV6_PORT: Final = 9006


class Workload:
    """The programs of one pod.

    Args:
        pod_name: the pod's hostname, which every program names itself by.
        version: APP_VERSION, for telling one rollout from the next.
        certificate: of the TLS ports; by default a self-made one that all pods of this process share.
        on_exit: called once with the exit code when a client asks for /exit; the programs are dead by then, and whoever
            started them closes them (`aclose`) and replaces the pod.
    """

    def __init__(
        self,
        pod_name: str,
        *,
        version: str = "1",
        certificate: KeyPair | None = None,
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        self.pod_name = pod_name
        self._certificate = certificate
        self._on_exit = on_exit
        self._http = HttpServer(HttpEcho(pod_name, version, self._exit, lambda: self._http.open_connections))
        self._listeners: dict[int, Listener | GrpcEcho] = {}
        self._addresses: dict[int, tuple[str, int]] = {}

    async def start(self) -> None:
        """Start every program. Raises OSError where there is no port to be had; nothing is left then."""
        certificate = self._certificate or _own_certificate()
        self._listeners = {port: Listener(program) for port, program in _tcp_programs(self.pod_name).items()}
        self._listeners[IPV6_PORT] = Listener(tcp_echo.echo, "::1")
        self._listeners[HTTP_PORT] = Listener(self._http.serve)
        self._listeners[HTTPS_PORT] = Listener(self._http.serve, ssl_context=_server_tls(certificate))
        self._listeners[GRPC_PORT] = GrpcEcho(self.pod_name)
        self._listeners[GRPCS_PORT] = GrpcEcho(self.pod_name, certificate)
        try:
            for port, listener in self._listeners.items():
                self._addresses[port] = await listener.start()
        except BaseException:
            await self.aclose()
            raise

    async def listen(self, port: int, serve: Serve, ssl_context: ssl.SSLContext | None = None) -> None:
        """Start one more program, at a port that nothing listens on; it ends with the others. Raises OSError."""
        if port in self._listeners:
            raise OSError(errno.EADDRINUSE, f"port {port} of pod {self.pod_name} is taken")
        self._listeners[port] = listener = Listener(serve, ssl_context=ssl_context)
        self._addresses[port] = await listener.start()

    def map_port(self, port: int, address: tuple[str, int]) -> None:
        """Let a port of the pod be a program that others run, a real database for one, at this loopback address."""
        self._addresses[port] = address

    def listen_address(self, port: int) -> tuple[str, int] | None:
        """Where a port of the pod is: an address that 127.0.0.1 or ::1 of the pod stands for. None: nothing listens."""
        return self._addresses.get(port)

    def kill(self) -> None:
        """End as a process that is killed: connections are cut, ports refuse. `aclose` must follow."""
        self._addresses.clear()
        for listener in self._listeners.values():
            if isinstance(listener, Listener):
                listener.kill()

    async def aclose(self) -> None:
        """Stop every program and cut its connections; returns when nothing is left."""
        self.kill()
        await asyncio.gather(*(listener.aclose() for listener in self._listeners.values()))

    def _exit(self, code: int) -> None:
        logger.info("pod %s exits with code %s: a client asked for it", self.pod_name, code)
        self.kill()
        if self._on_exit is not None:
            self._on_exit(code)


def _tcp_programs(pod_name: str) -> dict[int, Serve]:
    return {
        9000: tcp_echo.echo,
        9001: tcp_echo.greeter(pod_name),
        RESET_PORT: tcp_echo.accept_and_reset,
        9003: tcp_echo.count,
        9004: tcp_echo.flood,
        9005: tcp_echo.echo,  # in the real demo on 127.0.0.1 only, where the runtime's first dial goes
        9007: tcp_echo.mute,
    }


@cache
def _own_certificate() -> KeyPair:
    return CertificateAuthority("echo").server("echo", ("localhost", "echo", "127.0.0.1", "::1"))


def _server_tls(certificate: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.load_into(context)
    return context
