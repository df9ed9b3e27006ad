"""Labels of the pods that flows went to: asked once a pod, in the background, and only while somebody looks at flows.

What cannot be had (the right to get pods is missing, the pod is gone) is left out. The pods' version is the hash that
their controller gives them (apps/v1: `pod-template-hash` of ReplicaSets, `controller-revision-hash` of the others).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import http, tcp

from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import Metadata, Struct
from kubetunnel.cluster.resource import PODS, Query
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.clusters import Session
from kubetunnel.proxy.upstreams import Upstreams

logger = logging.getLogger(__name__)

VERSION_LABELS = ("pod-template-hash", "controller-revision-hash")
MEMORY_PODS = 1024
MEMORY_S = 600.0  # labels of a running pod change seldom
FAILURE_MEMORY_S = 60.0
CONCURRENT_LOOKUPS = 2
PATIENCE_S = 10.0
MAX_WAITING_FLOWS = 64  # of one pod, while it is being asked for

type Key = tuple[str, str, str]  # context, Namespace, Pod
type KubeFlow = http.HTTPFlow | tcp.TCPFlow


class LabelledMetadata(Metadata, frozen=True):
    labels: dict[str, str] | None = None


class LabelledPod(Struct, frozen=True):
    metadata: LabelledMetadata


@dataclass(frozen=True, slots=True)
class PodDetails:
    """What is known of a pod beside its endpoint. `version` changes with a rollout; the pod's own name without one."""

    labels: dict[str, str]
    version: str


class PodLookups:
    """An addon: completes `flow.metadata["kube"]` with `labels` and `version`.

    Args:
        is_watched: whether anybody looks at flows.
    """

    name = "kubetunnel_pod_lookups"

    def __init__(self, upstreams: Upstreams, is_watched: Callable[[], bool]) -> None:
        self._upstreams = upstreams
        self._is_watched = is_watched
        self._known: OrderedDict[Key, tuple[PodDetails, float]] = OrderedDict()
        self._lookups: dict[Key, asyncio.Task[PodDetails]] = {}
        self._waiting: dict[Key, list[KubeFlow]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_LOOKUPS)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if flow.live:
            self._complete(flow)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self._complete(flow)

    async def details(self, session: Session, pod: PodPort) -> PodDetails:
        """Never raises one of our errors: what cannot be had is empty."""
        key = (session.access.context, pod.namespace, pod.pod)
        known = self._recall(key)
        if known is not None:
            return known
        return await asyncio.shield(self._look_up(key, session))

    async def aclose(self) -> None:
        """Ends the lookups."""
        tasks = list(self._lookups.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _complete(self, flow: KubeFlow) -> None:
        opened = self._upstreams.opened(flow.server_conn) if flow.server_conn else None
        if opened is None or not self._is_watched():
            return
        session, pod = opened.destination.session, opened.target.pod_port
        key = (session.access.context, pod.namespace, pod.pod)
        known = self._recall(key)
        if known is not None:
            _write(flow, known)
            return
        waiting = self._waiting.setdefault(key, [])
        if len(waiting) < MAX_WAITING_FLOWS:
            waiting.append(flow)
        self._look_up(key, session)

    def _recall(self, key: Key) -> PodDetails | None:
        details, until = self._known.get(key, (None, 0.0))
        return details if until > time.monotonic() else None

    def _look_up(self, key: Key, session: Session) -> asyncio.Task[PodDetails]:
        task = self._lookups.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._fetch(key, session), name=f"labels of {key[1]}/{key[2]}"
            )
            self._lookups[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return task

    async def _fetch(self, key: Key, session: Session) -> PodDetails:
        _, namespace, name = key
        labels: dict[str, str] = {}
        memory_s = MEMORY_S
        api = ApiServer(session.access)
        try:
            async with self._slots, asyncio.timeout(PATIENCE_S):
                found = await api.get_object(Query(PODS, LabelledPod, namespace, name))
            labels = (found.metadata.labels or {}) if found else {}
        except (KubeTunnelError, TimeoutError) as error:
            logger.debug("No labels of pod %s/%s: %s", namespace, name, error)
            memory_s = FAILURE_MEMORY_S
        finally:
            await api.aclose()
        version = next((labels[label] for label in VERSION_LABELS if label in labels), name)
        details = PodDetails(labels, version)
        self._known[key] = details, time.monotonic() + memory_s
        self._known.move_to_end(key)
        if len(self._known) > MEMORY_PODS:
            self._known.popitem(last=False)
        return details

    def _fetched(self, key: Key, task: asyncio.Task[PodDetails]) -> None:
        """Supervision point: the task is the flows' as much as anybody's who awaits it."""
        self._lookups.pop(key, None)
        flows = self._waiting.pop(key, ())
        if task.cancelled():
            return
        if error := task.exception():
            logger.error("Looking up pod %s/%s failed.", key[1], key[2], exc_info=error)
            return
        for flow in flows:
            _write(flow, task.result())


def _write(flow: KubeFlow, details: PodDetails) -> None:
    # merged: a raw flow's counts may have come meanwhile
    flow.metadata["kube"] = {**flow.metadata.get("kube", {}), "version": details.version, "labels": details.labels}
