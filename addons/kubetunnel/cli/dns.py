"""`python -m netsetup dns`: the DNS server in a process of its own, for a proxy that restarts often.

The proxy finds the virtual IPs that are answered here in the file that both keep them in.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

import click

from kubetunnel.cli.setting_flags import FlagCommand, settings_of
from kubetunnel.core.settings import Settings


@click.command("dns", cls=FlagCommand, sections=("cluster", "dns", "network"))
@click.option("-v", "--verbose", is_flag=True, help="Tell of clusters and watches as well.")
def command(verbose: bool, **given: Any) -> None:
    """Run the DNS server for the clusters' zones alone, until Ctrl-C.

    Settings are the tunnel's: environment, flags and file.
    """
    settings = settings_of(given, "dns")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    sys.exit(asyncio.run(_serve(settings)))


async def _serve(settings: Settings) -> int:
    """Until SIGINT or SIGTERM. The exit status: 1 where it could not begin."""
    from kubetunnel.core.errors import KubeTunnelError
    from kubetunnel.naming import Naming, plan_naming
    from kubetunnel.proxy.clusters import Clusters
    from kubetunnel.proxy.virtual_destinations import VirtualDestinations
    from netsetup.errors import NetsetupError
    from netsetup.state import read_state

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clusters = Clusters(settings)
    naming = Naming(clusters, VirtualDestinations())
    try:
        plan = plan_naming(settings, read_state())
        if plan.loopback:
            click.echo("dns: network.loopback needs the tunnel itself: kube-tunnel --loopback", err=True)
            return 2
        await naming.apply(plan)
        if naming.dns_address is None:
            return 1
        click.echo("DNS for {} at {} port {}".format(", ".join(clusters.zones), *naming.dns_address))
        await stop.wait()
    except (KubeTunnelError, NetsetupError) as e:
        click.echo(f"dns: {e}", err=True)
        return 1
    finally:
        await naming.aclose()
        await clusters.aclose()
    return 0
