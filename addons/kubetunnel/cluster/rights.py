"""Remembers what an API server refused us, so that a first lookup need not be refused again before it falls back.

Only the order of attempts follows from it, never a refusal: somebody who is granted a right must not wait for us to
forget that he lacked it.
"""

from __future__ import annotations

from collections.abc import Callable

from kubetunnel.cluster.resource import Resource

RIGHTS_MEMORY_S = 300.0  # after which a fall-back tries for the better way again
MEMORY_ENTRIES = 1024  # a handful a Namespace in use; forgetting one costs a refused request more


class Rights:
    """What was refused (403) a namespace, and which resources the server has not got (404)."""

    def __init__(self, clock: Callable[[], float], memory_s: float = RIGHTS_MEMORY_S) -> None:
        self._clock = clock
        self.memory_s = memory_s
        self._until: dict[tuple[str, Resource, str], float] = {}

    def refuse(self, namespace: str, resource: Resource, verb: str) -> None:
        """`verb` was refused; namespace "" means that the server has no such resource at all."""
        self._until.pop((namespace, resource, verb), None)  # to the end: the oldest stands first
        self._until[namespace, resource, verb] = self._clock() + self.memory_s
        if len(self._until) > MEMORY_ENTRIES:
            del self._until[next(iter(self._until))]

    def allows(self, namespace: str, resource: Resource, verb: str) -> bool:
        """Whether nothing is remembered that speaks against it."""
        now = self._clock()
        return all(self._until.get((where, resource, verb), now) <= now for where in (namespace, ""))

    def forget(self) -> None:
        """The credentials changed, or every way was refused: try all anew."""
        self._until.clear()
