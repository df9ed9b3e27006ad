"""One tunnel a user listens at loopback addresses: two would give one name's ports to whoever came first.

A lock on a file, which the kernel lets go of however its holder ends (flock(2)); the file says who that is.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import Self

from kubetunnel.core.errors import KubeTunnelError

logger = logging.getLogger(__name__)

_MAX_PID_CHARS = 20


class ClaimedByAnother(KubeTunnelError):  # noqa: N818 - named as the rest of the tree
    """Another tunnel of this user listens at loopback addresses."""

    title = "Another tunnel listens at loopback addresses"


class LoopbackClaim:
    """The right to listen, until `close`."""

    def __init__(self, file: int | None) -> None:
        self._file = file

    @classmethod
    def take(cls, path: Path) -> Self:
        """Takes it.

        Args:
            path: the lock's file; its directory is made. Where it cannot be written nobody is kept out.

        Raises:
            ClaimedByAnother
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            logger.info("No lock at %s: %s.", path, e.strerror)
            return cls(None)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(file, _MAX_PID_CHARS).decode(errors="replace").strip()
            os.close(file)
            raise ClaimedByAnother(
                f"Another tunnel of yours, process {holder or 'unknown'}, listens at loopback addresses already, and "
                "names lead there. This one does when that one has ended.",
                command=f"ps -fp {holder}" if holder.isdecimal() else f"fuser -v {path}",
            ) from e
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        return cls(file)

    def close(self) -> None:
        """Gives it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
