"""The manifests of deploy/: they build, the API knows each field, they ask for little, and a server takes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.core.errors import NamespaceNotFound, ServiceNotFound
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.rbac import Rule

DEPLOY = Path(__file__).parents[2] / "deploy"
KUSTOMIZATIONS = ("base", "overlays/some-namespaces")
# kinds whose version an old API server may not have yet, and an earlier one with the same fields
EARLIER = {"PodDisruptionBudget": "policy/v1beta1", "HorizontalPodAutoscaler": "autoscaling/v2beta2"}

PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "object": (str, int, dict)}

type Json = dict[str, Any]


def _why_not() -> str | None:
    """Why kustomizations cannot be built here."""
    if shutil.which("kubectl") is None:
        return "kubectl is not installed"
    command = ["kubectl", "version", "--client", "-o", "json"]
    version = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)["clientVersion"]
    number = int(version["major"]), int(version["minor"].rstrip("+"))
    return None if number >= (1, 22) else f"kubectl {version['gitVersion']} does not know the field `labels`"


def built(kustomization: str) -> list[Json]:
    if (reason := _why_not()) is not None:
        pytest.skip(reason)
    command = ["kubectl", "kustomize", str(DEPLOY / kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a deprecated field"
    return list(yaml.safe_load_all(done.stdout))


def only(objects: list[Json], kind: str) -> Json:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def unknown_fields(value: Any, type_: str, at: str) -> list[str]:
    """What the API's own types do not have. `type_` as the kubernetes package names it: `V1Pod`, `List[str]`, …"""
    if found := re.fullmatch(r"list\[(.*)\]", type_, re.IGNORECASE):
        return [x for number, item in enumerate(value) for x in unknown_fields(item, found[1], f"{at}[{number}]")]
    if found := re.fullmatch(r"dict[([]str, (.*)[)\]]", type_, re.IGNORECASE):
        inner = found[1]
        return [x for key, item in value.items() for x in unknown_fields(item, inner, f"{at}.{key}")]
    model = getattr(kubernetes.client, type_, None)
    if model is None:
        assert type_ in PLAIN, type_
        return [] if isinstance(value, PLAIN[type_]) else [f"{at}: {value!r} is no {type_}"]
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    problems = [f"{at}.{key} is unknown" for key in value if key not in names]
    return problems + [
        problem
        for key, item in value.items()
        if key in names
        for problem in unknown_fields(item, model.openapi_types[names[key]], f"{at}.{key}")
    ]


def model_of(manifest: Json) -> str:
    version: str = manifest["apiVersion"].rpartition("/")[2]
    return f"{version[0].upper()}{version[1:]}{manifest['kind']}"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_field_is_one_of_the_api(kustomization: str) -> None:
    problems = [x for each in built(kustomization) for x in unknown_fields(each, model_of(each), each["kind"])]
    assert problems == []


def test_the_field_check_can_fail() -> None:
    manifest = {"apiVersion": "v1", "kind": "Service", "spec": {"prots": [], "ports": [{"port": "x"}]}}
    assert unknown_fields(manifest, model_of(manifest), "Service") == [
        "Service.spec.prots is unknown",
        "Service.spec.ports[0].port: 'x' is no int",
    ]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_pod_security_is_restricted(kustomization: str) -> None:
    """The fields that the Pod Security Standards' level `restricted` asks for."""
    pod = only(built(kustomization), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {"configMap", "secret", "emptyDir"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_names_refer_to_what_is_there(kustomization: str) -> None:
    objects = built(kustomization)
    deployment = only(objects, "Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = only(objects, kind)["spec"]
        selector = spec.get("selector") or spec["podSelector"]
        assert selector.get("matchLabels", selector).items() <= labels, kind
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    (container,) = template["spec"]["containers"]
    assert "proxy" in {port["name"] for port in container["ports"]}
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    arguments = " ".join(container["args"])
    for mount in ("proxyauth", "ca"):
        assert f"{mounts[mount]}" in arguments
    (config,) = (volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume)
    assert config == only(objects, "ConfigMap")["metadata"]["name"]
    assert only(objects, "ServiceAccount")["metadata"]["name"] == template["spec"]["serviceAccountName"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_rights_are_the_least(kustomization: str) -> None:
    objects = built(kustomization)
    allowed = {
        (resource, verb)
        for rule in only(objects, "ClusterRole")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    read = {(resource, verb) for resource in ("services", "endpointslices") for verb in ("get", "list", "watch")}
    assert allowed == read | {("pods", "list"), ("namespaces", "get")}
    bound_everywhere = [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    assert len(bound_everywhere) == (1 if kustomization == "base" else 0)


async def test_rights_are_enough(tmp_path: Path) -> None:
    """As a user with the rights of the ClusterRole alone: everything that leads to a pod's address."""
    role, _ = yaml.safe_load_all((DEPLOY / "base" / "rbac.yaml").read_text())
    async with SimCluster() as cluster:
        cluster.user("gateway", [Rule(rule["verbs"], rule["resources"]) for rule in role["rules"]])
        access = await load_access(kubeconfig=str(cluster.kubeconfig(tmp_path / "kubeconfig", user="gateway")))
        discovery = Discovery(access)
        try:
            state = await discovery.service("demo", "echo")
            (endpoint, *_) = state.slices[0].endpoints
            assert (await discovery.pod("demo", endpoint.address)).pod == endpoint.pod
            assert await discovery.services("")
            with pytest.raises(ServiceNotFound):
                await discovery.service("demo", "nobody")
            with pytest.raises(NamespaceNotFound):
                await discovery.service("nowhere", "nobody")
        finally:
            await discovery.aclose()
            await access.aclose()


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_no_secret_is_in_the_repository(kustomization: str) -> None:
    assert "Secret" not in {each["kind"] for each in built(kustomization)}


@pytest.mark.cluster
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_a_server_takes_them(kustomization: str, tmp_path: Path) -> None:
    """A dry run on the server, object by object, in a Namespace that is there already. Nothing is made."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    listed = subprocess.run(["kubectl", "api-versions"], check=True, capture_output=True, text=True, timeout=30)
    versions = set(listed.stdout.split())
    file = tmp_path / "object.json"
    for manifest in built(kustomization):
        if "namespace" in manifest["metadata"]:
            manifest["metadata"]["namespace"] = "default"
        if manifest["apiVersion"] not in versions:
            manifest["apiVersion"] = EARLIER[manifest["kind"]]
        manifest["metadata"]["name"] += "-dry-run"
        file.write_text(json.dumps(manifest))
        command = ["kubectl", "create", "--dry-run=server", "--validate=false", "-f", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (manifest["kind"], done.stderr)
        assert "server dry run" in done.stdout
