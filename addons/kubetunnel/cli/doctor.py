"""`kube-tunnel doctor`: is everything there that the tunnel needs, and if not, which command mends it."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kubetunnel.cli.setting_flags import FlagCommand, settings_of

if TYPE_CHECKING:
    from kubetunnel.core.settings import Settings
    from kubetunnel.doctor.verdict import Verdict


@click.command(
    "doctor",
    cls=FlagCommand,
    sections=("cluster", "proxy", "dns", "network"),
    short_help="Check cluster, rights, ports, DNS, interfaces and trust; say what mends it.",
)
@click.option("--zone", "-zone", help="The cluster's DNS zone.")
@click.option(
    "--confdir",
    "-confdir",
    type=click.Path(path_type=Path),
    default="~/.mitmproxy",
    show_default=True,
    help="The CA's.",
)
@click.option("--json", "-json", "as_json", is_flag=True, help="As JSON.")
def command(zone: str | None, confdir: Path, as_json: bool, **given: Any) -> None:
    """Check what the tunnel needs: ok, warn, fail or skip (nothing to look at), and the command that mends it.

    Settings are the tunnel's: environment, flags and file. Nothing is changed. The exit status is 0 when nothing
    fails, else 1.
    """
    from kubetunnel.doctor.verdict import as_json as document
    from kubetunnel.doctor.verdict import as_text, failed

    settings = settings_of(given, "doctor")
    if zone is not None:
        settings = replace(settings, cluster=replace(settings.cluster, zone=zone.strip(".").lower()))
    # what a check has to say is in its line
    logging.getLogger("kubetunnel").setLevel(logging.CRITICAL)
    verdicts = asyncio.run(_examined(settings, confdir.expanduser()))
    click.echo(document(verdicts) if as_json else as_text(verdicts, coloured=_is_terminal()))
    sys.exit(1 if failed(verdicts) else 0)


async def _examined(settings: Settings, confdir: Path) -> list[Verdict]:
    from kubetunnel.core.errors import KubeTunnelError
    from kubetunnel.demo import Demo
    from kubetunnel.doctor.cluster import Choice
    from kubetunnel.doctor.examination import Subject, examine

    cluster = settings.cluster
    demo = Demo() if cluster.demo else None
    try:
        kubeconfig = await demo.kubeconfig() if demo is not None else cluster.kubeconfig
        choice = Choice(kubeconfig, cluster.context, cluster.namespace)
        return await examine(Subject(choice, settings, confdir))
    except KubeTunnelError as e:
        sys.exit(f"kube-tunnel doctor: {e}")
    finally:
        if demo is not None:
            await demo.aclose()


def _is_terminal() -> bool:
    return sys.stdout.isatty()
