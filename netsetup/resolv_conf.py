"""The text of resolv.conf(5): read, edited, and put back, byte for byte. Pure.

The edit adds one line before everything else, so the user's own lines, `search` and `options` stay as they are and the
former servers remain as the ones to fall back to. glibc, musl, c-ares and Go end an address at white space, so the
mark that tells our line from the user's may stand behind it.
"""

from __future__ import annotations

MARK = b"# kube-tunnel"


def nameservers(content: bytes | None) -> tuple[str, ...]:
    """The servers, in their order; what is no nameserver line is passed over."""
    lines = (line.split() for line in (content or b"").decode("utf-8", "replace").splitlines())
    return tuple(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver")


def unmarked(content: bytes | None) -> bytes | None:
    """The file without any line of ours, such as a run has left whose state file was lost."""
    if content is None or MARK not in content:
        return content
    kept = b"".join(line for line in content.splitlines(keepends=True) if not line.rstrip().endswith(MARK))
    return kept or None


def our_line(nameserver: str) -> bytes:
    return b"nameserver %s %s\n" % (nameserver.encode(), MARK)


def edited(before: bytes | None, nameserver: str) -> bytes:
    """The file with our server first."""
    return our_line(nameserver) + (before or b"")


def is_edited(content: bytes | None, nameserver: str) -> bool:
    """Whether our server is asked, and first."""
    lines = [line.strip() for line in (content or b"").splitlines()]
    return our_line(nameserver).strip() in lines and nameservers(content)[0] == nameserver


def restored(current: bytes, nameserver: str, before: bytes | None) -> bytes | None:
    """What the file is to hold without us: exactly what it held, where nobody else has changed it meanwhile.

    Where somebody has, what is there now without our line. None: there was no file, and nobody has added to ours.
    """
    ours = edited(before, nameserver)
    # the second is what a restore leaves behind that was killed between writing and cutting to length
    if current in (ours, before, (before or b"") + ours[len(before or b"") :]):
        return before
    line = our_line(nameserver).strip()
    kept = b"".join(text for text in current.splitlines(keepends=True) if text.strip() != line)
    return kept if kept or before is not None else None
