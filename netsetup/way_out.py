"""What to type where the state file cannot be relied upon: netsetup's work is known by name, MAC address or mark."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netsetup.errors import StateError, StepError
from netsetup.operations import MAC_PREFIX
from netsetup.programs import find_program
from netsetup.redirect import CHAIN, FAMILY, TABLE
from netsetup.resolv_conf import HELD, MARK, NEXT
from netsetup.resolvers import RESOLV_CONF

# as `resolv_conf.unmarked`; the plus of NEXT means itself
_UNMARKED = (
    f"s/^{HELD.decode()}//; /{MARK.decode()}$/d; "
    f"/^{NEXT.decode().replace('+', '[+]')}/{{N; s/^{NEXT.decode().replace('+', '[+]')}(.*)\\n\\1$//; /^$/d}}"
)


def undoing_commands(state: Path) -> str:
    """The command line that removes links, redirection and resolver line of ours, and the state file itself.

    What of these is not there is left out, but for the redirection, which only root sees.
    """
    commands = [f"sudo ip link delete {name}" for name in our_links()]
    if find_program("nft"):
        commands.append(f"sudo nft delete table {FAMILY} {TABLE}")
    elif find_program("iptables"):
        for table in ("nat", "filter"):
            commands += [f"sudo iptables -t {table} {rule} {CHAIN}" for rule in ("-D OUTPUT -j", "-F", "-X")]
    if _is_marked(RESOLV_CONF):
        commands.append(f"sudo sed -i --follow-symlinks -E '{_UNMARKED}' {RESOLV_CONF}")
    if state.exists():
        commands.append(f"sudo rm {state}")
    return "; ".join(commands)


def left_behind(state: Path) -> StateError | None:
    """What to raise where there is no state file, but work of netsetup's; None where there is none, either."""
    links = our_links()
    if not links and not _is_marked(RESOLV_CONF):
        return None
    there = [*links, *([f"a line in {RESOLV_CONF}"] if _is_marked(RESOLV_CONF) else [])]
    return StateError(
        f"netsetup has made {', '.join(there)}, but there is no {state} any more, which told how to undo it. By hand, "
        "what netsetup makes goes with these commands.",
        command=undoing_commands(state),
    )


def our_links() -> list[str]:
    """The links that bear a MAC address such as netsetup gives; none where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return []
    from netsetup.links import find_links  # pyroute2 is there on Linux alone

    try:
        with ThreadPoolExecutor(1) as thread:  # pyroute2 runs a loop of its own, and the caller may be in one
            links = thread.submit(find_links).result()
        return [link.name for link in links if link.mac.startswith(MAC_PREFIX)]
    except StepError:
        return []  # the rest of the way out is worth having


def _is_marked(path: Path) -> bool:
    try:
        return MARK in path.read_bytes()
    except OSError:
        return False
