"""Durations as Go writes them (`time.ParseDuration`): `30s`, `1m30s`, `100ms`, `1.5h`; in capitals too. And numbers."""

from __future__ import annotations

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
EXPECTED = "a duration such as 30s, 1m30s or 100ms"


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError that says what is allowed."""
    lower = text.strip().lower()
    if lower == "0":
        return 0.0
    total_s, end = 0.0, 0
    for part in _PART.finditer(lower):
        if part.start() != end:
            break
        total_s += float(part[1]) * _UNITS_S[part[2]]
        end = part.end()
    if not lower or end != len(lower):
        raise ValueError(f"{text!r} is not {EXPECTED}")
    return total_s


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as these seconds: `1m30s`, `100ms`."""
    if seconds and seconds < 1:
        return f"{seconds * 1000:g}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{value:g}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value]
    return "".join(parts) or "0s"


def format_number(number: float) -> str:
    """As people read it: 65535, as ports are written, but 1,000,000."""
    return f"{number:,}" if abs(number) >= 1_000_000 else f"{number:g}"
