"""`kube-tunnel forward` as a program: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster

TIMEOUT_S = 30.0


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


async def start(kubeconfig: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetunnel.cli.forward", "--kubeconfig", str(kubeconfig), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


async def run(kubeconfig: Path, *arguments: str) -> tuple[int | None, str]:
    process = await start(kubeconfig, *arguments)
    async with asyncio.timeout(TIMEOUT_S):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_prints_the_mapping_and_ends_in_order(sim: SimCluster, tmp_path: Path, number: int) -> None:
    process = await start(sim.kubeconfig(tmp_path / "kubeconfig"), "svc/echo", ":tcp", "-n", "demo")
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        found = re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> service/echo 7\n", lines[0])
        assert found, lines
        assert lines[1] == f"Forwarding from [::1]:{found[1]} -> service/echo 7\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        process.send_signal(number)
        writer.close()
        rest, errors = await process.communicate()
    assert process.returncode == 0
    assert rest == b""
    assert b"Traceback" not in errors


async def test_a_port_that_is_taken_here_is_told(sim: SimCluster, tmp_path: Path) -> None:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 9001))
        taken.listen()
        process = await start(kubeconfig, "svc/echo", "9001")
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
            process.terminate()
            await process.communicate()
        assert line.endswith("-> service/echo 9001 (port 9001 is taken here)\n")
        status, errors = await run(kubeconfig, "svc/echo", "9001:9001")
    assert status == 1
    assert "Cannot listen" in errors
    assert ":PORT" in errors


async def test_refusals_are_one_line_with_a_command(sim: SimCluster, tmp_path: Path) -> None:
    status, errors = await run(sim.kubeconfig(tmp_path / "kubeconfig"), "svc/ecko", "80")
    assert status == 1
    assert re.fullmatch(r"kube-tunnel forward: .*no Service ecko.* See: kubectl .*get svc\n", errors), errors


@pytest.mark.parametrize("arguments", [["svc/echo"], ["cm/echo", "80"], ["svc/echo", "80:80:80"]])
async def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path, arguments: list[str]) -> None:
    status, errors = await run(tmp_path / "none", *arguments)
    assert status == 2
    assert "Error: " in errors
