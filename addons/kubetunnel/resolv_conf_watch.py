"""Whether resolv.conf still names our DNS server: DHCP clients and VPNs write the file anew when a network changes.

Names of the clusters are then asked of servers that do not know them, and nothing else would tell why.
"""

from __future__ import annotations

import logging
from pathlib import Path

from netsetup.resolv_conf import is_edited, our_line

logger = logging.getLogger(__name__)


class ResolvConfWatch:
    """Tells of the file's changes, one line for each.

    Args:
        path: resolv.conf(5).
        nameserver: the address that is to be its first server.
    """

    def __init__(self, path: Path, nameserver: str) -> None:
        self._path = path
        self._nameserver = nameserver
        self._named = True

    def look(self) -> None:
        """Reads the file; to be called now and then."""
        try:
            content = self._path.read_bytes()
        except OSError:
            content = None  # while somebody replaces it, or for good: not us, in either case
        named = is_edited(content, self._nameserver)
        if named == self._named:
            return
        self._named = named
        if named:
            logger.info("%s names the clusters' DNS server, %s, again.", self._path, self._nameserver)
        else:
            line = our_line(self._nameserver).decode().strip()
            logger.warning(
                "%s was written anew without the clusters' DNS server (DHCP, a VPN?): names of theirs do not resolve "
                "until it is the first again. See: sudo sed -i --follow-symlinks '1i %s' %s",
                self._path, line, self._path,
            )  # fmt: skip
