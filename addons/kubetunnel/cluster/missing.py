"""What to say of a Service that is not there: is it the namespace that is missing, or was the name mistyped?"""

from __future__ import annotations

import asyncio
import difflib

from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import Named
from kubetunnel.cluster.resource import NAMESPACES, SERVICES, Query
from kubetunnel.core.errors import Forbidden, KubeTunnelError, NamespaceNotFound, ServiceNotFound


async def not_found(api: ApiServer, namespace: str, name: str) -> KubeTunnelError:
    """The error for a missing Service. Costs one round trip; what may not be looked at is left out of the text."""
    found, names = await asyncio.gather(
        api.get_object(Query(NAMESPACES, Named, name=namespace)),
        api.list_objects(Query(SERVICES, Named, namespace)),
        return_exceptions=True,
    )
    if found is None:
        return NamespaceNotFound(
            f"There is no namespace {namespace} in context {api.access.context}.",
            command=api.access.kubectl("get", "namespaces"),
        )
    detail = f"Namespace {namespace} of context {api.access.context} has no Service {name}."
    if isinstance(found, Forbidden):
        detail += " (Whether the namespace exists could not be checked: no right to get namespaces.)"
    elif isinstance(found, BaseException) and not isinstance(found, KubeTunnelError):
        raise found
    if not isinstance(names, BaseException) and names is not None:
        close = difflib.get_close_matches(name, [item.metadata.name for item in names.items], n=3)
        if close:
            detail += f" Did you mean {' or '.join(close)}?"
    elif isinstance(names, BaseException) and not isinstance(names, KubeTunnelError):
        raise names
    return ServiceNotFound(detail, command=api.access.kubectl("-n", namespace, "get", "svc"))
