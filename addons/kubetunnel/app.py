"""Wires the addon: settings to cluster, cluster to router, router to the hooks of mitmproxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from mitmproxy import ctx, exceptions

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.names import zone_is_valid
from kubetunnel.core.settings import ClusterSettings, HttpSettings, RetrySettings, Settings
from kubetunnel.demo import Demo
from kubetunnel.proxy.clusters import Cluster
from kubetunnel.proxy.gate import Gate
from kubetunnel.proxy.greeting import commands_to_try
from kubetunnel.proxy.mode import KubeMode, Listening
from kubetunnel.proxy.pod_tls import PodTls
from kubetunnel.proxy.raw.relays import Relays
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.shown import Shown
from kubetunnel.proxy.upstreams import Upstreams
from kubetunnel.service_specs import parse_services

logger = logging.getLogger(__name__)


class KubeTunnel:
    """The addon of `addons/kube_tunnel.py`; what it does is in its parts."""

    name = "kubetunnel"

    def __init__(self) -> None:
        self.settings = Settings()
        self.demo: Demo | None = None
        self.cluster = Cluster(self.settings.cluster)
        self.router = Router(self.settings, self.cluster)
        upstreams = Upstreams(self.router)
        relays = Relays()
        gate = Gate(self.router, upstreams, relays)
        self.listening = Listening()
        self.addons = [self.listening, gate, PodTls(self.router, upstreams), relays, Shown(upstreams)]
        self._greeting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def load(self, loader: Any) -> None:
        default = Settings()
        loader.add_option("kube_kubeconfig", str, "", "Path of the kubeconfig; empty: as kubectl finds it.")
        loader.add_option("kube_context", str, "", "Context of the kubeconfig; empty: its current-context.")
        loader.add_option("kube_namespace", str, "", "Namespace of short names; empty: that of the context.")
        loader.add_option("kube_zone", str, default.cluster.zone, "The cluster's DNS zone.")
        loader.add_option("kube_demo", bool, False, "Use a simulated cluster, started as a child process.")
        loader.add_option("kube_retry_max", int, default.retry.max, "Further tries of an upstream that did not open.")
        loader.add_option("kube_force_http2", bool, False, "Speak HTTP/2 to every pod.")
        loader.add_option("kube_disable_fallback", bool, False, "HTTP/2 requests go to pods as HTTP/2 or not at all.")
        loader.add_option(
            "kube_response_header_timeout", int, 30, "Seconds from the end of a request to the head of its response."
        )
        loader.add_option("kube_grpc_timeout", int, 30, "Seconds of a gRPC call that brings no grpc-timeout.")
        loader.add_option(
            "kube_services",
            Sequence[str],
            [],
            "What you know of a Service: NAME.NAMESPACE[:PORT] app_protocol=… passthrough=true ca_file=… "
            "client_certificate=….",
        )

    def configure(self, updated: set[str]) -> None:
        if not any(option.startswith("kube_") for option in updated):
            return
        options = ctx.options
        if not zone_is_valid(options.kube_zone):
            raise exceptions.OptionsError(f"kube_zone: {options.kube_zone!r} is not a DNS zone, such as cluster.local")
        for option in ("kube_retry_max", "kube_response_header_timeout", "kube_grpc_timeout"):
            if getattr(options, option) < (0 if option == "kube_retry_max" else 1):
                raise exceptions.OptionsError(f"{option}: {getattr(options, option)} is too small")
        cluster = ClusterSettings(
            kubeconfig=options.kube_kubeconfig or None,
            context=options.kube_context or None,
            namespace=options.kube_namespace or None,
            zone=options.kube_zone,
        )
        try:
            services = parse_services(options.kube_services)
        except ValueError as e:
            raise exceptions.OptionsError(str(e)) from e
        self.settings = Settings(
            cluster=cluster,
            retry=RetrySettings(max=options.kube_retry_max),
            http=HttpSettings(
                force_http2=options.kube_force_http2,
                disable_fallback=options.kube_disable_fallback,
                response_header_timeout_s=options.kube_response_header_timeout,
                grpc_timeout_s=options.kube_grpc_timeout,
            ),
            services=services,
        )
        if options.kube_demo and self.demo is None:
            self.demo = Demo()
        self.cluster.configure(cluster, self.demo if options.kube_demo else None)
        self.router.configure(self.settings)

    def running(self) -> None:
        self._greeting = asyncio.get_running_loop().create_task(self._greet(), name="greeting")
        self._greeting.add_done_callback(_report_crash)

    def done(self) -> None:
        # mitmproxy awaits nothing here when it reloads a script, so what takes time goes on in a task of its own
        if self._greeting is not None:
            self._greeting.cancel()
        self._ending = asyncio.get_running_loop().create_task(self._end(), name="ending")
        self._ending.add_done_callback(_report_crash)

    async def _greet(self) -> None:
        if (started := self.listening.running()) is not None:
            await started
        addresses = [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for instance in ctx.master.addons.get("proxyserver").servers
            if isinstance(instance.mode, KubeMode)
            for host, port, *_ in instance.listen_addrs
        ]
        if not addresses:
            return
        try:
            session = await self.cluster.session()
            commands = await commands_to_try(session, self.settings.cluster.zone, addresses[0])
        except KubeTunnelError as e:
            logger.warning("No cluster yet; each request tries again. %s", e)
            return
        logger.info("Try:\n  %s", "\n  ".join(commands))

    async def _end(self) -> None:
        await self.cluster.aclose()
        if self.demo is not None:
            await self.demo.aclose()


def _report_crash(task: asyncio.Task[None]) -> None:
    """Supervision point: a task that nobody awaits tells of its end."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("The task %r failed.", task.get_name(), exc_info=error)
