"""A word about what takes longer than a person expects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 1.0


@contextmanager
def telling(logger: logging.Logger, text: str, *values: object) -> Iterator[None]:
    """Logs this, once, where the block takes longer than PATIENCE_S. Arguments as those of `logger.info`."""
    timer = asyncio.get_running_loop().call_later(PATIENCE_S, logger.info, text, *values)
    try:
        yield
    finally:
        timer.cancel()
