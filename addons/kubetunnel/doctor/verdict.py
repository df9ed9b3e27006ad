"""What a check found: a level, a sentence, and the command that mends it; and how these are shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. `SKIP`: there was nothing to look at, and that is no fault."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the report.

    Attributes:
        check: what was looked at, e.g. "kubeconfig".
        found: what was found, for people.
        mend: the command that mends or shows it; "" where there is nothing to do.
    """

    check: str
    level: Level
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Verdict:
    return Verdict(check, Level.OK, found)


def warn(check: str, found: str, mend: str) -> Verdict:
    return Verdict(check, Level.WARN, found, mend)


def fail(check: str, found: str, mend: str) -> Verdict:
    return Verdict(check, Level.FAIL, found, mend)


def skip(check: str, found: str, mend: str = "") -> Verdict:
    return Verdict(check, Level.SKIP, found, mend)


def failed(verdicts: Iterable[Verdict]) -> bool:
    """Whether anything keeps the tunnel from working."""
    return any(verdict.level is Level.FAIL for verdict in verdicts)


_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31", Level.SKIP: "2"}  # ECMA-48 8.3.117
_LEVEL_WIDTH = max(len(level) for level in Level)


def as_text(verdicts: Sequence[Verdict], *, coloured: bool) -> str:
    """A line for each, and below it the command that mends it."""
    width = max((len(verdict.check) for verdict in verdicts), default=0)
    lines = []
    for verdict in verdicts:
        level = f"{verdict.level:<{_LEVEL_WIDTH}}"
        if coloured:
            level = f"\x1b[{_COLOURS[verdict.level]}m{level}\x1b[0m"
        lines.append(f"{level}  {verdict.check:<{width}}  {verdict.found}")
        if verdict.mend:
            lines.append(f"{'':<{_LEVEL_WIDTH}}  {'':<{width}}  -> {verdict.mend}")
    return "\n".join(lines)


def as_json(verdicts: Sequence[Verdict]) -> str:
    """An object with `ok` (nothing fails) and the `checks`, each with check, level, found and mend."""
    document = {"ok": not failed(verdicts), "checks": [asdict(verdict) for verdict in verdicts]}
    return json.dumps(document, indent=2, ensure_ascii=False)
