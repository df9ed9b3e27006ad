"""Which port-forward protocol an API server speaks, and what is remembered of it. Pure.

Two offers lead to three protocols. The WebSocket offer names the tunnel (KEP-4006) and v4.channel together: a server
that knows the tunnel takes it, an old one takes v4, with no round trip lost; the stream that waits is served over v4,
and the next ones over SPDY, which an old server speaks and which carries many streams. The SPDY offer is for servers
(and proxies before them) that refuse WebSocket. What answered is offered first from then on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kubetunnel.forward.errors import TEXT_CHARACTERS, pod_is_gone
from kubetunnel.forward.upgrade import Refusal

TUNNEL = "SPDY/3.1+portforward.k8s.io"
SPDY = "SPDY/3.1"
CHANNEL = "v4.channel.k8s.io"
SPDY_AGAIN_S = 600.0  # a proxy that swallowed SPDY may be gone by then


class Way(Enum):
    """How a port-forward can be asked for."""

    WEBSOCKET = "WebSocket"
    SPDY = "SPDY"


class Memory:
    """What worked with one cluster. Rights differ by namespace, so a refusal is no more than a hint."""

    def __init__(self) -> None:
        self.protocol: str | None = None
        self._spdy_refused_at: float | None = None

    def order(self, now: float) -> tuple[Way, ...]:
        """The offers to make, in turn."""
        spdy_refused = self._spdy_refused_at is not None and now - self._spdy_refused_at < SPDY_AGAIN_S
        spdy_first = self.protocol == SPDY or (self.protocol == CHANNEL and not spdy_refused)
        return (Way.SPDY, Way.WEBSOCKET) if spdy_first else (Way.WEBSOCKET, Way.SPDY)

    def took(self, protocol: str) -> None:
        self.protocol = protocol

    def refused(self, way: Way, now: float) -> None:
        """The server (or what stands before it) does not speak it."""
        if way is Way.SPDY:
            self._spdy_refused_at = now


class Meaning(Enum):
    """What a refusal says."""

    UNKNOWN_PROTOCOL = "the protocol is not spoken"
    FORBIDDEN = "a right is missing"
    UNAUTHENTICATED = "the credentials were not taken"
    POD_GONE = "there is no such pod"
    OVERLOADED = "ask again later"
    NODE_UNREACHABLE = "the API server does not reach the pod's node"


@dataclass(frozen=True, slots=True)
class Verdict:
    meaning: Meaning
    message: str
    verb: str = ""  # of the missing right
    retry_after_s: float = 0.0  # at least


def judge(refusal: Refusal) -> Verdict:
    """What an answer other than 101 means.

    Old servers answer an unknown WebSocket protocol with 403, as they do a missing right; only the right has a Status.
    """
    status = _status(refusal.body)
    said = " ".join(str((status or {}).get("message") or refusal.body.decode(errors="replace")).split())
    message = said[:TEXT_CHARACTERS] or f"status {refusal.status}"
    if refusal.status == 401:
        return Verdict(Meaning.UNAUTHENTICATED, message)
    if refusal.status == 403 and status is not None:
        found = re.search(r"cannot (\w+) resource", said)
        return Verdict(Meaning.FORBIDDEN, message, found[1] if found else "")
    if refusal.status == 404 and (status is not None or "pod" in said.casefold()):
        return Verdict(Meaning.POD_GONE, message)
    if refusal.status >= 400 and (pod_is_gone(said) or "does not have a host assigned" in said):
        return Verdict(Meaning.POD_GONE, message)  # the kubelet's and the runtime's words; the API server's own
    # API priority and fairness answers 429; 503 is overload only where it says how long (RFC 9110 15.6.4)
    if refusal.status == 429 or (refusal.status == 503 and refusal.retry_after_s is not None):
        return Verdict(Meaning.OVERLOADED, message, retry_after_s=refusal.retry_after_s or 0.0)
    if refusal.status >= 500 and re.search(r"dial|no route|i/o timeout|not ready|unavailable", said):
        return Verdict(Meaning.NODE_UNREACHABLE, message)
    return Verdict(Meaning.UNKNOWN_PROTOCOL, message)


def _status(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("kind") == "Status" else None
