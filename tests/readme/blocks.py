"""Fenced blocks of a Markdown page, and the commands in those that are a shell's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# CommonMark 4.5: up to three spaces, three backticks or more, an info string; the end is as long or longer
_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^ {0,3}(?P=fence)`*[ \t]*$", re.M | re.S)
LANGUAGES = ("sh", "yaml", "text")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its fence, counted from 1."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """What a reader would paste at once."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(page: str, text: str) -> Iterator[Block]:
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["info"].strip(), match["text"])


def commands(block: Block) -> Iterator[Command]:
    """Line by line; a backslash at the end goes on. Comments, at a line's end too, are for people."""
    pending, started = "", 0
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        started = started if pending else number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        command = re.sub(r"(^|\s+)#\s.*$", "", pending).strip()
        if command:
            yield Command(block.page, started, command)
        pending = ""
    if pending:
        raise ValueError(f"{block.page}:{started}: the last line of the block goes on")
