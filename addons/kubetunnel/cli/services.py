"""`kube-tunnel services`: what the clusters have, under the names and ports that work here."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from kubetunnel.cli.setting_flags import FlagCommand, settings_of
from kubetunnel.core.settings import Settings

if TYPE_CHECKING:
    from kubetunnel.service_list import ListedService


@click.command("services", cls=FlagCommand, sections=("cluster",), short_help="What the cluster has, and its names.")
@click.option("--json", "-json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool, **given: Any) -> None:
    """List the Services of all Namespaces, or of the one that --namespace names, as the tunnel knows them.

    ADDRESS is the virtual IP, which a Service has once its name was asked for. Nothing is changed or kept open.
    """
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    settings = settings_of(given, "kube-tunnel services")
    sys.exit(asyncio.run(_list(settings, given.get("cluster_namespace"), as_json=as_json)))


async def _list(settings: Settings, namespace: str | None, *, as_json: bool) -> int:
    """The exit status: 1 where a cluster could not be asked."""
    from kubetunnel.core.errors import KubeTunnelError
    from kubetunnel.demo import Demo
    from kubetunnel.proxy.clusters import Clusters
    from kubetunnel.service_list import list_services, virtual_addresses

    clusters, demo, failed = Clusters(settings), Demo() if settings.cluster.demo else None, False
    logging.getLogger("kubetunnel.proxy.clusters").setLevel(logging.CRITICAL)  # its refusal is ours to tell, once
    clusters.configure(settings, demo)
    found: list[ListedService] = []
    hints: list[str] = []
    try:
        addresses = virtual_addresses(settings)
        for zone in clusters.zones:
            try:
                session = await clusters.of(zone).session()
                listing = await list_services(session, zone, namespace, addresses, is_first=zone == clusters.zones[0])
            except KubeTunnelError as e:
                click.echo(f"kube-tunnel services: {e}", err=True)
                failed = True
                continue
            if listing.without:
                click.echo(f"kube-tunnel services: only those of {listing.namespace}: {listing.without}", err=True)
            if namespace and not listing.services:
                at = f"Namespace {namespace} of context {session.access.context}"
                see = session.access.kubectl("get", "namespaces")
                click.echo(f"kube-tunnel services: {at} has no Services, or is not there. See: {see}", err=True)
            found += listing.services
            if zone == clusters.zones[0] and listing.services:
                own = f"in Namespace {session.access.namespace} the part before the first dot will do"
                hints += ["", f"NAME.svc and NAME.svc.{zone} are the same as NAME; {own}."]
    finally:
        await clusters.aclose()
        if demo is not None:
            await demo.aclose()
    if as_json:
        click.echo(json.dumps([each.facts() for each in found], indent=2))
    elif found or not failed:
        click.echo("\n".join([*_table(found), *hints]))
    return 1 if failed else 0


def _table(services: list[ListedService]) -> list[str]:
    rows = [("NAME", "ADDRESS", "PORTS")]
    rows += [(each.names[0], each.address or "-", each.note or ", ".join(map(str, each.ports))) for each in services]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{name:<{widths[0]}}  {address:<{widths[1]}}  {ports}".rstrip() for name, address, ports in rows]
