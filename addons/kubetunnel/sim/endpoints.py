"""Service and Pods in, EndpointSlices and Endpoints out: the controllers of Kubernetes, as far as the demo needs them.

After pkg/controller/endpointslice (reconciler.go; utils.go: getEndpointPorts, podToEndpoint), pkg/controller/endpoint.
Ports that resolve to different numbers in different pods make a slice each; no pod at all makes a placeholder slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kubetunnel.sim.objects import Identities, owner_reference
from kubetunnel.sim.pods import NODE_NAME, ZONE, Json, SimPod
from kubetunnel.sim.selectors import equality
from kubetunnel.sim.store import Store

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS_LABEL = "service.kubernetes.io/headless"

type Ports = tuple[tuple[str, int, str, str], ...]  # name, number, protocol, appProtocol


class EndpointsController:
    """Writes the EndpointSlices and Endpoints of Services with a selector."""

    def __init__(self, store: Store, identities: Identities) -> None:
        self._store = store
        self._identities = identities

    def sync(self, service: Json, pods: Iterable[SimPod]) -> None:
        """Make the Service's EndpointSlices and Endpoints fit `pods`."""
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        if not service["spec"].get("selector"):
            return
        members = selected(service, pods)
        present = self._slices_of(namespace, name)
        wanted = slices(service, members)
        for content in wanted:
            kept = next((item for item in present if item["addressType"] == content["addressType"]), None)
            if kept is not None:
                present.remove(kept)
            self._put_slice(service, content, kept)
        for item in present:
            self._store.delete("endpointslices", namespace, item["metadata"]["name"])
        self._put_endpoints(service, subsets(service, members))

    def remove(self, namespace: str, name: str) -> None:
        """Remove what a Service leaves behind."""
        self._store.delete("endpoints", namespace, name)
        for item in self._slices_of(namespace, name):
            self._store.delete("endpointslices", namespace, item["metadata"]["name"])

    def _slices_of(self, namespace: str, name: str) -> list[Json]:
        found = self._store.items("endpointslices", namespace)
        return [item for item in found if item["metadata"]["labels"].get(SERVICE_NAME_LABEL) == name]

    def _put_slice(self, service: Json, content: Json, kept: Json | None) -> None:
        if kept is None:
            base = service["metadata"]["name"]
            name = f"{base}-{self._identities.suffix()}"
            metadata = self._identities.metadata(service["metadata"]["namespace"], name)
            metadata |= {"generateName": f"{base}-", "generation": 0, "ownerReferences": [owner_reference(service)]}
        else:
            metadata = kept["metadata"]
        labels = slice_labels(service)
        if kept and labels == metadata["labels"] and all(kept[key] == value for key, value in content.items()):
            return
        metadata = metadata | {"labels": labels, "generation": metadata["generation"] + 1}
        head: Json = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata}
        self._store.put("endpointslices", head | content)

    def _put_endpoints(self, service: Json, found: list[Json]) -> None:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        before = self._store.get("endpoints", namespace, name)
        labels = dict(service["metadata"].get("labels", {}))
        if service["spec"].get("clusterIP") == "None":
            labels[HEADLESS_LABEL] = ""
        metadata = before["metadata"] if before else self._identities.metadata(namespace, name)
        metadata = metadata | ({"labels": labels} if labels else {})
        item: Json = {"kind": "Endpoints", "apiVersion": "v1", "metadata": metadata}
        self._store.put("endpoints", item | ({"subsets": found} if found else {}))


def selected(service: Json, pods: Iterable[SimPod]) -> list[SimPod]:
    """The pods that the Service's selector takes, by address, those without an address left out."""
    selector = equality(service["spec"]["selector"])
    namespace = service["metadata"]["namespace"]
    found = [pod for pod in pods if pod.namespace == namespace and pod.running and selector.matches(pod.labels)]
    return sorted(found, key=lambda pod: tuple(int(part) for part in pod.address.split(".")))


def slices(service: Json, pods: Sequence[SimPod]) -> list[Json]:
    """The contents (addressType, endpoints, ports) of the Service's EndpointSlices."""
    by_ports: dict[Ports, list[Json]] = {}
    for pod in pods:
        by_ports.setdefault(_ports(service, pod), []).append(_endpoint(service, pod))
    found = [_slice("IPv4", endpoints, ports) for ports, endpoints in by_ports.items()]
    found = found or [_slice("IPv4", None, None)]
    if service["spec"].get("clusterIP") == "None":
        # a headless Service without ipFamilies gets a slice of both, of a single-stack cluster's pods one stays empty
        found.append(_slice("IPv6", None, None))
    return found


def slice_labels(service: Json) -> dict[str, str]:
    """The labels of the Service's EndpointSlices."""
    labels = {**service["metadata"].get("labels", {}), MANAGED_BY_LABEL: MANAGER}
    labels[SERVICE_NAME_LABEL] = service["metadata"]["name"]
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS_LABEL] = ""
    return labels


def subsets(service: Json, pods: Sequence[SimPod]) -> list[Json]:
    """The `subsets` of the Service's Endpoints; terminating pods are in none, ones that are not ready apart."""
    by_ports: dict[Ports, list[SimPod]] = {}
    for pod in pods:
        if pod.deleted is None:
            by_ports.setdefault(_ports(service, pod), []).append(pod)
    found = []
    for ports, members in by_ports.items():
        subset: Json = {}
        for pod in members:
            kind = "addresses" if _counts_as_ready(service, pod) else "notReadyAddresses"
            subset.setdefault(kind, []).append(_address(service, pod))
        found.append(subset | {"ports": [_port(port, named=bool(port[0])) for port in ports]})
    return found


def _counts_as_ready(service: Json, pod: SimPod) -> bool:
    return pod.ready or bool(service["spec"].get("publishNotReadyAddresses"))


def _ports(service: Json, pod: SimPod) -> Ports:
    """The Service's ports in this pod; a named one that the pod has not got is left out."""
    found = []
    for port in service["spec"].get("ports", ()):
        number = pod.port_number(port["targetPort"])
        if number is not None:
            found.append((port.get("name", ""), number, port["protocol"], port.get("appProtocol", "")))
    return tuple(found)


def _port(port: tuple[str, int, str, str], *, named: bool = True) -> Json:
    name, number, protocol, app_protocol = port
    text: Json = {"name": name} if named else {}
    text |= {"port": number, "protocol": protocol}
    return text | ({"appProtocol": app_protocol} if app_protocol else {})


def _slice(address_type: str, endpoints: list[Json] | None, ports: Ports | None) -> Json:
    listed = None if ports is None else [_port(port) for port in ports]
    return {"addressType": address_type, "endpoints": endpoints, "ports": listed}


def _endpoint(service: Json, pod: SimPod) -> Json:
    terminating = pod.deleted is not None
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    ready = published or (pod.ready and not terminating)
    conditions = {"ready": ready, "serving": pod.ready, "terminating": terminating}
    endpoint: Json = {"addresses": [pod.address], "conditions": conditions}
    return endpoint | _hostname(service, pod) | {"nodeName": NODE_NAME, "targetRef": _reference(pod), "zone": ZONE}


def _address(service: Json, pod: SimPod) -> Json:
    return {"ip": pod.address, **_hostname(service, pod), "nodeName": NODE_NAME, "targetRef": _reference(pod)}


def _hostname(service: Json, pod: SimPod) -> Json:
    of_service = pod.hostname and pod.subdomain == service["metadata"]["name"]
    return {"hostname": pod.hostname} if of_service else {}


def _reference(pod: SimPod) -> Json:
    return {"kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
