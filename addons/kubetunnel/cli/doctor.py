"""`kube-tunnel doctor`: is everything there that the tunnel needs, and if not, which command mends it."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

_PORT = click.IntRange(1, 65535)


@click.command("doctor", short_help="Check cluster, rights, ports, DNS, interfaces and trust; say what mends it.")
@click.option("--kubeconfig", metavar="FILE", help="Path of the kubeconfig; by default as kubectl finds it.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig; by default its current one.")
@click.option("-n", "--namespace", metavar="NAME", help="Namespace to examine; by default that of the context.")
@click.option("--port", type=_PORT, default=8080, show_default=True, help="The tunnel's port.")
@click.option("--dns-port", type=_PORT, default=5353, show_default=True, help="The DNS server's port.")
@click.option("--zone", default="cluster.local", show_default=True, help="The cluster's DNS zone.")
@click.option("--confdir", type=click.Path(path_type=Path), default="~/.mitmproxy", show_default=True, help="The CA's.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
    port: int,
    dns_port: int,
    zone: str,
    confdir: Path,
    as_json: bool,
) -> None:
    """Check what the tunnel needs: ok, warn, fail or skip (nothing to look at), and the command that mends it.

    Nothing is changed. The exit status is 0 when nothing fails, else 1.
    """
    from kubetunnel.doctor.cluster import Choice
    from kubetunnel.doctor.examination import Subject, examine
    from kubetunnel.doctor.verdict import as_json as document
    from kubetunnel.doctor.verdict import as_text, failed

    # what a check has to say is in its line
    logging.getLogger("kubetunnel").setLevel(logging.CRITICAL)
    choice = Choice(kubeconfig, context, namespace)
    subject = Subject(choice, port, dns_port, zone.strip(".").lower(), confdir.expanduser())
    verdicts = asyncio.run(examine(subject))
    click.echo(document(verdicts) if as_json else as_text(verdicts, coloured=_is_terminal()))
    sys.exit(1 if failed(verdicts) else 0)


def _is_terminal() -> bool:
    return sys.stdout.isatty()
