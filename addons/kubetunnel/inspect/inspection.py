"""All that mitmproxy shows of the cluster beside the flows themselves, as one part of the addon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from mitmproxy import contentviews, ctx

from kubetunnel.inspect.client_replay import ClientReplay
from kubetunnel.inspect.commands import Commands, HealthOf
from kubetunnel.inspect.grpc_view import GrpcView
from kubetunnel.inspect.kept_flows import KEEP_BYTES, KEEP_FLOWS, KeptFlows
from kubetunnel.inspect.kubernetes_view import KubernetesView
from kubetunnel.inspect.list_columns import ListColumns
from kubetunnel.inspect.pod_details import PodLookups
from kubetunnel.inspect.private_recordings import PrivateRecordings
from kubetunnel.inspect.reflected import Descriptors
from kubetunnel.local_ports import LocalPorts
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

logger = logging.getLogger(__name__)

_CONTENT_DETAIL = 3  # from this flow_detail on mitmdump prints bodies


class Inspection:
    """Content views, commands, labels, descriptors, replays, and the bound on what is kept.

    `addons` come after `Shown`, which begins `flow.metadata["kube"]`.
    """

    def __init__(
        self,
        clusters: Clusters,
        router: Router,
        upstreams: Upstreams,
        local_ports: LocalPorts,
        *,
        health_of: HealthOf | None = None,
    ) -> None:
        self.kept = KeptFlows()
        self.pods = PodLookups(upstreams, _is_watched)
        self.descriptors = Descriptors(upstreams, self.pods, _is_watched)
        commands = Commands(clusters, local_ports, health_of)
        replay = ClientReplay(router, upstreams)
        self.addons = [
            self.pods, self.descriptors, commands, self.kept, replay, ListColumns(), PrivateRecordings(),
        ]  # fmt: skip
        self._files: tuple[str, ...] = ()
        for view in (KubernetesView(clusters), GrpcView(self.descriptors)):
            contentviews.add(view)

    def configure(
        self,
        *,
        keep_flows: int = KEEP_FLOWS,
        keep_bytes: int = KEEP_BYTES,
        grpc_reflection: bool = True,
        grpc_descriptors: Sequence[str] = (),
    ) -> None:
        """Takes settings. What is wrong with a file of descriptors is logged, and the others are taken."""
        self.kept.configure_limits(keep_flows=keep_flows, keep_bytes=keep_bytes)
        self.descriptors.reflection = grpc_reflection
        if tuple(grpc_descriptors) != self._files:
            self._files = tuple(grpc_descriptors)
            for mistake in self.descriptors.read(self._files):
                logger.warning("%s", mistake)

    async def aclose(self) -> None:
        """Ends what runs in the background."""
        await asyncio.gather(self.descriptors.aclose(), self.pods.aclose())


def _is_watched() -> bool:
    """Whether somebody looks at bodies and details: mitmweb and mitmproxy have a view, mitmdump prints on request."""
    addons: Any = ctx.master.addons
    return addons.get("view") is not None or getattr(ctx.options, "flow_detail", 0) >= _CONTENT_DETAIL
