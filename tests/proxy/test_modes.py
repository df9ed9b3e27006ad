"""mitmdump and mitmweb as the user starts them: our mode by itself, and mitmproxy's own where they are asked for."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import ADDON, Tunnel, curl, run_mitmdump

pytestmark = pytest.mark.asyncio


async def test_it_listens_on_loopback_alone(tunnel: Tunnel) -> None:
    assert tunnel.address.startswith("127.0.0.1:")
    assert "HTTP(S) proxy listening" not in tunnel.log, "mitmproxy's own mode came first"
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", tunnel.port))


async def test_a_taken_port_ends_the_program_with_a_clear_line(tunnel: Tunnel, tmp_path: Path) -> None:
    status, said = await asyncio.to_thread(run_mitmdump, tmp_path, "-p", str(tunnel.port))
    assert status == 1
    assert f"Cannot listen on 127.0.0.1:{tunnel.port}" in said


async def test_an_address_that_is_asked_for_is_warned_of(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=["--listen-host", "0.0.0.0"])
    tunnel.wait_for("everyone who can reach this address")


async def test_regular_mode_serves_the_clusters_names(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    tunnel = await start_tunnel(
        sim.kubeconfig(tmp_path / "kubeconfig"), options=["--mode", "regular", "--listen-host", "127.0.0.1"]
    )
    inside = await asyncio.to_thread(tunnel.via_proxy, "http://pair.demo.svc.cluster.local/hostname")
    assert inside.text == "pair\n"
    refused = await asyncio.to_thread(tunnel.via_proxy, "http://nothere.demo.svc.cluster.local/")
    assert refused.reason == "ServiceNotFound"
    refused = await asyncio.to_thread(tunnel.via_proxy, "http://echo.demo.svc.cluster.local:9999/")
    assert refused.reason == "ConnectionRefused"
    async with await asyncio.start_server(outside, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        answer = await asyncio.to_thread(tunnel.via_proxy, f"http://{host}:{port}/")
    assert answer.text == "outside", "a name that is none of the cluster's goes where it always went"


async def outside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\noutside")
    writer.close()


async def test_nothing_outside_is_reached_in_our_mode(tunnel: Tunnel) -> None:
    async with await asyncio.start_server(outside, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for way in (("-x", tunnel.url), ("-p", "-x", tunnel.url), ("--socks5-hostname", f"127.0.0.1:{tunnel.port}")):
            answer = await asyncio.to_thread(curl, *way, f"http://{host}:{port}/")
            assert answer.text != "outside", way
            assert answer.reason == "NotAServiceName" or answer.exit_code in (56, 97), way


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
async def test_an_address_to_listen_at_opens_that_one_socket(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path, host: str
) -> None:
    options = ["--listen-host", host, "-p", str(free_port())]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    await asyncio.to_thread(tunnel.wait_for, "Try:")
    listening = [
        connection for connection in psutil.Process(tunnel.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]  # fmt: skip
    assert len(listening) == (1 if host != "localhost" else len(listening))
    assert {connection.laddr.port for connection in listening} == {tunnel.port}


async def test_reverse_mode_is_one_service(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    tunnel = await start_tunnel(
        sim.kubeconfig(tmp_path / "kubeconfig"),
        options=["--mode", "reverse:http://pair.demo.svc.cluster.local", "--listen-host", "127.0.0.1"],
    )
    answer = await asyncio.to_thread(curl, f"{tunnel.url}/hostname")
    assert answer.text == "pair\n"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def test_mitmweb_shows_service_and_pod(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    port = free_port()
    tunnel = await start_tunnel(
        sim.kubeconfig(tmp_path / "kubeconfig"),
        program="mitmweb",
        options=["--no-web-open-browser", "--set", f"web_port={port}", "--set", "web_password=x"],
    )
    await asyncio.to_thread(tunnel.wait_for, "Web server listening")
    assert (await asyncio.to_thread(tunnel.get, "pair.demo")).text == "pair\n"
    assert (await asyncio.to_thread(tunnel.get, "nothere.demo")).status == 404
    flows = (await asyncio.to_thread(curl, "-H", "Authorization: Bearer x", f"http://127.0.0.1:{port}/flows")).json
    answered, refused = flows
    assert answered["request"]["host"] == "pair.demo.svc.cluster.local"
    assert answered["comment"].startswith("pair:8080 · zone-a · ")
    assert answered["server_conn"]["peername"] == [sim.pod("demo", "pair").address, 8080]
    assert refused["comment"] == "ServiceNotFound"
    assert refused["marked"]


async def test_a_mode_of_mitmproxys_that_listens_everywhere_is_warned_of(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    options = ["--mode", "reverse:http://pair.demo.svc.cluster.local", "--listen-host", "0.0.0.0"]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    await asyncio.to_thread(tunnel.wait_for, r"Listening on 0\.0\.0\.0: everyone who can reach this address")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network namespace and a redirection of its own")
@pytest.mark.skipif(not (shutil.which("nft") and shutil.which("ip")), reason="needs nft and ip")
async def test_transparent_mode_routes_by_host(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--net", sys.executable, "-m", "tests.proxy.transparent", tmp_path],
        capture_output=True, text=True, timeout=60, cwd=ADDON.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "pair\n404 ServiceNotFound\n"


async def test_a_recording_loads_in_mitmproxy_without_the_addon(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    recording = tmp_path / "flows.mitm"
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=["-w", str(recording)])
    await asyncio.to_thread(tunnel.get, "pair.demo.svc.cluster.local")
    await asyncio.to_thread(tunnel.close)
    mitmdump = Path(sys.executable).parent / "mitmdump"
    read = await asyncio.to_thread(
        subprocess.run,
        [mitmdump, "-nr", recording, "--set", f"confdir={tmp_path}", "--set", "flow_detail=1"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    assert "pair.demo.svc.cluster.local" in read.stdout
    no_cluster = {"KUBECONFIG": "/nonexistent"}
    _, said = await asyncio.to_thread(run_mitmdump, tmp_path, "-nr", recording, "~comment pair:8080", env=no_cluster)
    assert "pair.demo.svc.cluster.local" in said, said
