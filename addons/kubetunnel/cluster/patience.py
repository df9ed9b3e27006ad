"""How long somebody waits for something of the cluster: not counting the time in which credentials are obtained.

A plugin may take seconds, and a person who has to confirm a login longer (kubectl waits for both without a limit); its
run has a limit of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any


async def first_done[T: asyncio.Future[Any]](
    futures: Iterable[T], patience_s: float, obtaining: Callable[[], asyncio.Future[None] | None]
) -> set[T]:
    """Those of the futures that are done, as soon as one is; none of them where the patience ended before.

    Args:
        obtaining: the run that obtains credentials now, if there is one. After its end the patience begins anew.
    """
    waiting = set(futures)
    if at_once := {future for future in waiting if future.done()}:
        return at_once  # without a turn of the event loop
    while True:
        done, _ = await asyncio.wait(waiting, timeout=max(0.0, patience_s), return_when=asyncio.FIRST_COMPLETED)
        run = obtaining()
        if done or run is None:
            return done
        either: set[asyncio.Future[Any]] = {*waiting, run}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
