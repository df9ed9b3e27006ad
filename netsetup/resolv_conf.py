"""The text of resolv.conf(5): read, edited, and put back, byte for byte. Pure.

The edit adds one line before everything else, so the user's own lines, `search` and `options` stay as they are and the
former servers remain as the ones to fall back to. glibc, musl, c-ares and Go end an address at white space, so the
mark that tells our line from the user's may stand behind it.

Lines that would keep clients from asking us first are held, that is made comments, and come back: `options rotate`;
where the C library asks all servers at once and takes the fastest answer, be it a foreign NXDOMAIN (musl), the other
servers; where names are to be searched in the cluster, the user's list, with which ours begins. A line of ours that can
bear no mark has it in the line before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MARK = b"# kube-tunnel"
NEXT = MARK + b"+ "  # a line of ours, again in the next line, where it counts
HELD = MARK + b"- "  # a line of the user's


@dataclass(frozen=True, slots=True)
class Edit:
    """What is wanted of the file.

    Attributes:
        nameserver: our server.
        search: domains to be searched after the user's own.
        alone: no other server is to be asked.
    """

    nameserver: str
    search: tuple[str, ...] = ()
    alone: bool = False


def nameservers(content: bytes | None) -> tuple[str, ...]:
    """The servers, in their order; what is no nameserver line is passed over."""
    return tuple(words[1] for words in _lines(content) if len(words) > 1 and words[0] == "nameserver")


def search_list(content: bytes | None) -> tuple[str, ...] | None:
    """The domains that are searched; None where the file says nothing of them. The last line counts."""
    lists = [words[1:] for words in _lines(content) if words[:1] in (["search"], ["domain"])]
    return tuple(lists[-1]) if lists else None


def unmarked(content: bytes | None) -> bytes | None:
    """The file as it was before us, so far as it tells: without lines of ours, with those that we hold.

    For what a run has left whose state file was lost, and for a file that others have changed since.
    """
    if content is None or MARK not in content:
        return content
    return b"".join(_unmarked(content.splitlines(keepends=True))) or None


def our_line(nameserver: str) -> bytes:
    return b"nameserver %s %s\n" % (nameserver.encode(), MARK)


def edited(before: bytes | None, wanted: Edit) -> bytes:
    """The file with our server first."""
    lines = [our_line(wanted.nameserver)]
    if wanted.search:
        listed = dict.fromkeys([*(search_list(before) or ()), *wanted.search])
        lines += _announced(f"search {' '.join(listed)}\n".encode())
    for line in (before or b"").splitlines(keepends=True):
        lines += _edited(line, wanted)
    return b"".join(lines)


def is_edited(content: bytes | None, nameserver: str) -> bool:
    """Whether our server is asked, and first."""
    lines = [line.strip() for line in (content or b"").splitlines()]
    return our_line(nameserver).strip() in lines and nameservers(content)[0] == nameserver


def restored(current: bytes, wanted: Edit, before: bytes | None) -> bytes | None:
    """What the file is to hold without us: exactly what it held, where nobody else has changed it meanwhile.

    Where somebody has, what is there now without our lines. None: there was no file, and nobody has added to ours.
    """
    ours = edited(before, wanted)
    # the last is what a restore leaves behind that was killed between writing and cutting to length
    if current in (ours, before, (before or b"") + ours[len(before or b"") :]):
        return before
    kept = unmarked(current)
    return b"" if kept is None and before is not None else kept


def _lines(content: bytes | None) -> list[list[str]]:
    return [line.split() for line in (content or b"").decode("utf-8", "replace").splitlines()]


def _edited(line: bytes, wanted: Edit) -> Sequence[bytes]:
    words = line.split()
    match words[:1]:
        case [b"options"] if b"rotate" in words:
            rest = b" ".join(word for word in words if word != b"rotate")
            # ours first: the file may end without a newline
            return [*(_announced(rest + b"\n") if rest != b"options" else ()), HELD + line]
        case [b"nameserver"] if wanted.alone:
            return [HELD + line]
        case [b"search" | b"domain"] if wanted.search:
            return [HELD + line]
        case _:
            return [line]


def _announced(line: bytes) -> list[bytes]:
    return [NEXT + line, line]


def _unmarked(lines: Sequence[bytes]) -> Iterator[bytes]:
    announced = None
    for line in lines:
        text = line.strip()
        if announced is not None and text == announced:
            announced = None
        elif text.startswith(NEXT):
            announced = text.removeprefix(NEXT)
        elif text.startswith(HELD):
            yield line[line.index(HELD) + len(HELD) :]
        elif not text.endswith(MARK):
            yield line
