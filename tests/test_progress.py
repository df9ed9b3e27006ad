"""What is slow is told of once; what is quick is not."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kubetunnel import progress

logger = logging.getLogger(__name__)


async def test_only_what_is_slow_is_told_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    with progress.telling(logger, "Quick %s.", 1):
        pass
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    with progress.telling(logger, "Slow %s.", 2):
        await asyncio.sleep(0.01)  # a round of the event loop, in which the timer is due
    assert caplog.messages == ["Slow 2."]
