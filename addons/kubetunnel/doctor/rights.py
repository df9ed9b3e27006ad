"""The rights of the README's "Rights", each asked of the API server (authorization.k8s.io/v1 SelfSubjectAccessReview).

What is missing is told with what is done in its place, and the role that grants it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kubetunnel.doctor.verdict import Verdict, fail, ok, warn

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SLICES_API = "/apis/discovery.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Right:
    """`resource` as `kubectl auth can-i` takes it: "pods/portforward", "endpointslices.discovery.k8s.io"."""

    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def review(self, namespace: str) -> dict[str, Any]:
        """The question, to be POSTed to REVIEWS."""
        name, _, subresource = self.resource.partition("/")
        plural, _, group = name.partition(".")
        attributes = {"namespace": namespace, "verb": self.verb, "group": group, "resource": plural}
        if subresource:
            attributes["subresource"] = subresource
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }


SERVICES, SLICES, ENDPOINTS, PODS, FORWARDS = (
    "services",
    "endpointslices.discovery.k8s.io",
    "endpoints",
    "pods",
    "pods/portforward",
)
READING = ("get", "list", "watch")
FORWARDING = ("create", "get")

RIGHTS: tuple[Right, ...] = (
    *(Right(verb, resource) for resource in (SERVICES, SLICES, ENDPOINTS, PODS) for verb in READING),
    *(Right(verb, FORWARDS) for verb in FORWARDING),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the API server said.

    Attributes:
        granted: by right; one that could not be asked is not in it.
        slices: whether the server has EndpointSlices at all.
        user: who we are there, "" where that is not known.
    """

    namespace: str
    granted: Mapping[Right, bool]
    slices: bool = True
    user: str = ""

    def may(self, verb: str, resource: str) -> bool:
        return self.granted.get(Right(verb, resource), False)

    def lacks(self, resource: str, verbs: Collection[str] = READING) -> list[str]:
        return [verb for verb in verbs if not self.may(verb, resource)]

    def grant(self, resource: str, verbs: Collection[str]) -> str:
        """For an administrator to run."""
        name = f"kube-tunnel-{resource.partition('.')[0].replace('/', '-')}"
        scope = ["kubectl", "-n", self.namespace, "create"]
        role = [*scope, "role", name, f"--verb={','.join(verbs)}", f"--resource={resource}"]
        user = self.user or "USER"
        account = user.removeprefix("system:serviceaccount:")
        who = f"--user={user}" if account == user else f"--serviceaccount={account}"
        binding = [*scope, "rolebinding", name, f"--role={name}", who]
        return f"{shlex.join(role)} && {shlex.join(binding)}    (an administrator)"


def judge_rights(asked: Asked) -> list[Verdict]:
    """One verdict for each resource that the tunnel needs something of."""
    if not asked.granted:
        return [
            fail(
                "rights",
                f"the API server tells nobody what may be done in namespace {asked.namespace}",
                f"kubectl auth can-i --list -n {asked.namespace}",
            )
        ]
    return [_services(asked), _endpoints(asked), _pods(asked), _forwards(asked)]


def _services(asked: Asked) -> Verdict:
    check, where = "right: services", f"in namespace {asked.namespace}"
    missing = asked.lacks(SERVICES)
    if not missing:
        return ok(check, f"get, list and watch {where}")
    mend = asked.grant(SERVICES, READING)
    if not asked.may("get", SERVICES) and not asked.may("list", SERVICES):
        return fail(check, f"neither get nor list {where}: no Service can be found", mend)
    return warn(check, f"no {' and no '.join(missing)} {where}: {_slower(missing)}", mend)


def _endpoints(asked: Asked) -> Verdict:
    check, where = "right: endpoints", f"in namespace {asked.namespace}"
    mend = asked.grant(SLICES, READING)
    if asked.slices and asked.may("list", SLICES):
        missing = asked.lacks(SLICES, ("list", "watch"))
        if missing:
            return warn(check, f"no {missing[0]} of EndpointSlices {where}: {_slower(missing)}", mend)
        return ok(check, f"list and watch EndpointSlices {where}")
    why = f"no list of EndpointSlices {where}" if asked.slices else "the API server has no discovery.k8s.io/v1"
    if asked.may("list", ENDPOINTS) or asked.may("get", ENDPOINTS):
        found = f"{why}: Endpoints are taken instead"
        return warn(check, found, mend) if asked.slices else ok(check, found)
    if asked.may("list", PODS):
        lost = "Services without a selector do not work"
        return warn(check, f"{why}, and no Endpoints: the pods by the Service's selector are taken; {lost}", mend)
    if not asked.slices:
        mend = asked.grant(ENDPOINTS, READING)
    return fail(check, f"{why}, no Endpoints and no pods: nothing tells which pods a Service has", mend)


def _pods(asked: Asked) -> Verdict:
    check, where = "right: pods", f"in namespace {asked.namespace}"
    if asked.may("list", PODS):
        return ok(check, f"list {where}")
    lost = "names by address (10-244-0-16.shop.pod.cluster.local) do not work"
    return warn(check, f"no list {where}: {lost}", asked.grant(PODS, READING))


def _forwards(asked: Asked) -> Verdict:
    check, where = "right: port-forward", f"in namespace {asked.namespace}"
    mend = asked.grant(FORWARDS, FORWARDING)
    missing = asked.lacks(FORWARDS, FORWARDING)
    if not missing:
        return ok(check, f"create and get pods/portforward {where}")
    if len(missing) == len(FORWARDING):
        return fail(check, f"neither create nor get of pods/portforward {where}: no pod can be reached", mend)
    if missing == ["get"]:
        return warn(check, f"no get of pods/portforward {where}: SPDY alone, where the server is older than 1.35", mend)
    return warn(
        check, f"no create of pods/portforward {where}: WebSocket alone, and that only before Kubernetes 1.35", mend
    )


def _slower(missing: Collection[str]) -> str:
    if "list" in missing:
        return "each Service is got by its name, and asked for again at each use"
    if "watch" in missing:
        return "it is asked for again at each use, not kept up"
    return "the list does instead"
