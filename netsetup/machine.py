"""This machine: which boot this is, and its network as found."""

from __future__ import annotations

import sys
from pathlib import Path

from netsetup.found import Found
from netsetup.programs import run
from netsetup.resolver import find_resolver
from netsetup.udp_ports import find_udp_ports

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5)
NETWORK_NAMESPACE = Path("/proc/self/ns/net")  # namespaces(7)


def is_macos() -> bool:
    return sys.platform == "darwin"


def boot_id() -> str:
    """Different after each start of the machine, and of a container: its network namespace counts too."""
    if is_macos():
        return run(("sysctl", "-n", "kern.bootsessionuuid")).strip()
    return f"{BOOT_ID.read_text(encoding='utf-8').strip()} {NETWORK_NAMESPACE.stat().st_ino}"


def find() -> Found:
    """The network as it is now. Needs no rights.

    Raises:
        StepError: the kernel or a program does not tell.
    """
    resolver = find_resolver(macos=is_macos())
    if is_macos():
        from netsetup.macos import find_aliases, find_routes

        return Found(find_aliases(), find_routes(), resolver, redirector=None, aliases=True)
    from netsetup import links, redirect  # pyroute2 is there on Linux alone

    return Found(
        links.find_links(), links.find_routes(), resolver, redirect.find_redirector(), udp_ports=find_udp_ports()
    )
