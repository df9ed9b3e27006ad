"""What to try first: commands that work as they stand, made from what the cluster really has."""

from __future__ import annotations

from collections.abc import Sequence

from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.endpoints import targets
from kubetunnel.core.errors import Forbidden, KubeTunnelError
from kubetunnel.proxy.clusters import Session

MAX_LOOKED_AT = 5  # Services whose endpoints are looked at for an example
_HTTP_PORTS = {80, 8000, 8080, 3000, 5000}


async def commands_to_try(session: Session, zone: str, listening_at: str, *, by_name: bool = False) -> list[str]:
    """curl lines for a Service that speaks HTTP and has a ready pod, of the current Namespace if there is one.

    Nothing stays open for it. Without such a Service, or the right to list them, the lines have placeholders.

    Args:
        by_name: names lead to the tunnel in every program.

    Raises:
        Unauthenticated, ClusterUnreachable, Timeout
    """
    for namespace in (session.access.namespace, ""):
        try:
            services = await session.discovery.services(namespace)
        except Forbidden:
            continue
        for service, port in _likely_http(services)[:MAX_LOOKED_AT]:
            if await _is_ready(session, service, port):
                return _commands(service.name, service.namespace, port.port, zone, listening_at, by_name=by_name)
    return [
        *_commands("SERVICE", "NAMESPACE", 80, zone, listening_at, by_name=by_name),
        session.access.kubectl("get", "services", "--all-namespaces"),
    ]


async def _is_ready(session: Session, service: Service, port: ServicePort) -> bool:
    try:
        targets(await session.discovery.service(service.namespace, service.name, fresh=True), port)
    except KubeTunnelError:
        return False
    return True


def _commands(service: str, namespace: str, port: int, zone: str, listening_at: str, *, by_name: bool) -> list[str]:
    suffix = "" if port == 80 else f":{port}"
    host = f"{service}.{namespace}.svc.{zone}{suffix}"
    return [
        *([f"curl http://{host}/"] if by_name else []),
        f"curl -H 'Host: {host}' http://{listening_at}/",
        f"curl -x http://{listening_at} http://{host}/",
        f"curl -x http://{listening_at} http://{service}.{namespace}{suffix}/",
    ]


def _likely_http(services: Sequence[Service]) -> list[tuple[Service, ServicePort]]:
    candidates = [
        (service, port)
        for service in services
        for port in service.ports
        if port.protocol == "TCP"
        and ((port.app_protocol or port.name).startswith("http") or port.port in _HTTP_PORTS)
        and not (port.app_protocol or port.name).startswith("https")
    ]
    return sorted(candidates, key=lambda c: (c[1].port != 80, c[0].namespace, c[0].name))
