"""The resources that the simulated API server has, and its discovery documents (/api, /apis, /api/v1, …)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

type Json = dict[str, Any]

READ_VERBS = ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: how its URLs, kinds and kubectl's short names are spelt, and its fields for field selectors."""

    name: str
    kind: str
    group: str = ""
    namespaced: bool = True
    verbs: tuple[str, ...] = READ_VERBS
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()  # besides metadata.name and metadata.namespace

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    def description(self) -> Json:
        """The APIResource of a discovery document."""
        singular = self.kind.lower()
        text: Json = {"name": self.name, "singularName": singular, "namespaced": self.namespaced, "kind": self.kind}
        text["verbs"] = list(self.verbs)
        if self.short_names:
            text["shortNames"] = list(self.short_names)
        if self.categories:
            text["categories"] = list(self.categories)
        return text


NAMESPACES = Resource("namespaces", "Namespace", namespaced=False, short_names=("ns",), fields=("status.phase",))
SERVICES = Resource(
    "services", "Service", short_names=("svc",), categories=("all",), fields=("spec.clusterIP", "spec.type")
)
ENDPOINTS = Resource("endpoints", "Endpoints", short_names=("ep",))
PODS = Resource(
    "pods",
    "Pod",
    short_names=("po",),
    categories=("all",),
    fields=("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
            "status.phase", "status.podIP", "status.nominatedNodeName"),
)  # fmt: skip
# always empty: kubectl describe asks for them
EVENTS = Resource(
    "events",
    "Event",
    short_names=("ev",),
    fields=("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
            "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
            "reason", "type"),
)  # fmt: skip
ENDPOINT_SLICES = Resource("endpointslices", "EndpointSlice", "discovery.k8s.io")
DEPLOYMENTS = Resource("deployments", "Deployment", "apps", short_names=("deploy",), categories=("all",))
REPLICA_SETS = Resource("replicasets", "ReplicaSet", "apps", short_names=("rs",), categories=("all",))
STATEFUL_SETS = Resource("statefulsets", "StatefulSet", "apps", short_names=("sts",), categories=("all",))

STORED = (NAMESPACES, SERVICES, ENDPOINTS, PODS, EVENTS, ENDPOINT_SLICES, DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS)
REVIEWS = (
    Resource("selfsubjectaccessreviews", "SelfSubjectAccessReview", "authorization.k8s.io", False, ("create",)),
    Resource("selfsubjectrulesreviews", "SelfSubjectRulesReview", "authorization.k8s.io", False, ("create",)),
    Resource("selfsubjectreviews", "SelfSubjectReview", "authentication.k8s.io", False, ("create",)),
)
PORT_FORWARD = Resource("pods/portforward", "PodPortForwardOptions", verbs=("create", "get"))
BY_NAME = {(resource.group, resource.name): resource for resource in (*STORED, *REVIEWS)}
GROUPS = tuple(dict.fromkeys(resource.group for resource in BY_NAME.values() if resource.group))

# what the objects and the wording are modelled on
VERSION = {
    "major": "1", "minor": "33", "gitVersion": "v1.33.0-kubetunnel.sim", "gitCommit": "simulated",
    "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "none",
    "platform": "none/none",
}  # fmt: skip


def core_versions() -> Json:
    """/api"""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(names: Iterable[str]) -> Json:
    """/apis"""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in names]}


def group(name: str) -> Json:
    """/apis/GROUP"""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name)}


def resource_list(group_name: str) -> Json:
    """/api/v1 and /apis/GROUP/v1"""
    found = [resource.description() for resource in BY_NAME.values() if resource.group == group_name]
    if group_name == "":
        found.append(PORT_FORWARD.description())
    version = f"{group_name}/v1" if group_name else "v1"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": found}


def _group(name: str) -> Json:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}
