"""Which ports the tunnel takes by itself, and which to propose in the place of one that may not be had."""

from __future__ import annotations

DEFAULT_PORTS = (80, 8080)  # the second where the first may not be bound
_FIRST_OF_ANY_USER = 1024  # net.ipv4.ip_unprivileged_port_start, where nobody has changed it (ip-sysctl)
_LAST = 65535


def another_port(port: int) -> int:
    """One that any user may have: 8080 for 80."""
    if port < _FIRST_OF_ANY_USER:
        return port + 8000
    return port + 2 if port + 2 <= _LAST else port - 2
