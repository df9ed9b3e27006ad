"""What a local forward is for, in the words of kubectl: an object of the cluster, and ports of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Kinds of objects; the value is the resource's name in kubectl's short notation, `deployment/api`."""

    SERVICE = "service"
    POD = "pod"
    DEPLOYMENT = "deployment"
    STATEFUL_SET = "statefulset"
    REPLICA_SET = "replicaset"
    DAEMON_SET = "daemonset"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An object of a Namespace that a forward goes to."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value}/{self.name}"


@dataclass(frozen=True, slots=True)
class PortPair:
    """Of `8080:http`: the local port and the object's. `local` None: the same one, or a free one; 0: a free one."""

    local: int | None
    remote: int | str

    def __str__(self) -> str:
        return str(self.remote) if self.local is None else f"{self.local or ''}:{self.remote}"
