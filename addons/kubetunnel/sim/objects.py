"""Kubernetes objects as the API shows them, with the defaults that an API server fills in (core/v1, apps/v1)."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubetunnel.sim.pods import Json, PodTemplate

# what generated names and template hashes are made of (apimachinery's util/rand): no vowels, no words
_SAFE_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class Identities:
    """Names, uids and times of new objects; with a seed the same names each time."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # names, not secrets

    def suffix(self, length: int = 5) -> str:
        """The random end of a generateName, or a pod-template-hash."""
        return "".join(self._random.choices(_SAFE_LETTERS, k=length))

    def uid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    @staticmethod
    def now() -> str:
        """RFC 3339, in whole seconds, as metav1.Time is."""
        return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def metadata(self, namespace: str, name: str, labels: Mapping[str, str] | None = None) -> Json:
        """The metadata of a new object; namespace "" for one that has none."""
        metadata: Json = {"name": name}
        if namespace:
            metadata["namespace"] = namespace
        metadata |= {"uid": self.uid(), "creationTimestamp": self.now()}
        return metadata | ({"labels": dict(labels)} if labels else {})


@dataclass(frozen=True, slots=True)
class Port:
    """One of a Service's ports as a manifest has it; target_port None: the same number."""

    port: int
    name: str = ""
    target_port: int | str | None = None
    app_protocol: str = ""

    def spec(self) -> Json:
        spec: Json = {"name": self.name} if self.name else {}
        spec |= {"protocol": "TCP"} | ({"appProtocol": self.app_protocol} if self.app_protocol else {})
        return spec | {"port": self.port, "targetPort": self.port if self.target_port is None else self.target_port}


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A Service as a manifest has it. cluster_ip "" is allocated, "None" is headless."""

    namespace: str
    name: str
    ports: Sequence[Port] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster_ip: str = ""
    external_name: str = ""
    publish_not_ready_addresses: bool = False
    session_affinity: str = "None"


def service(metadata: Json, spec: ServiceSpec, cluster_ip: str) -> Json:
    """A core/v1 Service; `cluster_ip` is the allocated address."""
    body: Json = {"ports": [port.spec() for port in spec.ports]} if spec.ports else {}
    if spec.selector:
        body["selector"] = dict(spec.selector)
    if spec.external_name:
        body |= {"type": "ExternalName", "externalName": spec.external_name}
    else:
        body |= {"type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip]}
        body |= {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"}
    if spec.publish_not_ready_addresses:
        body["publishNotReadyAddresses"] = True
    body["sessionAffinity"] = spec.session_affinity
    if spec.session_affinity == "ClientIP":
        body["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": 10800}}
    status: Json = {"loadBalancer": {}}
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": body, "status": status}


def namespace(metadata: Json) -> Json:
    """A core/v1 Namespace."""
    labels = {"kubernetes.io/metadata.name": metadata["name"]}
    spec = {"finalizers": ["kubernetes"]}
    status = {"phase": "Active"}
    metadata = metadata | {"labels": labels}
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status}


def owner_reference(owner: Json) -> Json:
    """The ownerReference that a controller puts on what it makes."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return reference | {"uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}


@dataclass(eq=False, slots=True)
class Workset:
    """A Deployment, or a StatefulSet (`stateful`): how many pods of which template."""

    namespace: str
    name: str
    replicas: int
    template: PodTemplate
    metadata: Json
    stateful: bool = False
    revision: int = 1
    replica_set: str = ""  # the name of a Deployment's present ReplicaSet
    replica_set_metadata: Json = field(default_factory=dict)

    @property
    def template_hash(self) -> str:
        """The pod-template-hash label of a Deployment's pods."""
        return self.replica_set.rpartition("-")[2]

    def object(self, ready: int) -> Json:
        """The apps/v1 object with `ready` of its pods ready."""
        spec: Json = {"replicas": self.replicas, "selector": {"matchLabels": dict(self.template.labels)}}
        spec["template"] = self.template.object()
        status: Json = {"observedGeneration": self.revision}
        if self.replicas:
            status |= {"replicas": self.replicas, "updatedReplicas": self.replicas}
        if ready:
            status |= {"readyReplicas": ready, "availableReplicas": ready}
        if self.stateful:
            spec |= {"serviceName": self.name, "podManagementPolicy": "Parallel"}
        else:
            rolling = {"maxSurge": 1, "maxUnavailable": 0}
            spec |= {"strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}, "progressDeadlineSeconds": 600}
            status["conditions"] = [self._available(ready)]
        kind = "StatefulSet" if self.stateful else "Deployment"
        metadata = self.metadata | {"generation": self.revision}
        return {"kind": kind, "apiVersion": "apps/v1", "metadata": metadata, "spec": spec, "status": status}

    def _available(self, ready: int) -> Json:
        since = self.metadata["creationTimestamp"]
        times = {"lastTransitionTime": since, "lastUpdateTime": since}
        if ready >= self.replicas:
            reason = {"reason": "MinimumReplicasAvailable", "message": "Deployment has minimum availability."}
            return {"type": "Available", "status": "True", **times, **reason}
        reason = {"reason": "MinimumReplicasUnavailable", "message": "Deployment does not have minimum availability."}
        return {"type": "Available", "status": "False", **times, **reason}


def replica_set(workset: Workset, owner: Json, ready: int) -> Json:
    """The ReplicaSet of a Deployment's present template; `owner` is the reference to the Deployment."""
    labels = dict(workset.template.labels) | {"pod-template-hash": workset.template_hash}
    template = workset.template.object()
    template["metadata"]["labels"] = labels
    spec = {"replicas": workset.replicas, "selector": {"matchLabels": labels}, "template": template}
    status: Json = {"replicas": workset.replicas, "observedGeneration": 1}
    if ready:
        status |= {"fullyLabeledReplicas": ready, "readyReplicas": ready, "availableReplicas": ready}
    metadata = workset.replica_set_metadata | {"labels": labels, "generation": 1, "ownerReferences": [owner]}
    return {"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": metadata, "spec": spec, "status": status}
