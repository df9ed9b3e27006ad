"""The resolvers that this system uses, for what is not ours: resolv.conf(5), and systemd-resolved(8) behind its stub.

While our own address stands in resolv.conf it is left out: a DNS server that asks itself would never end. So it is
where that line has outlived our network (a power cut).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kubetunnel.core.names import is_address
from netsetup.resolv_conf import nameservers, unmarked

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_CONF = Path("/run/systemd/resolve/resolv.conf")  # the servers themselves, without the stub
# systemd-resolved's stub, which it answers by link and domain (systemd-resolved.service(8))
STUB_ADDRESSES = frozenset({"127.0.0.53", "127.0.0.54"})
DNS_PORT = 53


def system_resolvers(
    ours: Collection[str] = (), *, resolv_conf: Path = RESOLV_CONF, resolved_conf: Path = RESOLVED_CONF
) -> tuple[tuple[str, int], ...]:
    """Addresses and ports, the preferred one first; none where there is no such file.

    Args:
        ours: addresses where port 53 is our own DNS server's.
    """
    listed = _servers(resolv_conf)
    if not STUB_ADDRESSES.isdisjoint(listed):
        # the stub sends our zones back to us, and may do so with others
        behind = _servers(resolved_conf)
        listed = behind or listed
    return tuple((server, DNS_PORT) for server in dict.fromkeys(listed) if server not in ours)


def _servers(path: Path) -> tuple[str, ...]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    return tuple(server for server in nameservers(unmarked(content)) if is_address(server))
