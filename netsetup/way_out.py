"""What to type where the state file cannot be relied upon: netsetup's work is known by name, MAC address or mark."""

from __future__ import annotations

import sys
from pathlib import Path

from netsetup.errors import StepError
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
    return "; ".join([*commands, f"sudo rm {state}"])


def our_links() -> list[str]:
    """The links that bear a MAC address such as netsetup gives; none where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return []
    from netsetup.links import find_links  # pyroute2 is there on Linux alone

    try:
        return [link.name for link in find_links() if link.mac.startswith(MAC_PREFIX)]
    except StepError:
        return []  # the rest of the way out is worth having


def _is_marked(path: Path) -> bool:
    try:
        return MARK in path.read_bytes()
    except OSError:
        return False
