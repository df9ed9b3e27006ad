"""`kube-tunnel doctor`: is everything there that the tunnel needs, and if not, which command mends it."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kubetunnel.cli.setting_flags import FlagCommand, settings_of


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
    from kubetunnel.doctor.cluster import Choice
    from kubetunnel.doctor.examination import Subject, examine
    from kubetunnel.doctor.verdict import as_json as document
    from kubetunnel.doctor.verdict import as_text, failed

    settings = settings_of(given, "doctor")
    if zone is not None:
        settings = replace(settings, cluster=replace(settings.cluster, zone=zone.strip(".").lower()))
    # what a check has to say is in its line
    logging.getLogger("kubetunnel").setLevel(logging.CRITICAL)
    cluster = settings.cluster
    choice = Choice(cluster.kubeconfig, cluster.context, cluster.namespace)
    verdicts = asyncio.run(examine(Subject(choice, settings, confdir.expanduser())))
    click.echo(document(verdicts) if as_json else as_text(verdicts, coloured=_is_terminal()))
    sys.exit(1 if failed(verdicts) else 0)


def _is_terminal() -> bool:
    return sys.stdout.isatty()
