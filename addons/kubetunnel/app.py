"""Wires the addon: settings to cluster, cluster to router, router to the hooks of mitmproxy."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions
from mitmproxy.options import CONF_BASENAME

from kubetunnel import __version__
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.settings import LogSettings, Settings, unchangeable
from kubetunnel.demo import Demo
from kubetunnel.inspect.inspection import Inspection
from kubetunnel.local_ports import LocalPorts
from kubetunnel.log_lines import RequestLines, set_format
from kubetunnel.naming import Naming
from kubetunnel.naming_plan import plan_naming
from kubetunnel.observe.observe import Observe
from kubetunnel.observe.sources import HealthPolicy, check_of
from kubetunnel.options import PREFIX, SettingSources, add_options, settings_of, take_mistakes
from kubetunnel.progress import telling
from kubetunnel.proxy.authentication import Authentication
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.ending import Ending
from kubetunnel.proxy.gate import Gate
from kubetunnel.proxy.greeting import commands_to_try
from kubetunnel.proxy.mode import Listening, listening_addresses
from kubetunnel.proxy.pod_tls import PodTls
from kubetunnel.proxy.raw.relays import Relays
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.shown import Shown
from kubetunnel.proxy.upstreams import Upstreams
from kubetunnel.redirection import mending_what_outlived
from kubetunnel.screen import Facts, screen
from kubetunnel.setting_values import SettingsError
from netsetup.errors import StateError
from netsetup.state import DEFAULT_STATE, State, read_record, read_state
from netsetup.status import outlived_files, told_of_outlived

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0  # at the settings file, and at what netsetup made of the machine


class KubeTunnel:
    """The addon of `addons/kube_tunnel.py`; what it does is in its parts."""

    name = "kubetunnel"

    def __init__(self) -> None:
        self.settings = Settings()
        self.demo: Demo | None = None
        self.clusters = Clusters(self.settings)
        self.router = Router(self.settings, self.clusters)
        upstreams = Upstreams(self.router)
        relays = Relays()
        gate = Gate(self.router, upstreams, relays, lambda: self.ending.is_ending)
        self.listening = Listening()
        authentication = Authentication()
        self.naming = Naming(self.clusters, upstreams.virtual)
        self.local_ports = LocalPorts(self.clusters)
        self.observe = Observe(
            self.clusters, self.router, upstreams, self.naming, self.local_ports,
            health=lambda: HealthPolicy.of(self.settings),
            check_of=lambda key, port: check_of(self.settings, key, port),
            watch_restarts=self._watch_restarts, permits=authentication.permits,
        )  # fmt: skip
        self.router.avoid(self.observe.is_unhealthy)
        self.local_ports.avoid(self.observe.is_unhealthy)
        self.inspection = Inspection(
            self.clusters, self.router, upstreams, self.local_ports, health_of=self.observe.health_of
        )
        self.ending = Ending(upstreams.connections, self._stop_listening, self._end)
        self._request_lines = RequestLines()
        self.addons = [
            self.ending, authentication, self.listening, gate, PodTls(self.router, upstreams), relays,
            Shown(self.router, upstreams),
            *self.inspection.addons, *self.observe.addons, self._request_lines,
        ]  # fmt: skip
        self.machine_state: Path = DEFAULT_STATE
        self._named = asyncio.Event()
        self._told = ""
        self._log: LogSettings | None = None
        self._log_options: dict[str, Any] = {}  # mitmproxy's, as the user had them before the settings said otherwise
        self._sources: SettingSources | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_ending = False

    def load(self, loader: Any) -> None:
        add_options(loader)
        for mistake in take_mistakes(ctx.options):
            logger.error("%s", mistake)  # at the start an error ends the program
        self._sources = SettingSources(ctx.options)
        try:
            self._sources.load()
        except SettingsError as e:
            logger.error("%s", e)  # noqa: TRY400

    def configure(self, updated: set[str]) -> None:
        if not any(option.startswith(PREFIX) for option in updated):
            return
        options = ctx.options
        try:
            settings = settings_of(options, self._sources.of if self._sources else {})
            if self._greeting is not None and (fixed := unchangeable(self.settings, settings)):
                raise exceptions.OptionsError(  # noqa: TRY301
                    f"{', '.join(fixed)}: cannot change while the tunnel runs. End it and start it anew for that."
                )
            self.settings = settings
        except exceptions.OptionsError as e:
            if self._greeting is not None:
                raise  # while running: mitmproxy takes the change back and tells who made it
            logger.error("%s", e)  # noqa: TRY400
            return
        if self.settings.cluster.demo and self.demo is None:
            self.demo = Demo()
        self._set_log()
        self.inspection.configure(
            keep_flows=self.settings.inspect.keep_flows,
            keep_bytes=self.settings.inspect.keep_bytes,
            grpc_reflection=self.settings.grpc.reflection,
            grpc_descriptors=self.settings.grpc.descriptors,
        )
        self.local_ports.configure(self.settings.forwards, address=self.settings.forward.ip, retry=self.settings.retry)
        self.clusters.configure(self.settings, self.demo if self.settings.cluster.demo else None)
        self.router.configure(self.settings)

    def _set_log(self) -> None:
        log, level = self.settings.log, self.settings.log.level
        if log == self._log:
            return
        self._log = log
        self._request_lines.enabled = log.format == "json"
        set_format(log.format)
        wanted: dict[str, Any] = {}
        if level is not None:
            wanted["termlog_verbosity"] = "error" if level == "quiet" else level
        has_lines = log.format == "text" and level in (None, "debug", "info")  # a request's: information, and no JSON
        if not has_lines and "flow_detail" in ctx.options:  # not in mitmweb
            wanted["flow_detail"] = 0
        back = {name: self._log_options.pop(name) for name in self._log_options.keys() - wanted.keys()}
        for name in wanted:
            self._log_options.setdefault(name, getattr(ctx.options, name))
        ctx.options.update(**back, **wanted)

    def running(self) -> None:
        loop = asyncio.get_running_loop()
        self._tell_of_what_outlived()
        self.observe.start()
        self.local_ports.start()
        self._greeting = loop.create_task(self._greet(), name="greeting")
        self._looking = loop.create_task(self._look(), name="settings file")
        for task in (self._greeting, self._looking):
            task.add_done_callback(_report_crash)

    def done(self) -> None:
        # mitmproxy awaits nothing here when it reloads a script, so what takes time goes on in a task of its own
        for task in (self._greeting, self._looking):
            if task is not None:
                task.cancel()
        if self._is_ending:
            return
        self._ending = asyncio.get_running_loop().create_task(self._end(), name="ending")
        self._ending.add_done_callback(_report_crash)

    async def _greet(self) -> None:
        if (started := self.listening.running()) is not None:
            await started
        addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in listening_addresses()]
        await self.clusters.tell_mistakes()
        if not addresses:
            return
        commands: list[str] = []
        try:
            with telling(logger, "The cluster takes its time."):
                session = await self.clusters.first.session()
                access = session.access
                user = f", as {access.user}" if access.user else ""
                cluster = f"{access.server} (context {access.context}, namespace {access.namespace}{user})"
                zone, by_name = self.settings.cluster.zone, self._is_led_to() and self.settings.dns.enabled
                commands = await commands_to_try(session, zone, addresses[0], by_name=by_name)
        except KubeTunnelError as e:
            why = "" if self.clusters.first.has_told(e) else f" {e}"
            logger.warning("No cluster yet; each request tries again.%s", why)
            cluster = "none yet; each request tries again"
        await self._named.wait()
        logger.info("%s", screen(self._facts(addresses, cluster, commands)))

    def _facts(self, addresses: list[str], cluster: str, commands: list[str]) -> Facts:
        return Facts(
            __version__,
            addresses,
            self.naming.dns_address,
            self.clusters.zones,
            self._dashboard(addresses),
            cluster,
            Path(ctx.options.confdir).expanduser() / f"{CONF_BASENAME}-ca-cert.pem",
            leads=self._is_led_to(),
            commands=commands,
        )

    def _is_led_to(self) -> bool:
        machine = self._machine()
        return machine is not None and machine.redirected

    def _dashboard(self, addresses: list[str]) -> str:
        """Its URL. Who reads the token sees and does all: none where a log is collected, or others reach the tunnel.

        On a terminal the reader is the user.
        """
        url = self.observe.dashboard_url(addresses[0])
        is_private = sys.stdout.isatty() or all(ip_address(host).is_loopback for host, _ in listening_addresses())
        return url if is_private and self.settings.log.format == "text" else url.partition("#")[0]

    async def _stop_listening(self, drain_s: float) -> None:
        if self._looking is not None:
            self._looking.cancel()  # it would make them anew
        await self.naming.stop_listening()
        await self.local_ports.aclose(drain_s=drain_s)

    async def _look(self) -> None:
        while self._sources is not None:
            try:
                await self.naming.apply(plan_naming(self.settings, self._machine()))
                self._named.set()
                self._sources.look()
            except Exception:  # supervision point: a defect in one look must not end the next ones
                logger.exception("Looking at settings and machine failed; it goes on.")
                self._named.set()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _watch_restarts(self) -> dict[str, int]:
        return {zone: session.discovery.watch_restarts for zone, session in self.clusters.sessions().items()}

    def _machine(self) -> State | None:
        try:
            return read_state(self.machine_state)
        except StateError as e:
            if str(e) != self._told:
                self._told = str(e)
                logger.warning("%s", e)
            return None

    def _tell_of_what_outlived(self) -> None:
        with suppress(StateError):  # `_machine` tells of it
            record = read_record(self.machine_state)
            if record is not None and (files := outlived_files(record)):
                logger.warning("%s See: %s", told_of_outlived(files, record), mending_what_outlived())

    async def _end(self) -> None:
        self._is_ending = True
        await self.observe.aclose()
        await self.inspection.aclose()
        await self.local_ports.aclose()
        await self.naming.aclose()
        await self.clusters.aclose()
        if self.demo is not None:
            await self.demo.aclose()


def _report_crash(task: asyncio.Task[None]) -> None:
    """Supervision point: a task that nobody awaits tells of its end."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("The task %r failed.", task.get_name(), exc_info=error)
