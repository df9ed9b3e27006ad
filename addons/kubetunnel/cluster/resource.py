"""What is asked of the API server: a resource, which of its objects, and the path and parameters that say so.

Source: the Kubernetes API concepts page (resource URIs, field and label selectors).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from kubetunnel.cluster.decode import ApiObject


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource type of the API. `version` is e.g. "v1"; `group` is "" for the core group."""

    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    def __str__(self) -> str:
        """As `kubectl auth can-i` takes it, e.g. "endpointslices.discovery.k8s.io"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


NAMESPACES = Resource("namespaces", namespaced=False)
SERVICES = Resource("services")
ENDPOINT_SLICES = Resource("endpointslices", group="discovery.k8s.io")
ENDPOINTS = Resource("endpoints")
PODS = Resource("pods")


@dataclass(frozen=True, slots=True)
class Query[T: ApiObject]:
    """Objects of one resource in one namespace, decoded as `type`.

    Where `name` is given it is that object alone; a list then selects it by its field, which the API server turns into
    a get, and which a right that is limited to this name (resourceNames) allows.
    """

    resource: Resource
    type: type[T]
    namespace: str = ""
    name: str = ""
    labels: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        if not self.resource.namespaced or not self.namespace:  # without one: of all Namespaces
            return f"{self.resource.root}/{self.resource.plural}"
        return f"{self.resource.root}/namespaces/{quote(self.namespace, safe='')}/{self.resource.plural}"

    @property
    def object_path(self) -> str:
        return f"{self.path}/{quote(self.name, safe='')}"

    @property
    def selectors(self) -> dict[str, str]:
        fields = {"metadata.name": self.name, **self.fields} if self.name else self.fields
        parameters = {"fieldSelector": ",".join(f"{key}={value}" for key, value in fields.items())} if fields else {}
        return {**parameters, "labelSelector": self.labels} if self.labels else parameters
