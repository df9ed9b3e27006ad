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

LOOK_INTERVAL_S = 1.0  # at what netsetup made of the machine, as the tunnel does


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
    from kubetunnel.demo import Demo
    from kubetunnel.naming import Naming
    from kubetunnel.naming_plan import plan_naming
    from kubetunnel.proxy.clusters import Clusters
    from kubetunnel.proxy.virtual_destinations import VirtualDestinations
    from netsetup.errors import NetsetupError
    from netsetup.state import read_state

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    demo = Demo() if settings.cluster.demo else None
    clusters = Clusters(settings)
    clusters.configure(settings, demo)
    naming = Naming(clusters, VirtualDestinations(), tuple)  # no tunnel listens in here
    try:
        if settings.network.loopback:
            click.echo("dns: network.loopback needs the tunnel itself: kube-tunnel --loopback", err=True)
            return 2
        await naming.apply(plan_naming(settings, read_state()))
        if naming.dns_address is None:
            return 1
        click.echo("DNS for {} at {} port {}".format(", ".join(clusters.zones), *naming.dns_address))
        while not await _is_set(stop, LOOK_INTERVAL_S):
            await naming.apply(plan_naming(settings, read_state()))  # netsetup and DHCP come and go
    except (KubeTunnelError, NetsetupError) as e:
        click.echo(f"dns: {e}", err=True)
        return 1
    finally:
        await naming.aclose()
        await clusters.aclose()
        if demo is not None:
            await demo.aclose()
    return 0


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False
