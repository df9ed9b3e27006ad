"""Wires the addon: settings to cluster, cluster to router, router to the hooks of mitmproxy."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from mitmproxy import ctx, exceptions

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.settings import Settings
from kubetunnel.demo import Demo
from kubetunnel.options import PREFIX, add_options, settings_of, take_mistakes
from kubetunnel.proxy.clusters import Cluster
from kubetunnel.proxy.gate import Gate
from kubetunnel.proxy.greeting import commands_to_try
from kubetunnel.proxy.mode import KubeMode, Listening
from kubetunnel.proxy.pod_tls import PodTls
from kubetunnel.proxy.raw.relays import Relays
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.shown import Shown
from kubetunnel.proxy.upstreams import Upstreams

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
        add_options(loader)
        for mistake in take_mistakes(ctx.options):
            logger.error("%s", mistake)  # at the start an error ends the program

    def configure(self, updated: set[str]) -> None:
        if not any(option.startswith(PREFIX) for option in updated):
            return
        options = ctx.options
        try:
            self.settings = settings_of(options)
        except exceptions.OptionsError as e:
            if self._greeting is not None:
                raise  # while running: mitmproxy takes the change back and tells who made it
            logger.error("%s", e)  # noqa: TRY400
            return
        if options.kube_demo and self.demo is None:
            self.demo = Demo()
        self.cluster.configure(self.settings.cluster, self.demo if options.kube_demo else None)
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
