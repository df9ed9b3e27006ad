"""How far away the API server is, and whether it can be reached at the moment: how long to wait for it.

One that is dead must not hold up everybody for long, and one behind a slow link must be given the time that it takes.
So the limits follow from what it took the last time: short where that was short, and long where it was never reached.
While it is away its silence is waited for once and not by each request, and whoever rests between attempts is woken
when anyone reaches it again.
"""

from __future__ import annotations

import asyncio
import contextlib

FIRST_S = 10.0  # to connect for the first time, TCP and TLS: net/http's limit for a handshake, so kubectl's
FIRST_PATIENCE_S = 12.0  # for the first answer
LONGEST_S = 10.0  # to connect, however long it took the last time
LONGEST_PATIENCE_S = 20.0
LEAST_S = 1.5  # a lost SYN is sent again after 1 s (RFC 6298 2.1)
LEAST_PATIENCE_S = 1.8  # an API server nearby that says nothing for so long is dead, or hangs
SHORT_S = 0.5  # while it is silent: a server on the same continent has answered by then, TCP and TLS
USUAL_TIMES = 4  # what it took the last time, so many times, is enough


class Reach:
    """What the last attempts to connect to one API server, and to get an answer, came to.

    Args:
        first_s: to connect for the first time.
    """

    def __init__(self, first_s: float = FIRST_S) -> None:
        self._first_s = first_s
        self._connected_in_s: float | None = None  # None: it was never reached
        self._answered_in_s: float | None = None
        self._mute = False  # a request was not answered in time
        self._silent = False
        self._away = False
        self._back = asyncio.Event()

    @property
    def timeout_s(self) -> float:
        """To connect in the next attempt."""
        if self._connected_in_s is None:
            return min(LEAST_S, self._first_s) if self._silent else self._first_s
        return _within(USUAL_TIMES * self._connected_in_s, SHORT_S if self._silent else LEAST_S, LONGEST_S)

    @property
    def patience_s(self) -> float:
        """For an exchange that somebody waits for: a few round trips, and a connection where there is none."""
        if self._connected_in_s is None or self._answered_in_s is None:
            return LEAST_PATIENCE_S if self._silent else FIRST_PATIENCE_S
        usual_s = self._connected_in_s + self._answered_in_s
        return _within(USUAL_TIMES * usual_s, LEAST_PATIENCE_S, LONGEST_PATIENCE_S)

    def answer_timeout_s(self, usual_s: float) -> float:
        """For the next answer, at least `usual_s`. After one that did not come in time the next may take long, and only
        that one: who hangs is waited for by few, and who became slow is found out.
        """
        if self._mute:
            self._mute = False
            return LONGEST_PATIENCE_S
        return max(usual_s, self.patience_s)

    def failed(self, *, silent: bool) -> None:
        """An attempt failed; `silent`: because there was no answer."""
        self._away = True
        self._silent = silent

    def succeeded(self, took_s: float) -> None:
        """An attempt succeeded."""
        self._connected_in_s = took_s
        self._silent = False
        if self._away:
            self._away = False
            self._back.set()
            self._back = asyncio.Event()

    def answered(self, took_s: float) -> None:
        """It answered a request."""
        self._answered_in_s = took_s
        self._mute = False

    def unanswered(self) -> None:
        """A request was not answered in time."""
        self._mute = True

    async def rest(self, delay_s: float) -> None:
        """Sleep for `delay_s`, or until the API server, which was away, is reached again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._back.wait()


def _within(value_s: float, least_s: float, most_s: float) -> float:
    return max(least_s, min(most_s, value_s))
