"""The pod ports that have answered: only to these may several streams go over one connection to the API server.

A runtime does not read what was sent to a port that refuses, and that holds up a fifth of the streams beside it
(spdystream has five workers for all frames), the pings too.
"""

from __future__ import annotations

from kubetunnel.core.catalog import PodPort

MAX_ANSWERED = 4096  # pods come and go


class AnsweredPorts:
    """Of the latest MAX_ANSWERED of them."""

    def __init__(self) -> None:
        self._ports: dict[PodPort, None] = {}

    def __contains__(self, pod_port: PodPort) -> bool:
        return pod_port in self._ports

    def add(self, pod_port: PodPort) -> None:
        """Something was heard of it."""
        if pod_port not in self._ports:
            if len(self._ports) >= MAX_ANSWERED:
                del self._ports[next(iter(self._ports))]
            self._ports[pod_port] = None

    def discard(self, pod_port: PodPort) -> None:
        """It could not be opened, or refused."""
        self._ports.pop(pod_port, None)
