"""What upstreams that died in silence say of the other connections to the API server. Pure: time comes in.

One alone says little: its node may be dead, or the runtime behind it stuck. Its connection was the cause where the same
pod is reached by a new one, and hardly anything else is where those of several pods die together.
"""

from __future__ import annotations

DIED_MEMORY_S = 10.0  # they die within one interval of pings; who lost a stream comes back at once
REACHED_MEMORY_S = 1.0  # the dial that proves a death ends just before it is told

type PodName = tuple[str, str]


class Silences:
    """Of one cluster. Times are seconds of a monotonic clock; pods are (namespace, name)."""

    def __init__(self) -> None:
        self._died: dict[PodName, float] = {}
        self._reached: dict[PodName, float] = {}

    def died(self, pod: PodName, now: float) -> bool:
        """An upstream of the pod was found dead. Whether other connections are in doubt now."""
        self._forget(now)
        self._died[pod] = now
        return self._told(len(self._died) > 1 or pod in self._reached)

    def reached(self, pod: PodName, now: float) -> bool:
        """The API server answered for the pod on a new connection, if only that the pod is gone.

        Returns:
            Whether other connections are in doubt now.
        """
        self._forget(now)
        self._reached[pod] = now
        return self._told(pod in self._died)

    def _told(self, doubtful: bool) -> bool:
        if doubtful:
            self._died.clear()
        return doubtful

    def _forget(self, now: float) -> None:
        self._died = {pod: at for pod, at in self._died.items() if now - at < DIED_MEMORY_S}
        self._reached = {pod: at for pod, at in self._reached.items() if now - at < REACHED_MEMORY_S}
