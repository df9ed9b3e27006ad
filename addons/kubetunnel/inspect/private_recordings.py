"""What `-w` records is for the user alone: cookies, tokens and bodies are in it (the contract's section 11).

mitmproxy makes such a file as any other, readable by everybody under the usual umask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mitmproxy import ctx
from mitmproxy.addons.save import Save
from mitmproxy.io import FilteredFlowWriter


class PrivateRecordings:
    """Gives each file of `save_stream_file` the mode 0600, also one that was there, and the next one of a rotation."""

    name = "kubetunnel_private_recordings"

    def __init__(self) -> None:
        self._save: Save | None = None
        self._stock: Callable[[], None] | None = None
        self._seen: FilteredFlowWriter | None = None

    def load(self, _: Any) -> None:
        addons: Any = ctx.master.addons
        save = addons.get("save")
        if save is not None:
            self._save, self._stock = save, save.maybe_rotate_to_new_file
            save.maybe_rotate_to_new_file = self._rotate
            self._keep_private()  # of the command line; nothing is in it yet

    def done(self) -> None:
        if self._save is not None and self._stock is not None:
            self._save.maybe_rotate_to_new_file = self._stock  # type: ignore[method-assign]

    def _rotate(self) -> None:
        assert self._stock is not None  # noqa: S101 - it stands in for it
        self._stock()
        self._keep_private()

    def _keep_private(self) -> None:
        writer = self._save.stream if self._save is not None else None
        if writer is None or writer is self._seen:
            return
        self._seen = writer
        file = writer.fo.fileno()
        if stat.S_ISREG(os.fstat(file).st_mode):  # no pipe, and not /dev/null
            with suppress(OSError):  # another user's file that we may write to, or a file system without modes
                os.fchmod(file, 0o600)
