"""`kube-tunnel forward svc/api 5432`: local listeners as `kubectl port-forward` has them, until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from kubetunnel.cli.setting_flags import FlagCommand, settings_of
from kubetunnel.core.settings import Settings

if TYPE_CHECKING:
    from kubetunnel.core.catalog import PodPort
    from kubetunnel.forward.listener import LocalListener
    from kubetunnel.forward.pod_streams import PodStreams
    from kubetunnel.forward_specs import ForwardSpec
    from kubetunnel.observe.listener_health import ListenerHealth
    from kubetunnel.proxy.clusters import Clusters


# who is warned of a broken watch, or waits for a plugin, is to hear when that is over
_TELL_OF_ENDS = (
    "kubetunnel.cluster.reflector",
    "kubetunnel.cluster.credentials",
    "kubetunnel.observe.health_checks",
)
# a beginning that fails is told once, as the end of the command
_TOLD_AS_THE_END = ("kubetunnel.proxy.clusters", "kubetunnel.cluster.credentials", "kubetunnel.forward.facts")


@click.command(
    "forward",
    cls=FlagCommand,
    sections=("cluster",),
    short_help="Listen on local ports for a Service, a Pod or a Deployment.",
)
@click.argument("target", metavar="KIND/NAME")
@click.argument("ports", metavar="[LOCAL:]PORT...", nargs=-1, required=True)
@click.option(
    "--address",
    "-address",
    multiple=True,
    default=["localhost"],
    show_default=True,
    help="Where to listen, separated by commas.",
)
@click.option("-v", "--verbose", "-verbose", is_flag=True, help="Tell of upstreams as well.")
def command(
    target: str,
    ports: tuple[str, ...],
    address: tuple[str, ...],
    verbose: bool,
    **given: Any,
) -> None:
    """Listen on local ports, and forward what comes to the ready pods of KIND/NAME.

    KIND is svc, pod, deploy, sts, rs, ds or job (NAME alone is a Pod). PORT is a number or a name, with the local port
    before it where that is another: 5432, http, 8080:http, :5432 (any free one). The same local port is taken where it
    is free. Each connection goes to the ready pod with the fewest.

    The cluster is the tunnel's: that of environment, flags and settings file.
    """
    from kubetunnel.forward_specs import parse_addresses, parse_forward

    settings = settings_of(given, "kube-tunnel forward")
    try:
        spec = parse_forward(target, ports, settings.cluster.namespace or "")
        addresses = parse_addresses(address)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in _TELL_OF_ENDS:
        logging.getLogger(name).setLevel(logging.INFO)
    sys.exit(asyncio.run(_forward(settings, spec, addresses)))


async def _forward(settings: Settings, spec: ForwardSpec, addresses: tuple[str, ...]) -> int:
    """Until SIGINT or SIGTERM. The exit status: 1 where it could not begin."""
    from kubetunnel.cluster.workloads import Workloads
    from kubetunnel.core.errors import KubeTunnelError
    from kubetunnel.demo import Demo
    from kubetunnel.forward.listener import LocalForwards
    from kubetunnel.forward.local_sockets import TAKEN
    from kubetunnel.proxy.clusters import Clusters

    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_the_end)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop_or_end, stop, number)
    clusters, demo = Clusters(settings), Demo() if settings.cluster.demo else None
    clusters.configure(settings, demo)
    health = _Health(settings, clusters)
    try:
        session = await clusters.first.session()
        workloads = Workloads(session.access, session.discovery)
        retry = settings.retry
        forwards = LocalForwards(
            workloads, session.forwards, addresses=addresses, retries=retry.max, retry_delay_s=retry.delay_s,
            is_unhealthy=health.is_unhealthy,
        )  # fmt: skip
        try:
            listeners = await forwards.open(spec.in_namespace(session.access.namespace).ref, spec.pairs)
            _tell_all()
            _print_mapping(listeners)
            health.begin(listeners)
            await stop.wait()
        finally:
            await health.aclose()
            await forwards.aclose()
            await workloads.aclose()
    except KubeTunnelError as error:
        return _fail(str(error))
    except OSError as error:
        free = " Ask for any free local port with :PORT." if error.errno in TAKEN else ""
        return _fail(f"Cannot listen on {error.filename or ', '.join(addresses)}: {error.strerror or error}.{free}")
    finally:
        await clusters.aclose()
        if demo is not None:
            await demo.aclose()
    return 0


class _Health:
    """The health of the pods that are used, from `begin` on: nobody is to wait for the import of what checks it."""

    def __init__(self, settings: Settings, clusters: Clusters) -> None:
        self._settings = settings
        self._clusters = clusters
        self._checks: ListenerHealth | None = None
        self._task: asyncio.Task[None] | None = None

    def is_unhealthy(self, forwards: PodStreams, pod_port: PodPort) -> bool:
        return self._checks is not None and self._checks.is_unhealthy(forwards, pod_port)

    def begin(self, listeners: Sequence[LocalListener]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(listeners), name="health")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, listeners: Sequence[LocalListener]) -> None:
        module = await asyncio.to_thread(import_module, "kubetunnel.observe.listener_health")
        self._checks = checks = module.ListenerHealth(self._settings, self._clusters, listeners)
        await checks.run()


def _is_not_the_end(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING or record.name not in _TOLD_AS_THE_END


def _tell_all() -> None:
    """It has begun."""
    for handler in logging.getLogger().handlers:
        handler.removeFilter(_is_not_the_end)


def _stop_or_end(stop: asyncio.Event, number: int) -> None:
    """The first signal ends it in order; the second one at once."""
    if stop.is_set():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    stop.set()


def _print_mapping(listeners: tuple[LocalListener, ...]) -> None:
    for listener in listeners:
        for host, port in listener.addresses:
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            requested = "" if listener.pair.local == 0 or port == listener.port or listener.pair.local else (
                f" (port {listener.port} may not be had here)"
            )  # fmt: skip
            click.echo(f"Forwarding from {shown} -> {listener.ref} {listener.port}{requested}")


def _fail(message: str) -> int:
    click.echo(f"kube-tunnel forward: {message}", err=True)
    return 1


if __name__ == "__main__":
    command()
