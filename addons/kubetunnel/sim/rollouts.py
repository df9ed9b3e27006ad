"""Deployments and StatefulSets: scaled, rolled, their pods replaced (apps/v1)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from kubetunnel.sim.controlplane import SINGLE, ControlPlane, Membership
from kubetunnel.sim.objects import Identities, Workset, owner_reference, replica_set
from kubetunnel.sim.pods import PodTemplate, SimPod
from kubetunnel.sim.store import Store


class Rollouts:
    """Keeps the pods of worksets at their number, through `control`."""

    def __init__(self, store: Store, identities: Identities, control: ControlPlane) -> None:
        self._store = store
        self._identities = identities
        self._control = control
        self._worksets: dict[tuple[str, str], Workset] = {}

    async def add(
        self,
        namespace: str,
        name: str,
        replicas: int,
        template: PodTemplate,
        *,
        stateful: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create a Deployment (or a StatefulSet); returns when its pods run."""
        metadata = self._identities.metadata(namespace, name, labels)
        workset = Workset(namespace, name, 0, template, metadata, stateful)
        if not stateful:
            workset.replica_set = self._new_replica_set(workset)
        self._worksets[namespace, name] = workset
        self._show(workset)
        await self.scale(namespace, name, replicas)

    def remove(self, namespace: str) -> None:
        """Forget what is in a Namespace; the pods are not touched."""
        for workset in [w for w in self._worksets.values() if w.namespace == namespace]:
            del self._worksets[workset.namespace, workset.name]
            self._store.delete("statefulsets" if workset.stateful else "deployments", namespace, workset.name)
            self._remove_replica_set(workset)

    async def scale(self, namespace: str, name: str, replicas: int, *, grace_s: float = 0.0) -> None:
        """Start or end pods until there are `replicas`; those that were killed are started again."""
        workset = self._worksets[namespace, name]
        workset.replicas = replicas
        members = self._members(workset)
        surplus, missing = members[replicas:], max(replicas - len(members), 0)
        for pod in surplus:
            self._control.terminate(pod)
        self._show(workset)
        async with asyncio.TaskGroup() as group:
            for pod in surplus:
                group.create_task(self._end(pod, grace_s))
            for _ in range(missing):
                group.create_task(self._add_member(workset))
        self._show(workset)

    async def roll(self, namespace: str, name: str, *, version: str | None = None, grace_s: float = 0.0) -> None:
        """Roll a Deployment pod by pod (maxSurge 1, maxUnavailable 0): a new one is ready before an old one terminates.

        `version` becomes the workload's APP_VERSION; without it, it is `kubectl rollout restart`. A terminating pod
        serves on for `grace_s` seconds.
        """
        workset = self._worksets[namespace, name]
        if workset.stateful:
            raise ValueError(f"{namespace}/{name} is a StatefulSet: only Deployments are rolled")
        old = self._members(workset)
        if version is not None:
            workset.template = _with_version(workset.template, version)
        workset.revision += 1
        self._remove_replica_set(workset)
        workset.replica_set = self._new_replica_set(workset)
        self._show(workset)
        for pod in old:
            await self._add_member(workset)
            self._control.terminate(pod)
            await self._end(pod, grace_s)
            self._show(workset)

    async def replace_pod(self, pod: SimPod, *, grace_s: float = 0.0) -> SimPod:
        """What `kubectl delete pod` makes of it: a Deployment's gets a successor of another name while it terminates,
        any other comes back under its own name. Both have a new address and uid. Returns the new pod.
        """
        workset = self._workset_of(pod)
        self._control.terminate(pod)
        if workset and not workset.stateful:
            successor = await self._add_member(workset)
            await self._end(pod, grace_s)
        else:
            await self._end(pod, grace_s)
            member = self._membership(workset, pod.name) if workset else SINGLE
            successor = await self._control.add_pod(pod.namespace, pod.name, pod.template, member=member)
        if workset:
            self._show(workset)
        return successor

    def pod_changed(self, pod: SimPod) -> None:
        """Bring the counts of the pod's Deployment or StatefulSet up to date."""
        if workset := self._workset_of(pod):
            self._show(workset)

    async def _add_member(self, workset: Workset) -> SimPod:
        name = self._next_name(workset)
        member = self._membership(workset, name)
        return await self._control.add_pod(workset.namespace, name, workset.template, member=member)

    def _next_name(self, workset: Workset) -> str:
        if not workset.stateful:
            return f"{workset.replica_set}-{self._identities.suffix()}"
        pods = self._control.pods
        names = (f"{workset.name}-{ordinal}" for ordinal in range(len(pods) + 1))
        return next(name for name in names if (workset.namespace, name) not in pods)

    def _membership(self, workset: Workset, pod_name: str) -> Membership:
        if workset.stateful:
            owner = self._store.get("statefulsets", workset.namespace, workset.name)
            index = pod_name.rpartition("-")[2]
            labels = {"statefulset.kubernetes.io/pod-name": pod_name, "apps.kubernetes.io/pod-index": index}
            return Membership(owner_reference(owner) if owner else None, labels, workset.name)
        owner = self._store.get("replicasets", workset.namespace, workset.replica_set)
        return Membership(owner_reference(owner) if owner else None, {"pod-template-hash": workset.template_hash})

    async def _end(self, pod: SimPod, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        await self._control.remove_pod(pod)

    def _members(self, workset: Workset) -> list[SimPod]:
        """The pods of a workset that do not terminate, oldest first."""
        return [pod for pod in self._control.pods.values() if pod.deleted is None and self._workset_of(pod) is workset]

    def _workset_of(self, pod: SimPod) -> Workset | None:
        if pod.owner is None:
            return None
        name = pod.owner["name"]
        return self._worksets.get(
            (pod.namespace, name.rpartition("-")[0] if pod.owner["kind"] == "ReplicaSet" else name)
        )

    def _new_replica_set(self, workset: Workset) -> str:
        name = f"{workset.name}-{self._identities.suffix(10)}"
        workset.replica_set_metadata = self._identities.metadata(workset.namespace, name)
        return name

    def _remove_replica_set(self, workset: Workset) -> None:
        if workset.replica_set:
            self._store.delete("replicasets", workset.namespace, workset.replica_set)

    def _show(self, workset: Workset) -> None:
        ready = sum(pod.ready for pod in self._members(workset))
        shown = workset.object(ready)
        if workset.stateful:
            self._store.put("statefulsets", shown)
            return
        self._store.put("deployments", shown)
        self._store.put("replicasets", replica_set(workset, owner_reference(shown), ready))


def _with_version(template: PodTemplate, version: str) -> PodTemplate:
    containers = [
        replace(container, env={**container.env, "APP_VERSION": version})
        if "APP_VERSION" in container.env
        else container
        for container in template.containers
    ]
    return replace(template, containers=tuple(containers))
