"""Whether the API server can be reached at the moment, so that its silence is waited for once and not by each request.

While it is away the waits are short, and whoever rests between attempts is woken when anyone reaches it again.
"""

from __future__ import annotations

import asyncio
import contextlib

SHORT_S = 0.5  # a server on the same continent has answered by then, TCP and TLS
USUAL_TIMES = 4  # one far away has, after so many times what it took the last time


class Reach:
    """What the last attempts to connect to one API server came to.

    Args:
        timeout_s: for an attempt while nothing speaks against it.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._usual_s: float | None = None  # None: it was never reached
        self._silent = False
        self._away = False
        self._back = asyncio.Event()

    @property
    def timeout_s(self) -> float:
        """For the next attempt."""
        if not self._silent or self._usual_s is None:
            return self._timeout_s
        return min(self._timeout_s, max(SHORT_S, USUAL_TIMES * self._usual_s))

    def failed(self, *, silent: bool) -> None:
        """An attempt failed; `silent`: because there was no answer."""
        self._away = True
        self._silent = silent

    def succeeded(self, took_s: float) -> None:
        """An attempt succeeded."""
        self._usual_s = took_s
        self._silent = False
        if self._away:
            self._away = False
            self._back.set()
            self._back = asyncio.Event()

    async def rest(self, delay_s: float) -> None:
        """Sleep for `delay_s`, or until the API server, which was away, is reached again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._back.wait()
