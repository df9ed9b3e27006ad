"""What mitmproxy's own layers refuse is told as the rest is, in HTTP/1.1, HTTP/2 and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster

H2C = "--http2-prior-knowledge"


async def test_a_body_that_is_larger_than_the_limit(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=["--set", "body_size_limit=10"])
    for version in ("--http1.1", H2C):
        answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/upload", version, "-d", "x" * 100)
        assert (answer.status, answer.reason) == (413, "NotAServiceName"), version
        assert answer.headers["content-type"] == "application/problem+json"
        assert "body_size_limit" in answer.json["detail"]
    call = ("-H", "Content-Type: application/grpc", "-H", "TE: trailers", "-H", "Content-Length: 100")
    answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/a.B/C", H2C, *call, "-d", "x" * 100)
    assert (answer.status, answer.headers["grpc-status"], answer.reason) == (200, "3", "NotAServiceName")
    assert "body_size_limit" in answer.headers["grpc-message"]


@pytest.mark.parametrize("version", ["--http1.1", H2C])
async def test_an_answer_that_is_larger_than_the_limit(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path, version: str
) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=["--set", "body_size_limit=10"])
    answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/bytes?n=5000", version)
    assert (answer.status, answer.reason) == (502, "UpstreamProtocol")
