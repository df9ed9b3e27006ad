"""Deadlines of many exchanges with few timers: mitmproxy cannot take a wakeup back, so one a request would pile up."""

from __future__ import annotations

import re

_GRPC_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Deadlines[Key]:
    """Who waits until when. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._at_s: dict[Key, float] = {}
        self._wakeup_at_s: float | None = None

    def __len__(self) -> int:
        return len(self._at_s)

    def __contains__(self, key: object) -> bool:
        return key in self._at_s

    def set(self, key: Key, at_s: float) -> bool:
        """Sets one; True where a wakeup at that time is to be asked for, as none is due before it."""
        self._at_s[key] = at_s
        if self._wakeup_at_s is not None and self._wakeup_at_s <= at_s:
            return False
        self._wakeup_at_s = at_s
        return True

    def discard(self, key: Key) -> None:
        """Takes one back."""
        self._at_s.pop(key, None)

    def passed(self, now_s: float) -> list[Key]:
        """Removes and returns those that have passed, oldest first."""
        passed = sorted((key for key, at_s in self._at_s.items() if at_s <= now_s), key=self._at_s.__getitem__)
        for key in passed:
            del self._at_s[key]
        return passed

    def next_wakeup(self, now_s: float) -> float | None:
        """To be called at a wakeup: when the next one is to be asked for, None where none is needed."""
        if self._wakeup_at_s is not None and self._wakeup_at_s > now_s:
            return None  # an earlier one came; the one that was asked for is still due
        self._wakeup_at_s = min(self._at_s.values(), default=None)
        return self._wakeup_at_s


def parse_grpc_timeout(value: str) -> float | None:
    """`grpc-timeout` in seconds; None where it is malformed ("gRPC over HTTP2", Timeout)."""
    match = re.fullmatch(r"([0-9]{1,8})([HMSmun])", value)
    return int(match[1]) * _GRPC_UNITS_S[match[2]] if match else None
