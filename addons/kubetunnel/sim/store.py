"""The objects of the simulated cluster and their history: what etcd and the watch cache are to an API server.

Every change takes the next resourceVersion, cluster-wide. The history serves watches, and lists at an older
resourceVersion (`continue`), until it is compacted: then the answer is 410 (KEP-365, "Kubernetes API Concepts:
Efficient detection of changes").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

type Json = dict[str, Any]
type Key = tuple[str, str]  # namespace ("" where there is none) and name

FIRST_REVISION = 1000  # as in any cluster that has lived: low resourceVersions are compacted already
KEPT_CHANGES = 10_000  # bounds the memory of a long --demo


class RevisionExpired(Exception):  # noqa: N818  # named as the Status reason that it becomes
    """The history does not reach back to the wanted resourceVersion."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch. `before` is the object's last state, None where it was added."""

    revision: int
    type: str  # ADDED, MODIFIED, DELETED
    resource: str
    item: Json
    before: Json | None

    @property
    def key(self) -> Key:
        return key_of(self.item)

    @property
    def last_seen(self) -> Json:
        """The state before, as a watch shows it that selects this object no more."""
        state = self.before or self.item
        return state | {"metadata": state["metadata"] | {"resourceVersion": str(self.revision)}}


def key_of(item: Json) -> Key:
    """Namespace and name of an object."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


class Store:
    """Objects by resource ("services"), namespace and name. Objects that went in or came out are not to be changed."""

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self.oldest = FIRST_REVISION  # changes after this one are at hand
        self._changes: list[Change] = []
        self._items: dict[str, dict[Key, Json]] = {}
        self._callbacks: dict[object, Callable[[], None]] = {}

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """`callback` runs after every change, until the returned function is called."""
        token = object()
        self._callbacks[token] = callback
        return lambda: self._callbacks.pop(token, None) and None

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        return self._items.get(resource, {}).get((namespace, name))

    def items(self, resource: str, namespace: str = "") -> list[Json]:
        """The present objects, by namespace and name; of all namespaces where `namespace` is ""."""
        found = self._items.get(resource, {})
        return [found[key] for key in sorted(found) if namespace in ("", key[0])]

    def items_at(self, resource: str, revision: int) -> list[Json]:
        """The objects as they were at `revision`; raises RevisionExpired."""
        found = dict(self._items.get(resource, {}))
        for change in reversed(self.changes_after(revision)):
            if change.resource != resource:
                continue
            if change.before is None:
                del found[change.key]
            else:
                found[change.key] = change.before
        return [found[key] for key in sorted(found)]

    def changes_after(self, revision: int) -> list[Change]:
        """What happened since; raises RevisionExpired where that is no longer known."""
        if revision < self.oldest:
            raise RevisionExpired
        return self._changes[revision - self.oldest :]

    def put(self, resource: str, item: Json) -> Json:
        """Add or replace; what is equal but for its resourceVersion stays as it is. Returns the stored object."""
        found = self._items.setdefault(resource, {})
        before = found.get(key_of(item))
        if before is not None and _without_revision(before) == _without_revision(item):
            return before
        stored = found[key_of(item)] = self._next(item)
        self._record("MODIFIED" if before else "ADDED", resource, stored, before)
        return stored

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        before = self._items.get(resource, {}).pop((namespace, name), None)
        if before is not None:
            self._record("DELETED", resource, self._next(before), before)

    def compact(self) -> None:
        """Forget the history: older resourceVersions and continue tokens are expired from now on."""
        self._changes.clear()
        self.oldest = self.revision

    def _next(self, item: Json) -> Json:
        self.revision += 1
        return item | {"metadata": item["metadata"] | {"resourceVersion": str(self.revision)}}

    def _record(self, kind: str, resource: str, item: Json, before: Json | None) -> None:
        self._changes.append(Change(self.revision, kind, resource, item, before))
        if len(self._changes) > KEPT_CHANGES:
            dropped = len(self._changes) // 2
            del self._changes[:dropped]
            self.oldest += dropped
        for callback in list(self._callbacks.values()):
            callback()


def _without_revision(item: Json) -> Json:
    metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    return item | {"metadata": metadata}
