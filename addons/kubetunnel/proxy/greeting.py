"""What to try first: commands that work as they stand, made from what the cluster really has."""

from __future__ import annotations

from collections.abc import Sequence

from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.endpoints import targets
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.clusters import Session

MAX_LOOKED_AT = 5  # Services whose endpoints are looked at for an example
_HTTP_PORTS = {80, 8000, 8080, 3000, 5000}


async def commands_to_try(session: Session, zone: str, listening_at: str) -> list[str]:
    """curl lines for a Service of the current Namespace that speaks HTTP and has a ready pod; else none."""
    namespace = session.access.namespace
    services = await session.discovery.services(namespace)
    for service, port in _likely_http(services)[:MAX_LOOKED_AT]:
        try:
            state = await session.discovery.service(namespace, service.name)
            targets(state, port)
        except KubeTunnelError:
            continue  # not ready: no example
        host = f"{service.name}.{namespace}.svc.{zone}" + ("" if port.port == 80 else f":{port.port}")
        short = f"{service.name}.{namespace}" + ("" if port.port == 80 else f":{port.port}")
        return [
            f"curl -H 'Host: {host}' http://{listening_at}/",
            f"curl -x http://{listening_at} http://{host}/",
            f"curl -x http://{listening_at} http://{short}/",
        ]
    return []


def _likely_http(services: Sequence[Service]) -> list[tuple[Service, ServicePort]]:
    candidates = [
        (service, port)
        for service in services
        for port in service.ports
        if port.protocol == "TCP"
        and ((port.app_protocol or port.name).startswith("http") or port.port in _HTTP_PORTS)
        and not (port.app_protocol or port.name).startswith("https")
    ]
    return sorted(candidates, key=lambda c: (c[1].port != 80, c[0].name))
