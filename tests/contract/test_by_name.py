"""Every program by name: `sudo kube-tunnel --virtual` on a machine of the test's own, clients without any setting.

DNS tells a virtual IP, a redirection leads each of its ports to the tunnel; afterwards the machine is as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, PodTemplate
from tests.contract.by_name import PROXY_IP, RESOLV_CONF, Named, named, until, why_not_reachable
from tests.netsetup.private_network import machine, why_not
from tests.proxy.databases import postgres_program, postgres_server, redis_server
from tests.simulated import simulated

MISSING = [name for name in ("curl", "dig") if shutil.which(name) is None]
WHY_NOT = why_not() or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

ZONE, OTHER_ZONE = "cluster.local", "prod.local"
ECHO, PAIR, UNREADY = (f"{name}.demo.svc.{ZONE}" for name in ("echo", "pair", "unready"))
STS = f"echo-sts.demo.svc.{ZONE}"
NOBODY = f"nothere.demo.svc.{ZONE}"
H2C = "--http2-prior-knowledge"
REDIS_PORT, POSTGRES_PORT = 6379, 5432
needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("redis-cli")), reason="needs redis-server and redis-cli"
)
needs_postgres = pytest.mark.skipif(
    not (postgres_program("postgres") and postgres_program("initdb") and shutil.which("psql")),
    reason="needs PostgreSQL's postgres, initdb and psql",
)


@pytest.fixture(scope="module", params=["simulated", pytest.param("real", marks=pytest.mark.cluster)])
def clusters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Kubeconfigs; on the simulated side of two clusters, the contexts `sim` and `prod`."""
    if request.param == "real":
        kubeconfig = os.environ.get("KUBECONFIG")
        if not kubeconfig:
            pytest.fail("make test-cluster needs KUBECONFIG: a cluster with the objects of the demo (CONTRIBUTING.md)")
        if reason := why_not_reachable(Path(kubeconfig)):
            pytest.skip(reason)
        yield [Path(kubeconfig)]
        return
    directory = tmp_path_factory.mktemp("sim")
    first, second = directory / "first", directory / "second"
    with ExitStack() as stack:
        databases = _databases(stack)

        async def fill_first(cluster: SimCluster) -> None:
            cluster.kubeconfig(first)
            for name, (port, listening) in databases.items():
                pod = await cluster.add_pod("demo", name, PodTemplate({"app": name}, (Container(name, name),)))
                assert pod.workload is not None
                pod.workload.map_port(port, ("127.0.0.1", listening))
                await cluster.add_service(ServiceSpec("demo", name, (Port(port, name),), {"app": name}))

        async def fill_second(cluster: SimCluster) -> None:
            cluster.kubeconfig(second, context="prod")
            # of two users with one name kubectl takes the first file's, and so do we
            second.write_text(second.read_text().replace('"admin"', '"prod-admin"'))
            await cluster.add_service(ServiceSpec("demo", "prod-only", (Port(80, "", 8080),), {"app": "pair"}))

        stack.enter_context(simulated(fill_first))
        stack.enter_context(simulated(fill_second))
        yield [first, second]


def _databases(stack: ExitStack) -> dict[str, tuple[int, int]]:
    """Name -> Service port, and where the program listens; those that this machine has."""
    found = {}
    if shutil.which("redis-server"):
        found["redis"] = REDIS_PORT, stack.enter_context(redis_server())
    if postgres_program("postgres") and postgres_program("initdb"):
        authority = CertificateAuthority("database-test-ca")
        found["postgres"] = POSTGRES_PORT, stack.enter_context(postgres_server(authority, f"postgres.demo.svc.{ZONE}"))
    return found


@pytest.fixture(scope="module")
def here(clusters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    directory = tmp_path_factory.mktemp("machine")
    with machine(directory) as made:
        (made.etc / "resolv.conf").write_text(RESOLV_CONF)
        zones = {OTHER_ZONE: "prod"} if len(clusters) > 1 else {}
        with named(made, clusters, zones, directory) as found:
            yield found


def pod_address(kubeconfig: Path, pod: str) -> str:
    from kubernetes import client, config

    with config.new_client_from_config(str(kubeconfig)) as api:  # type: ignore[no-untyped-call]
        found: Any = client.CoreV1Api(api).read_namespaced_pod(pod, "demo")
        api.rest_client.pool_manager.clear()
    return str(found.status.pod_ip)


# curl: one name, many ports


@pytest.mark.parametrize(
    ("url", "arguments", "version"),
    [
        (f"http://{ECHO}/hostname", [], "1.1"),
        (f"http://{ECHO}/hostname", [H2C], "2"),
        (f"https://{ECHO}/hostname", ["-k"], "2"),
        (f"https://{ECHO}/hostname", ["--cacert", "{ca}", "--http1.1"], "1.1"),
        (f"http://{STS}:8080/hostname", [], "1.1"),
        (f"http://echo-sts-1.{STS}:8080/hostname", [], "1.1"),
        (f"http://{ECHO.upper()}/hostname", [], "1.1"),
        (f"http://{ECHO}./hostname", [], "1.1"),
    ],
)
def test_http(here: Named, url: str, arguments: list[str], version: str) -> None:
    answer = here.curl(url, *(each.format(ca=here.ca) for each in arguments))
    assert (answer.status, answer.http_version) == (200, version), answer
    assert answer.body.startswith("echo-")


def test_the_host_arrives_as_it_was_asked_for(here: Named) -> None:
    assert here.curl(f"http://{ECHO}/a").json["host"] == ECHO
    assert here.curl(f"http://{ECHO}/a", "-H", "Host: shop.example").json["host"] == "shop.example"


@pytest.mark.parametrize(("scheme", "version"), [("http", "--http1.1"), ("http", H2C), ("https", "--http2")])
def test_a_web_page_of_a_foreign_name_is_refused(here: Named, scheme: str, version: str) -> None:
    """DNS rebinding: a browser says by header fields what it is."""
    page = ["-k", version, "-H", "Accept-Language: en"]
    refused = here.curl(f"{scheme}://{ECHO}/a", *page, "-H", "Host: evil.example")
    assert (refused.status, refused.reason) == (400, "NotAServiceName")
    assert here.curl(f"{scheme}://{ECHO}/a", *page).status == 200


def test_the_same_name_in_another_namespace(here: Named) -> None:
    assert here.curl(f"http://echo.other.svc.{ZONE}/hostname").body == "echo\n"


@pytest.mark.parametrize("pod", ["echo-sts-0", "echo-sts-1"])
def test_a_pod_of_a_headless_service(here: Named, pod: str) -> None:
    assert here.curl(f"http://{pod}.{STS}:8080/hostname").body == f"{pod}\n"
    assert here.python("tcp", f"{pod}.{STS}", "9000", "\\0raw\\n")["got"] == "\0raw\n"


def test_a_pod_by_its_address(here: Named, clusters: list[Path]) -> None:
    name = pod_address(clusters[0], "pair").replace(".", "-").replace(":", "-")
    assert here.curl(f"http://{name}.demo.pod.{ZONE}:8080/hostname").body == "pair\n"


@pytest.mark.parametrize("short", ["echo", "echo.demo", "echo.demo.svc"])
def test_short_names_by_the_users_own_search_list(here: Named, short: str) -> None:
    """netsetup adds no search list, and leaves the one that is there."""
    answer = here.curl(f"http://{short}/a")
    assert (answer.status, answer.json["host"]) == (200, short)


@pytest.mark.parametrize(
    ("url", "status", "reason"),
    [
        (f"http://{ECHO}:81/", 404, "PortNotExposed"),
        (f"http://{ECHO}:9999/", 502, "ConnectionRefused"),
        (f"http://{ECHO}:9002/", 502, "UpstreamReset"),
        (f"http://{UNREADY}/", 503, "NoReadyEndpoints"),
        (f"http://zero.demo.svc.{ZONE}/", 503, "NoReadyEndpoints"),
        (f"http://noselector.demo.svc.{ZONE}/", 503, "NoReadyEndpoints"),
        (f"https://{UNREADY}/", 503, "NoReadyEndpoints"),  # its only port stands in for 443
    ],
)
def test_refusals(here: Named, url: str, status: int, reason: str) -> None:
    answer = here.curl(url, "-k", timeout_s=5)
    assert (answer.status, answer.reason) == (status, reason), answer


@pytest.mark.parametrize(
    "name",
    [
        NOBODY,
        f"echo.nowhere.svc.{ZONE}",
        f"echo-sts-7.{STS}",
        f"external.demo.svc.{ZONE}",  # example.invalid, by a CNAME
        "echo.demo.svc.evil.example",
    ],
)
def test_names_that_do_not_resolve(here: Named, name: str) -> None:
    assert here.curl(f"http://{name}/", timeout_s=15).exit_code == 6


# other clients


@pytest.mark.parametrize("tls", [False, True], ids=["h2c", "tls"])
def test_grpc(here: Named, tls: bool) -> None:
    told = here.python("grpc", f"{ECHO}:{9443 if tls else 9090}", *([str(here.ca)] if tls else []))
    assert told.pop("pod").startswith("echo-")
    assert told == {
        "unary": "héllo",
        "server_stream": 20,
        "client_stream": 5000,
        "bidi": ["one", "two"],
        "fail": ["FAILED_PRECONDITION", "why"],
        "reflection": True,
        "health": 1,
    }


def test_grpc_refused(here: Named) -> None:
    code, details = here.python("grpc-refused", f"{ECHO}:9091")
    assert code == "NOT_FOUND"
    assert "9090" in details


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_websocket(here: Named, scheme: str) -> None:
    echoes = here.python("websocket", f"{scheme}://{ECHO}/ws", *([str(here.ca)] if scheme == "wss" else []))
    assert echoes == ["héllo", "", "long " * 50_000]


@pytest.mark.parametrize(
    ("port", "sent", "got", "end"),
    [
        ("7", "\\0binary\\xff\\n", "\0binary\xff\n", None),
        ("9001", "", "220 echo", None),  # and more: the server speaks first
        ("9002", "\\0any", "", "ConnectionResetError"),
        ("9999", "\\0any", "", "ConnectionResetError"),
        ("81", "\\0any", "", "ConnectionResetError"),
    ],
)
def test_raw_tcp(here: Named, port: str, sent: str, got: str, end: str | None) -> None:
    told = here.python("tcp", ECHO, port, sent)
    assert told["end"] == end
    assert told["got"].startswith(got)


@needs_redis
def test_redis_cli(here: Named, clusters: list[Path]) -> None:
    if len(clusters) == 1:
        pytest.skip("there is no database in the real cluster")
    assert here.machine.run("redis-cli", "-h", f"redis.demo.svc.{ZONE}", "ping").stdout == "PONG\n"


@needs_postgres
def test_psql(here: Named, clusters: list[Path]) -> None:
    if len(clusters) == 1:
        pytest.skip("there is no database in the real cluster")
    for mode in ("disable", "require"):
        found = f"host=postgres.demo.svc.{ZONE} user=kube dbname=postgres sslmode={mode} connect_timeout=10"
        assert here.machine.run("psql", "-w", "-AtX", found, "-c", "select 6*7").stdout == "42\n"


def test_two_zones(here: Named, clusters: list[Path]) -> None:
    if len(clusters) == 1:
        pytest.skip("there is one cluster")
    assert here.curl(f"http://prod-only.demo.svc.{OTHER_ZONE}/hostname").body == "pair\n"
    assert here.curl(f"http://prod-only.demo.svc.{ZONE}/hostname").exit_code == 6
    assert here.address(ECHO) != here.address(f"echo.demo.svc.{OTHER_ZONE}")


# dig, and what the specification of Kubernetes' DNS has in its tables (schema 1.1.0, docs/specification.md of
# github.com/kubernetes/dns); the number is the section's


def test_2_2_the_schema_version(here: Named) -> None:
    assert here.dig(f"dns-version.{ZONE}", "TXT").data == ['"1.1.0"']


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_2_3_1_a_service_with_a_cluster_ip(here: Named, transport: str) -> None:
    answer = here.dig(transport, ECHO, "A")
    assert [words[:4] for words in answer.answer] == [[f"{ECHO}.", "5", "IN", "A"]]
    assert {"qr", "aa"} <= answer.flags
    assert here.dig(transport, ECHO, "AAAA").nodata


@pytest.mark.parametrize(("port", "number"), [("http", 80), ("https", 443), ("grpc", 9090), ("tcp", 7)])
def test_2_3_2_srv(here: Named, port: str, number: int) -> None:
    answer = here.dig(f"_{port}._tcp.{ECHO}", "SRV")
    assert [words[3:] for words in answer.answer] == [["SRV", "0", "100", str(number), f"{ECHO}."]]
    assert [words[4] for words in answer.additional if words[3] == "A"] == [here.address(ECHO)]


def test_2_3_2_an_unnamed_port_has_no_srv(here: Named) -> None:
    assert here.dig(f"_http._tcp.{PAIR}", "SRV").nxdomain
    assert here.dig(f"_http._udp.{ECHO}", "SRV").nxdomain


def test_2_3_3_ptr(here: Named) -> None:
    answer = here.machine.run("dig", "+short", "-x", here.address(ECHO)).stdout
    assert answer == f"{ECHO}.\n"


def test_2_4_1_a_headless_service_has_the_addresses_of_its_ready_pods(here: Named) -> None:
    pods = [here.address(f"echo-sts-{n}.{STS}") for n in (0, 1)]
    assert here.dig(STS, "A").data == sorted(pods)
    assert here.dig(f"_http._tcp.{STS}", "SRV").data == [f"0 100 8080 echo-sts-{n}.{STS}." for n in (0, 1)]
    for n, pod in enumerate(pods):
        assert here.machine.run("dig", "+short", "-x", pod).stdout == f"echo-sts-{n}.{STS}.\n"


def test_2_5_an_external_name(here: Named) -> None:
    assert here.dig(f"external.demo.svc.{ZONE}", "CNAME").data == ["example.invalid."]
    alone = here.dig("+norecurse", f"external.demo.svc.{ZONE}", "A")
    assert [words[3:] for words in alone.answer] == [["CNAME", "example.invalid."]]
    assert here.dig(f"external.demo.svc.{ZONE}", "A").status == "SERVFAIL"  # what it leads to cannot be asked for here


def test_names_that_do_not_exist(here: Named) -> None:
    for name in (NOBODY, f"echo.nowhere.svc.{ZONE}", f"echo-sts-7.{STS}", f"x.y.z.{ZONE}", f"1-2-3-4.demo.pod.{ZONE}"):
        assert here.dig(name, "A").nxdomain, name
    for name in (ZONE, f"svc.{ZONE}", f"demo.svc.{ZONE}"):
        assert here.dig(name, "A").nodata, name
    assert here.dig(f"nowhere.svc.{ZONE}", "A").nxdomain


def test_many_names_keep_their_addresses(here: Named) -> None:
    names = [ECHO, PAIR, UNREADY, f"echo.other.svc.{ZONE}", f"echo-sts-0.{STS}", f"kubernetes.default.svc.{ZONE}"]
    first = [here.address(name) for name in names]
    assert len(set(first)) == len(names)
    assert [here.address(name) for name in names] == first


# the other settings; the last one, for they change the machine for all


def test_one_shared_address(here: Named) -> None:
    """`dns.answer: shared`, taken up while it runs: the port comes from the redirection, the name from Host or SNI."""
    before = here.settings.read_text()
    here.settings.write_text(json.dumps(json.loads(before) | {"dns": {"answer": "shared"}}))
    try:
        for name in (ECHO, PAIR, f"echo-sts-0.{STS}"):
            until(lambda name=name: here.dig(name, "A").data == [PROXY_IP])
            assert here.address(name) == PROXY_IP
        assert here.curl(f"http://{PAIR}/hostname").body == "pair\n"
        assert here.curl(f"https://{ECHO}/hostname", "--cacert", str(here.ca)).body.startswith("echo-")
        assert here.curl(f"http://echo-sts-1.{STS}:8080/hostname").body == "echo-sts-1\n"
        assert here.python("grpc", f"{ECHO}:9090")["unary"] == "héllo"
    finally:
        here.settings.write_text(before)
        until(lambda: here.dig(PAIR, "A").data not in ([PROXY_IP], []))
