"""Which UDP ports a program has at every address of this machine: what is redirected there is its, while we have not.

mDNS's responders (avahi-daemon, systemd-resolved, browsers) have 5353 so, and leave other questions without an answer:
a resolver that is led to one waits, where a closed port would send it to the next server at once. From proc(5).
"""

from __future__ import annotations

from pathlib import Path

PROC_NET = Path("/proc/net")
_EVERY_ADDRESS = ("0" * 8, "0" * 32)


def find_udp_ports(proc_net: Path = PROC_NET) -> frozenset[int]:
    """Needs no rights; none where the system does not tell."""
    found: set[int] = set()
    for table in ("udp", "udp6"):
        try:
            lines = (proc_net / table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue  # not Linux, or no IPv6
        for line in lines:
            address, _, port = line.split()[1].partition(":")
            if address in _EVERY_ADDRESS:
                found.add(int(port, 16))
    return frozenset(found)
