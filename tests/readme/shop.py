"""The reader's cluster: `python -m tests.readme.shop HOME`, until its standard input ends.

The Services that the pages speak of: Namespace `shop`, with a real PostgreSQL and a real Redis where this machine has
them; beside it the demo's objects. The kubeconfig in HOME has a context for each cluster that the pages name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from kubetunnel.sim import demo
from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, PodTemplate
from kubetunnel.sim.workloads import HTTPS_PORT, Workload
from tests.proxy.databases import postgres_program, postgres_server, redis_server

CONTEXTS = ("here", "production", "staging")
SECURE = ("secure.shop", "secure.shop.svc.cluster.local")
SERVICES = (
    ServiceSpec("shop", "api", (Port(80, "http", "http"),), {"app": "echo"}),
    ServiceSpec("shop", "web", (Port(8080, "http", "http"),), {"app": "echo"}),
    ServiceSpec("shop", "grpc", (Port(50051, "grpc", "grpc"),), {"app": "echo"}),
)


type Programs = dict[str, tuple[int, tuple[str, int]]]  # name -> port of the Service, where the program really listens


async def populate(cluster: SimCluster, programs: Programs) -> None:
    await cluster.add_namespace("shop")
    await cluster.add_deployment("shop", "api", 2, demo.ECHO)
    for service in SERVICES:
        await cluster.add_service(service)
    for name, (port, address) in programs.items():
        pod = await cluster.add_pod("shop", f"{name}-0", PodTemplate({"app": name}, (Container(name, name),)))
        assert pod.workload is not None
        pod.workload.map_port(port, address)
        await cluster.add_service(ServiceSpec("shop", name, (Port(port, name),), {"app": name}))


def write_files(cluster: SimCluster, authority: CertificateAuthority, home: Path) -> None:
    (home / ".kube").mkdir()
    path = cluster.kubeconfig(home / ".kube" / "config", context=CONTEXTS[0], namespace="shop")
    config = json.loads(path.read_text())
    (context,) = config["contexts"]
    config["contexts"] = [{**context, "name": name} for name in CONTEXTS]
    path.write_text(json.dumps(config))
    (home / "work" / "shop-ca.pem").write_text(authority.certificate_pem)


def start_databases(stack: contextlib.ExitStack, authority: CertificateAuthority) -> Programs:
    found = {}
    if shutil.which("redis-server"):
        found["cache"] = 6379, ("127.0.0.1", stack.enter_context(redis_server()))
    if postgres_program("postgres") and postgres_program("initdb") and shutil.which("psql"):
        port = stack.enter_context(postgres_server(authority, "db.shop.svc.cluster.local"))
        for statement in ("create role shop login", "create database shop owner shop"):
            psql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "kube", "-d", "postgres", "-c", statement]
            subprocess.run(psql, check=True, capture_output=True, timeout=30)
        found["db"] = 5432, ("127.0.0.1", port)
    return found


async def serve(home: Path, authority: CertificateAuthority, programs: Programs) -> None:
    secure = Workload("secure-0", certificate=authority.server("secure", SECURE))
    await secure.start()
    address = secure.listen_address(HTTPS_PORT)
    assert address is not None
    try:
        async with SimCluster() as cluster:
            await populate(cluster, programs | {"secure": (443, address)})
            write_files(cluster, authority, home)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.read)
    finally:
        await secure.aclose()


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        shop_ca = CertificateAuthority("shop-ca")
        asyncio.run(serve(Path(sys.argv[1]), shop_ca, start_databases(stack, shop_ca)))
