"""A coroutine driven by hand, to be cancelled at exactly one of its awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any


class CancelledAt[T]:
    """Await it in a task: the task is cancelled at the coroutine's nth suspension, counted from 1.

    `reached` says afterwards whether there was one.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], number: int) -> None:
        self._coroutine = coroutine
        self._number = number
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        awaits = self._coroutine.__await__()
        step: Callable[[], Any] = partial(awaits.send, None)
        suspensions = 0
        while True:
            try:
                yielded = step()
            except StopIteration as end:
                result: T = end.value
                return result
            suspensions += 1
            if suspensions == self._number:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                step = partial(awaits.send, (yield yielded))
            except BaseException as error:  # noqa: BLE001  (handed on, whatever it is)
                step = partial(awaits.throw, error)
