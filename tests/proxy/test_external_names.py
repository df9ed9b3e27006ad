"""`external_names: direct`: what a Service of the type ExternalName stands for is dialled from this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import ServiceSpec
from tests.proxy.loopback import received, socks5
from tests.tunnel import Tunnel, curl

pytestmark = pytest.mark.asyncio


DIRECT = ["--set", "kube_external_names=direct"]
AUTHORITY = CertificateAuthority("outside")


@pytest_asyncio.fixture
async def kubeconfig(sim: SimCluster, tmp_path: Path) -> Path:
    for name, outside in {
        "outside": "localhost",
        "alias": "echo.demo.svc.cluster.local.",
        "twice": "outside.demo.svc.cluster.local",
        "itself": "itself.demo.svc.cluster.local",
        "address": "127.0.0.1",
    }.items():
        await sim.add_service(ServiceSpec("demo", name, external_name=outside))
    return sim.kubeconfig(tmp_path / "kubeconfig")


@pytest_asyncio.fixture
async def tunnel(kubeconfig: Path, start_tunnel: Callable[..., Any]) -> Tunnel:
    started: Tunnel = await start_tunnel(kubeconfig, options=DIRECT)
    return started


@asynccontextmanager
async def outside_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server outside of the cluster that tells its client's Host."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                host = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"host: "))[6:]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(host), host))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    async with outside_server() as found:
        yield found


async def test_each_way_to_it(tunnel: Tunnel, port: int) -> None:
    host = f"outside.demo.svc.cluster.local:{port}"
    for way in (
        ("-H", f"Host: {host}", f"{tunnel.url}/", f"{tunnel.url}/again"),
        ("-x", tunnel.url, f"http://{host}/"),
        ("-p", "-x", tunnel.url, f"http://{host}/"),
        ("--socks5-hostname", f"127.0.0.1:{tunnel.port}", f"http://{host}/"),
        ("--http2-prior-knowledge", "-H", f"Host: {host}", f"{tunnel.url}/"),
    ):
        answer = await asyncio.to_thread(curl, *way, timeout_s=10)
        assert (answer.status, answer.text) == (200, host * way.count(f"{tunnel.url}/again") + host), way


async def test_raw_tcp(tunnel: Tunnel, port: int) -> None:
    def ask() -> bytes:
        with socks5(tunnel.port, "outside.demo", port) as client:
            client.sendall(b"\0raw\r\nHost: me\r\n\r\n")
            return received(client, len(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nme"))

    assert (await asyncio.to_thread(ask)).endswith(b"\r\nme")


async def test_its_certificate_is_verified_for_its_own_name(
    kubeconfig: Path, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(AUTHORITY.certificate_pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.server("localhost", ("localhost",)).load_into(tls)
    trusting = await start_tunnel(
        kubeconfig, options=[*DIRECT, "--set", f"ssl_verify_upstream_trusted_ca={tmp_path / 'ca.pem'}"]
    )
    other = await start_tunnel(kubeconfig, options=DIRECT)
    async with outside_server(tls) as port:
        for tunnel, expected in ((trusting, (200, None)), (other, (502, "UpstreamReset"))):
            at = f"127.0.0.1:{tunnel.port}"
            for way in (("--connect-to", f"::{at}"), ("-x", tunnel.url), ("--socks5-hostname", at)):
                answer = await asyncio.to_thread(curl, "-k", *way, f"https://outside.demo:{port}/", timeout_s=10)
                assert (answer.status, answer.reason) == expected, way


async def test_an_alias_within_the_cluster_is_forwarded_to(tunnel: Tunnel) -> None:
    for way in (
        (f"{tunnel.url}/hostname", "-H", "Host: alias.demo"),
        ("-p", "-x", tunnel.url, "http://alias.demo/hostname"),
    ):
        answer = await asyncio.to_thread(curl, *way, timeout_s=10)
        assert answer.text.startswith("echo-"), answer


async def test_what_cannot_be_had_is_told(tunnel: Tunnel) -> None:
    for host, reason in {
        "outside.demo:1": "UpstreamReset",
        "external.demo": "UpstreamReset",  # example.invalid
        f"outside.demo:{tunnel.port}": "UpstreamReset",  # the tunnel itself
        "twice.demo": "NotForwardable",
        "itself.demo": "NotForwardable",
        "address.demo": "NotForwardable",
        "nobody.external.demo.svc": "NotForwardable",
        "example.invalid": "NamespaceNotFound",  # not by its own name
    }.items():
        answer = await asyncio.to_thread(tunnel.get, host, "/", timeout_s=10)
        assert answer.reason == reason, host
        assert answer.json["command"], host
