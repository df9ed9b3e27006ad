"""Who may do what: users with rules, as RBAC would have it (rbac.authorization.k8s.io/v1, rules only ever allow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# every authenticated user's, of anonymous ones the last four (ClusterRoles system:discovery, system:public-info-viewer)
DISCOVERY_PATHS = ("/api", "/apis", "/openapi")
PUBLIC_PATHS = ("/version", "/healthz", "/livez", "/readyz")
ANONYMOUS = "system:anonymous"
_SELF_REVIEWS = ("selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews")


@dataclass(frozen=True, slots=True)
class Rule:
    """`verbs` on `resources` ("pods", "pods/portforward", "*") in `namespaces`; None: in all, and cluster-wide.

    `names` limits it to objects of these names.
    """

    verbs: Sequence[str]
    resources: Sequence[str]
    namespaces: Sequence[str] | None = None
    names: Sequence[str] | None = None

    def allows(self, verb: str, resource: str, namespace: str, name: str) -> bool:
        if not ({verb, "*"} & set(self.verbs) and {resource, "*"} & set(self.resources)):
            return False
        if self.namespaces is not None and namespace not in self.namespaces:
            return False
        return self.names is None or name in self.names


@dataclass(frozen=True, slots=True)
class User:
    """A user by name; `rules` are all that it may do on resources."""

    name: str
    rules: tuple[Rule, ...] = ()
    groups: tuple[str, ...] = ("system:authenticated",)

    @property
    def anonymous(self) -> bool:
        return self.name == ANONYMOUS

    def may(self, verb: str, resource: str, *, subresource: str = "", namespace: str = "", name: str = "") -> bool:
        """Whether a rule allows it; namespace "" is the cluster scope."""
        if resource in _SELF_REVIEWS and not self.anonymous:
            return True
        what = f"{resource}/{subresource}" if subresource else resource
        return any(rule.allows(verb, what, namespace, name) for rule in self.rules)

    def may_get_path(self, path: str) -> bool:
        """Whether a path that is no resource may be read."""
        allowed = PUBLIC_PATHS if self.anonymous else (*PUBLIC_PATHS, *DISCOVERY_PATHS)
        everything = any("*" in rule.resources and rule.namespaces is None for rule in self.rules)
        return everything or path in allowed or path.startswith(tuple(f"{known}/" for known in allowed))


ADMIN = User("admin", (Rule(["*"], ["*"]),), ("system:masters", "system:authenticated"))
LIMITED = User("limited", (Rule(["get", "list", "watch"], ["pods", "services", "endpoints"], ["demo"]),))
NOBODY = User(ANONYMOUS, (), ("system:unauthenticated",))
