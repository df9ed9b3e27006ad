"""dig as a client: what it was told, section by section."""

from __future__ import annotations

import asyncio
import re
import subprocess
from dataclasses import dataclass, field


@dataclass
class Dug:
    """Records are lists of words, e.g. `["api.shop.svc.cluster.local.", "5", "IN", "A", "10.8.0.3"]`."""

    status: str = ""
    flags: set[str] = field(default_factory=set)
    question: str = ""
    answer: list[list[str]] = field(default_factory=list)
    authority: list[list[str]] = field(default_factory=list)
    additional: list[list[str]] = field(default_factory=list)
    edns: str = ""
    text: str = ""

    @property
    def data(self) -> list[str]:
        """The answers' data alone, sorted."""
        return sorted(" ".join(words[4:]) for words in self.answer)

    @property
    def nxdomain(self) -> bool:
        """A proper one: with the SOA that says how long it holds."""
        return self.status == "NXDOMAIN" and not self.answer and [words[3] for words in self.authority] == ["SOA"]

    @property
    def nodata(self) -> bool:
        return self.status == "NOERROR" and not self.answer and [words[3] for words in self.authority] == ["SOA"]


async def dig(server: tuple[str, int], *words: str, timeout_s: int = 10) -> Dug:
    """Asks once; raises where dig got no answer."""
    host, port = server
    command = ["dig", f"@{host}", "-p", str(port), f"+time={timeout_s}", "+tries=1", "+nocmd", *words]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=timeout_s + 10)
    if done.returncode:
        raise TimeoutError(done.stdout + done.stderr)
    return read(done.stdout)


def read(text: str) -> Dug:
    dug = Dug(text=text)
    section: list[list[str]] | None = None
    for line in text.splitlines():
        if found := re.match(r";; (ANSWER|AUTHORITY|ADDITIONAL|QUESTION) SECTION", line):
            section = getattr(dug, found[1].lower()) if found[1] != "QUESTION" else None
        elif found := re.search(r"->>HEADER<<-.*status: (\w+)", line):
            dug.status = found[1]
        elif found := re.match(r";; flags: ([\w ]*);", line):
            dug.flags = set(found[1].split())
        elif found := re.match(r"; EDNS: (.*)", line):
            dug.edns = found[1]
        elif line.startswith(";") and not line.startswith(";;") and section is None:
            dug.question = dug.question or line[1:].split()[0]
        elif line and not line.startswith(";") and section is not None:
            section.append(line.split())
    return dug
