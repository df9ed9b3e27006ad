"""Server-side printing: lists and objects as meta/v1 Table, with the columns of pkg/printers/internalversion.

kubectl asks for it with `Accept: application/json;as=Table;v=v1;g=meta.k8s.io` and prints the cells as they come.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence

from kubetunnel.sim.pods import Json
from kubetunnel.sim.resources import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    NAMESPACES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)  # fmt: skip

NONE = "<none>"
UNSET = "<unset>"
SHOWN_ENDPOINTS = 3  # formatEndpoints, formatDiscoveryPorts

# columns by resource; those after "|" are shown with -o wide only
_COLUMNS = {
    NAMESPACES.name: "Name Status Age",
    SERVICES.name: "Name Type Cluster-IP External-IP Port(s) Age | Selector",
    ENDPOINTS.name: "Name Endpoints Age",
    ENDPOINT_SLICES.name: "Name AddressType Ports Endpoints Age",
    PODS.name: "Name Ready Status Restarts Age | IP Node Nominated_Node Readiness_Gates",
    DEPLOYMENTS.name: "Name Ready Up-to-date Available Age | Containers Images Selector",
    REPLICA_SETS.name: "Name Desired Current Ready Age | Containers Images Selector",
    STATEFUL_SETS.name: "Name Ready Age | Containers Images",
}
_INTEGERS = ("Restarts", "Desired", "Current", "Up-to-date", "Available")

type Cells = list[str | int]


def table(resource: Resource, items: Sequence[Json], metadata: Json, *, include: str, columns: bool = True) -> Json:
    """`items` as a Table. `include` is the request's includeObject: "None", "Object" or "Metadata" ("" too)."""
    now = datetime.datetime.now(datetime.UTC)
    rows = [{"cells": _cells(resource, item, now), "object": _row_object(item, include)} for item in items]
    definitions = _definitions(resource) if columns else None
    document: Json = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return document | {"columnDefinitions": definitions, "rows": rows}


def _definitions(resource: Resource) -> list[Json]:
    shown, _, wide = _COLUMNS.get(resource.name, "Name Age").partition("|")
    priorities = [(name, 0) for name in shown.split()] + [(name, 1) for name in wide.split()]
    return [
        {
            "name": name.replace("_", " "),
            "type": "integer" if name in _INTEGERS else "string",
            "format": "name" if name == "Name" else "",
            "description": "",
            "priority": priority,
        }
        for name, priority in priorities
    ]


def _row_object(item: Json, include: str) -> Json | None:
    if include == "None":
        return None
    if include == "Object":
        return item
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _cells(resource: Resource, item: Json, now: datetime.datetime) -> Cells:
    created = datetime.datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    age = human_duration((now - created).total_seconds())
    cells = _CELLS.get(resource.name)
    return [item["metadata"]["name"], *(cells(item, age) if cells else [age])]


def _namespace(item: Json, age: str) -> Cells:
    return [item["status"]["phase"], age]


def _service(item: Json, age: str) -> Cells:
    spec = item["spec"]
    external = spec.get("externalName", NONE)
    ports = ",".join(f"{p['port']}/{p['protocol']}" for p in spec.get("ports", ())) or NONE
    address = spec.get("clusterIP") or NONE
    return [spec["type"], address, external, ports, age, _labels(spec.get("selector"))]


def _endpoints(item: Json, age: str) -> Cells:
    subsets = item.get("subsets")
    if subsets is None:
        return [NONE, age]
    pairs = [
        f"{address['ip']}:{port['port']}"
        for subset in subsets
        for port in subset.get("ports", ())
        for address in subset.get("addresses", ())
    ]
    return [_shortened(pairs), age]


def _endpoint_slice(item: Json, age: str) -> Cells:
    ports = [str(port["port"]) for port in item["ports"] or ()]
    addresses = [endpoint["addresses"][0] for endpoint in item["endpoints"] or ()]
    return [item["addressType"], _shortened(ports) or UNSET, _shortened(addresses) or UNSET, age]


def _shortened(values: Sequence[str]) -> str:
    text = ",".join(values[:SHOWN_ENDPOINTS])
    return f"{text} + {len(values) - SHOWN_ENDPOINTS} more..." if len(values) > SHOWN_ENDPOINTS else text


def _pod(item: Json, age: str) -> Cells:
    status = item["status"]
    containers = status["containerStatuses"]
    ready = sum(container["ready"] for container in containers)
    reasons = [c["state"]["waiting"]["reason"] for c in containers if "waiting" in c["state"]]
    phase = "Terminating" if "deletionTimestamp" in item["metadata"] else (reasons or [status["phase"]])[0]
    wide: Cells = [status.get("podIP", NONE), item["spec"].get("nodeName", NONE), NONE, NONE]
    restarts = max(container["restartCount"] for container in containers)
    return [f"{ready}/{len(containers)}", phase, restarts, age, *wide]


def _deployment(item: Json, age: str) -> Cells:
    status = item["status"]
    ready = f"{status.get('readyReplicas', 0)}/{item['spec']['replicas']}"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return [ready, updated, available, age, *_containers(item), _labels(item["spec"]["selector"]["matchLabels"])]


def _replica_set(item: Json, age: str) -> Cells:
    status = item["status"]
    counts: Cells = [item["spec"]["replicas"], status["replicas"], status.get("readyReplicas", 0)]
    return [*counts, age, *_containers(item), _labels(item["spec"]["selector"]["matchLabels"])]


def _stateful_set(item: Json, age: str) -> Cells:
    return [f"{item['status'].get('readyReplicas', 0)}/{item['spec']['replicas']}", age, *_containers(item)]


def _containers(item: Json) -> list[str]:
    containers = item["spec"]["template"]["spec"]["containers"]
    return [",".join(c["name"] for c in containers), ",".join(c["image"] for c in containers)]


def _labels(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


_CELLS: dict[str, Callable[[Json, str], Cells]] = {
    NAMESPACES.name: _namespace,
    SERVICES.name: _service,
    ENDPOINTS.name: _endpoints,
    ENDPOINT_SLICES.name: _endpoint_slice,
    PODS.name: _pod,
    DEPLOYMENTS.name: _deployment,
    REPLICA_SETS.name: _replica_set,
    STATEFUL_SETS.name: _stateful_set,
}


def human_duration(seconds_since: float) -> str:
    """An age as kubectl shows it (apimachinery's duration.HumanDuration, up to its steps of days)."""
    seconds = max(int(seconds_since), 0)
    minutes, hours = seconds // 60, seconds // 3600
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    return _two(days, "d", hours % 24, "h") if days < 8 else f"{days}d"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}" + (f"{small}{small_unit}" if small else "")
