from __future__ import annotations

import json

import msgspec
import pytest

from kubetunnel.cluster import decode
from kubetunnel.core.catalog import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

META = {"name": "web", "namespace": "shop", "resourceVersion": "1", "managedFields": [{"x": 1}]}


def read[T](kind: type[T], **fields: object) -> T:
    return msgspec.json.decode(json.dumps({"metadata": META, **fields}).encode(), type=kind)


def test_a_service() -> None:
    port = {"name": "http", "port": 80, "targetPort": "web", "appProtocol": "kubernetes.io/h2c", "nodePort": 3}
    spec = {"clusterIP": "None", "ports": [port, {"port": 53, "protocol": "UDP"}], "selector": {"app": "web"}}
    found = decode.service(
        read(decode.ServiceObject, spec={**spec, "sessionAffinity": "ClientIP", "publishNotReadyAddresses": True})
    )
    assert found == Service(
        "shop",
        "web",
        (ServicePort(80, "http", "TCP", "web", "kubernetes.io/h2c"), ServicePort(53, "", "UDP", 53)),
        cluster_ip="None",
        selector={"app": "web"},
        session_affinity="ClientIP",
        publish_not_ready_addresses=True,
    )
    assert found.headless
    external = decode.service(read(decode.ServiceObject, spec={"type": "ExternalName", "externalName": "a.b"}))
    assert (external.type, external.external_name, external.ports) == ("ExternalName", "a.b", ())


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, (True, True, False)),
        ({"ready": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_a_slices_conditions(conditions: dict, expected: tuple[bool, bool, bool]) -> None:
    found = decode.endpoint_slice(
        read(decode.SliceObject, endpoints=[{"addresses": ["10.0.0.1", "10.0.0.2"], "conditions": conditions}])
    )
    (endpoint,) = found.endpoints
    assert endpoint.address == "10.0.0.1"
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


@pytest.mark.parametrize(
    ("ref", "pod"),
    [
        (None, None),
        ({"kind": "Pod", "name": "p", "namespace": "shop"}, "p"),
        ({"kind": "Pod", "name": "p"}, "p"),
        ({"kind": "Pod", "name": "p", "namespace": "other"}, None),
        ({"kind": "Node", "name": "p"}, None),
    ],
)
def test_only_a_pod_of_the_same_namespace_can_be_forwarded_to(ref: dict | None, pod: str | None) -> None:
    found = decode.endpoint_slice(
        read(decode.SliceObject, endpoints=[{"addresses": ["10.0.0.1"], "targetRef": ref, "hostname": "h"}])
    )
    assert (found.endpoints[0].pod, found.endpoints[0].hostname) == (pod, "h")


def test_empty_slices() -> None:
    for empty in (None, []):
        found = decode.endpoint_slice(read(decode.SliceObject, addressType="IPv6", endpoints=empty, ports=empty))
        assert found == EndpointSlice("web", address_type="IPv6")
    assert decode.endpoint_slice(read(decode.SliceObject, ports=[{"name": "all", "port": None}])).ports == ()


def test_endpoints_by_subset_and_family() -> None:
    ref = {"kind": "Pod", "name": "p"}
    subsets = [
        {
            "addresses": [
                {"ip": "10.0.0.1", "targetRef": ref, "hostname": "web-0", "nodeName": "n"},
                {"ip": "fd00::1"},
            ],
            "notReadyAddresses": [{"ip": "10.0.0.2"}],
            "ports": [{"name": "http", "port": 8080}],
        },
        {"addresses": None, "ports": None},
    ]
    ports = (EndpointPort(8080, "http"),)
    assert decode.slices_of_endpoints(read(decode.EndpointsObject, subsets=subsets)) == (
        EndpointSlice(
            "web-0-ipv4",
            (
                Endpoint("10.0.0.1", pod="p", hostname="web-0", node="n"),
                Endpoint("10.0.0.2", ready=False, serving=False),
            ),
            ports,
        ),
        EndpointSlice("web-0-ipv6", (Endpoint("fd00::1"),), ports, "IPv6"),
    )
    assert decode.slices_of_endpoints(read(decode.EndpointsObject, subsets=None)) == ()


def pod(name: str = "p", *, ready: str = "True", phase: str = "Running", **metadata: object) -> decode.PodObject:
    return read(
        decode.PodObject,
        metadata={**META, "name": name, **metadata},
        spec={
            "hostname": name,
            "subdomain": "web",
            "containers": [{"ports": [{"name": "metrics", "containerPort": 1}]}, {"ports": None}],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 15001}]},
                {"ports": [{"name": "once", "containerPort": 9}]},
            ],
        },
        status={"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]},
    )


def test_pods_as_slices() -> None:
    ports = (
        ServicePort(80, "named", target_port="http"),
        ServicePort(81, "number", target_port=8081),
        ServicePort(82, "missing", target_port="nope"),
        ServicePort(83, "init", target_port="once"),
    )
    of = Service("shop", "web", ports)
    (found,) = decode.slices_of_pods(of, [pod(), pod("done", phase="Succeeded")])
    assert found.ports == (EndpointPort(15001, "named"), EndpointPort(8081, "number"))
    assert found.endpoints == (Endpoint("10.0.0.1", pod="p", hostname="p"),)


def test_a_pods_readiness() -> None:
    of, eager = Service("shop", "web"), Service("shop", "web", publish_not_ready_addresses=True)
    assert not decode.pod_endpoint(pod(ready="False"), of).ready
    assert decode.pod_endpoint(pod(ready="False"), eager).ready
    ending = decode.pod_endpoint(pod(deletionTimestamp="2024-01-01T00:00:00Z"), of)
    assert (ending.ready, ending.serving, ending.terminating) == (False, True, True)
    assert decode.pod_endpoint(pod(), Service("shop", "else")).hostname == ""
