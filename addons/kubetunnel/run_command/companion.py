"""A process beside CMD: not its child, for a program may wait for all of its children, and gone when CMD is gone.

It is forked twice, so that init adopts it, has a session of its own, so that Ctrl-C is CMD's alone, and watches the
process that becomes CMD by a pidfd (pidfd_open(2)), which no other process can come to be.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn

START_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.5  # of the watched process, where there is no pidfd (macOS)

type Facts = dict[str, Any]


class CompanionError(Exception):
    """It did not start; the text says why."""


class Companion:
    """The process, as the one that started it sees it.

    Args:
        pipe: where it writes what it has to tell, a line of JSON each time.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._read = b""

    def next_facts(self, timeout_s: float = START_TIMEOUT_S) -> Facts:
        """What it tells next. Blocks.

        Raises:
            CompanionError: it could not start, ended, or said nothing in time.
        """
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._pipe], [], [], timeout_s)
            if not ready:
                raise CompanionError(f"The tunnel did not start within {timeout_s:g} s.")
            part = os.read(self._pipe, 65536)
            if not part:
                raise CompanionError("The tunnel ended before it had started.")
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        facts: Facts = json.loads(line)
        if "error" in facts:
            raise CompanionError(str(facts["error"]))
        return facts


class Watched:
    """The process that a companion belongs to, as the companion sees it."""

    def __init__(self) -> None:
        """To be called in the watched process, before the fork."""
        self.pid = os.getpid()
        self.pidfd = os.pidfd_open(self.pid) if sys.platform == "linux" else None

    async def ended(self) -> None:
        """Returns when the process has ended."""
        import asyncio

        if self.pidfd is None:
            while self._exists():  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(POLL_INTERVAL_S)
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self.pidfd)

    def _exists(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


def start_companion(body: Callable[[Callable[[Facts], None]], None], *, talkative: bool = False) -> Companion:
    """Runs `body` in a companion of this process, which has to have a single thread.

    Args:
        body: is given what writes facts to `Companion.next_facts`; an exception of it is told there as an error.
        talkative: keep standard error; input and output are never kept.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(read_end)
            _be_companion(body, write_end, talkative=talkative)
        os._exit(0)
    os.close(write_end)
    os.waitpid(first, 0)
    return Companion(read_end)


def _be_companion(body: Callable[[Callable[[Facts], None]], None], write_end: int, *, talkative: bool) -> NoReturn:
    """Supervision point: whatever becomes of the body, this process does not go on as a copy of its parent."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if talkative else (0, 1, 2):
        os.dup2(nowhere, number)

    def tell(facts: Facts) -> None:
        os.write(write_end, json.dumps(facts).encode() + b"\n")

    try:
        body(tell)
    except BaseException as e:  # noqa: BLE001 - SystemExit is mitmproxy's way to say that it cannot start
        try:
            tell({"error": str(e) or type(e).__name__})
        except OSError:  # nobody listens any more: the command runs, or is gone
            os._exit(1)
    os._exit(0)
