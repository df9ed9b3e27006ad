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
from kubetunnel.sim.rbac import Rule
from tests.relay import Relay

TIMEOUT_S = 30.0


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


async def start(kubeconfig: Path, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetunnel.cli.forward", "--kubeconfig", str(kubeconfig), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
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
    with socket.create_server(("127.0.0.1", 9001)):
        process = await start(kubeconfig, "svc/echo", "9001")
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
            process.terminate()
            await process.communicate()
        assert line.endswith("-> service/echo 9001 (port 9001 may not be had here)\n")
        status, errors = await run(kubeconfig, "svc/echo", "9001:9001")
    assert status == 1
    assert "Cannot listen on 127.0.0.1:9001: Address already in use. Ask for any free local port with :PORT." in errors
    status, errors = await run(kubeconfig, "svc/echo", "9001", "--address", "192.0.2.1")
    assert status == 1
    assert errors.endswith("Cannot listen on 192.0.2.1:9001: Cannot assign requested address.\n")


async def test_refusals_are_one_line_with_a_command(sim: SimCluster, tmp_path: Path) -> None:
    status, errors = await run(sim.kubeconfig(tmp_path / "kubeconfig"), "svc/ecko", "80")
    assert status == 1
    assert re.fullmatch(r"kube-tunnel forward: .*no Service ecko.* See: kubectl .*get svc\n", errors), errors


async def test_a_right_to_forward_that_is_missing_is_told_at_once(sim: SimCluster, tmp_path: Path) -> None:
    reading = [Rule(["get", "list", "watch"], ["services", "endpointslices", "pods"], ["demo"])]
    sim.user("jane", reading)
    status, errors = await run(sim.kubeconfig(tmp_path / "kubeconfig", user="jane"), "svc/echo", ":80", "-n", "demo")
    assert status == 1
    assert errors.count("The right to create pods/portforward in namespace demo is missing") == 1, errors
    assert re.search(r"See: kubectl .*auth can-i create pods --subresource=portforward -n demo\n", errors), errors


async def test_a_pod_that_cannot_be_reached_now_is_no_reason_not_to_listen(sim: SimCluster, tmp_path: Path) -> None:
    sim.faults.set(None, dead_node=True)
    process = await start(sim.kubeconfig(tmp_path / "kubeconfig"), "svc/pair", ":80", "-n", "demo")
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert b"Forwarding from" in await process.stdout.readline()
        told = b""
        while b"a connection would fail now" not in told:
            told += await process.stderr.readline()
        process.terminate()
        await process.communicate()


async def test_a_watch_that_broke_and_is_back_is_told_of(sim: SimCluster, tmp_path: Path) -> None:
    async with Relay("127.0.0.1", sim.port) as relay:
        kubeconfig = relay.kubeconfig(sim.kubeconfig(tmp_path / "kubeconfig"))
        process = await start(kubeconfig, "svc/echo", ":80", "-n", "demo")
        assert process.stdout is not None and process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            await process.stdout.readline()
            await relay.stop()
            told = ""
            while " broke: " not in told:
                told += (await process.stderr.readline()).decode()
            await relay.listen()
            while "The watch on services demo/echo is back" not in told:
                told += (await process.stderr.readline()).decode()
            process.terminate()
            await process.communicate()


async def test_the_cluster_is_that_of_the_settings(sim: SimCluster, tmp_path: Path) -> None:
    settings, kubeconfig = tmp_path / "settings.yaml", sim.kubeconfig(tmp_path / "kubeconfig")
    settings.write_text("cluster: {namespace: nowhere}")
    arguments = ["svc/echo", ":80", "--config", str(settings)]
    status, errors = await run(kubeconfig, *arguments)
    assert (status, "nowhere" in errors) == (1, True), errors
    process = await start(kubeconfig, *arguments, "-namespace=demo")
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert b"Forwarding from" in await process.stdout.readline()
        process.terminate()
        await process.communicate()
    settings.write_text("cluster: {namspace: demo}")
    assert (await run(kubeconfig, *arguments))[0] == 2


async def test_the_simulated_cluster(tmp_path: Path) -> None:
    process = await start(tmp_path / "none", "svc/echo", ":80", "--demo")
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert b"Forwarding from" in await process.stdout.readline()
        process.terminate()
        _, errors = await process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.parametrize("arguments", [["svc/echo"], ["cm/echo", "80"], ["svc/echo", "80:80:80"]])
async def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path, arguments: list[str]) -> None:
    status, errors = await run(tmp_path / "none", *arguments)
    assert status == 2
    assert "Error: " in errors


async def test_an_unhealthy_pod_is_told_of_and_gets_no_connections(sim: SimCluster, tmp_path: Path) -> None:
    bad = sim.pods("demo", app="echo")[0]
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    health = {"KTUN_HEALTH_INTERVAL": "1s", "KTUN_HEALTH_MAX_FAIL": "1"}
    process = await start(kubeconfig, "-v", "-n", "demo", "svc/echo", ":7", **health)
    assert process.stdout is not None
    assert process.stderr is not None

    async def say() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()

    async with asyncio.timeout(TIMEOUT_S):
        line = (await process.stdout.readline()).decode()
        port = int(line.partition(" -> ")[0].rpartition(":")[2])
        await say()
        sim.faults.set(str(bad), 9000, refuse=True)  # only now: no connection has found it so
        while f"{bad.name}:9000 is unhealthy: " not in (await process.stderr.readline()).decode():
            assert process.returncode is None
        for _ in range(12):
            await say()
        process.terminate()
        _, errors = await process.communicate()
    assert b"Trying again" not in errors
    assert process.returncode == 0
