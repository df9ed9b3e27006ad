"""The simulated cluster as a child process: there when it is asked for, and gone with who asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from kubetunnel.core.errors import ClusterUnreachable
from kubetunnel.demo import Demo


def children() -> set[int]:
    return {process.pid for process in psutil.Process(os.getpid()).children()}


def read(path: str) -> str:
    return Path(path).read_text()


async def test_one_process_for_all_who_ask() -> None:
    before, demo = children(), Demo()
    first, second = await asyncio.gather(demo.kubeconfig(), demo.kubeconfig())
    assert first == second
    assert "clusters" in read(first)
    assert len(children() - before) == 1
    await demo.aclose()
    assert children() == before
    assert not os.access(first, os.F_OK)


async def test_it_imports_nothing_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    demo = Demo()
    assert "clusters" in read(await demo.kubeconfig())
    await demo.aclose()


async def test_an_end_before_it_is_there_leaves_nothing() -> None:
    before, demo = children(), Demo()
    asking = asyncio.create_task(demo.kubeconfig())
    while not children() - before:  # noqa: ASYNC110 - a process begins; nobody tells of it
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert children() == before
    await demo.aclose()


async def test_one_that_cannot_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubetunnel.demo.sys.executable", "/bin/false")
    demo = Demo()
    with pytest.raises(ClusterUnreachable, match="did not start \\(exit status"):
        await demo.kubeconfig()
    await demo.aclose()
