"""Questions about oneself: `kubectl auth can-i`, `auth can-i --list`, `auth whoami` (authorization.k8s.io/v1,
authentication.k8s.io/v1).
"""

from __future__ import annotations

from typing import Any

from kubetunnel.sim.rbac import DISCOVERY_PATHS, PUBLIC_PATHS, User
from kubetunnel.sim.resources import BY_NAME
from kubetunnel.sim.status import bad_request

type Json = dict[str, Any]


def review(resource: str, posted: Json, user: User) -> Json:
    """The posted review with its `status` filled in; raises StatusError 400."""
    spec = posted.get("spec") or {}
    if resource == "selfsubjectaccessreviews":
        return posted | {"status": _access(spec, user)}
    if resource == "selfsubjectrulesreviews":
        return posted | {"spec": {}, "status": _rules(str(spec.get("namespace", "")), user)}
    return posted | {"status": {"userInfo": {"username": user.name, "groups": list(user.groups)}}}


def _access(spec: Json, user: User) -> Json:
    path, asked = spec.get("nonResourceAttributes"), spec.get("resourceAttributes")
    if path:
        allowed = path.get("verb") == "get" and user.may_get_path(str(path.get("path", "")))
    elif asked:
        allowed = user.may(
            str(asked.get("verb", "")),
            str(asked.get("resource", "")),
            subresource=str(asked.get("subresource", "")),
            namespace=str(asked.get("namespace", "")),
            name=str(asked.get("name", "")),
        )
    else:
        raise bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified")
    return {"allowed": allowed} | ({"reason": f'RBAC: allowed to user "{user.name}"'} if allowed else {})


def _rules(namespace: str, user: User) -> Json:
    rules = [
        {"verbs": list(rule.verbs), "apiGroups": [_group(resource)], "resources": [resource]}
        | ({"resourceNames": list(rule.names)} if rule.names else {})
        for rule in user.rules
        if rule.namespaces is None or namespace in rule.namespaces
        for resource in rule.resources
    ]
    paths = [{"verbs": ["get"], "nonResourceURLs": [path]} for path in (*PUBLIC_PATHS, *DISCOVERY_PATHS)]
    return {"resourceRules": rules, "nonResourceRules": paths, "incomplete": False}


def _group(resource: str) -> str:
    """The API group of a rule's resource, which rules here do not say."""
    if resource == "*":
        return "*"
    name = resource.partition("/")[0]
    return next((known.group for known in BY_NAME.values() if known.name == name), "")
