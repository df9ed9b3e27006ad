"""Real databases and their own clients, by a Service's name through SOCKS5 and CONNECT."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, PodTemplate
from tests.proxy.databases import WAYS, postgres_program, postgres_server, redis_server, relay
from tests.proxy.loopback import received, socks5
from tests.tunnel import Tunnel, without_proxies

MIB = 1 << 20
REDIS_HOST, REDIS_PORT = "redis.demo.svc.cluster.local", 6379
POSTGRES_HOST, POSTGRES_PORT = "postgres.demo.svc.cluster.local", 5432

needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("redis-cli")), reason="needs redis-server and redis-cli"
)
needs_postgres = pytest.mark.skipif(
    not (postgres_program("postgres") and postgres_program("initdb") and shutil.which("psql")),
    reason="needs PostgreSQL's postgres, initdb and psql",
)

type Database = Callable[[str, int, int], None]  # name of the Service, its port, where the program really listens


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Database]]:
    """A simulated cluster in a thread of its own: its kubeconfig, and what puts a database into it."""
    kubeconfig = tmp_path_factory.mktemp("sim") / "kubeconfig"
    ready: queue.Queue[tuple[asyncio.AbstractEventLoop, SimCluster]] = queue.Queue()
    done = asyncio.Event()

    async def serve() -> None:
        async with SimCluster() as sim:
            sim.kubeconfig(kubeconfig)
            ready.put((asyncio.get_running_loop(), sim))
            await done.wait()

    async def add(sim: SimCluster, name: str, port: int, listening: int) -> None:
        pod = await sim.add_pod("demo", name, PodTemplate({"app": name}, (Container(name, name),)))
        assert pod.workload is not None
        pod.workload.map_port(port, ("127.0.0.1", listening))
        await sim.add_service(ServiceSpec("demo", name, (Port(port, name),), {"app": name}))

    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(asyncio.run, serve())
        loop, sim = ready.get(timeout=20)
        try:
            yield kubeconfig, lambda *what: asyncio.run_coroutine_threadsafe(add(sim, *what), loop).result(20)
        finally:
            loop.call_soon_threadsafe(done.set)
            serving.result(20)


@pytest.fixture(scope="module")
def tunnel(cluster: tuple[Path, Database], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster[0]) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.fixture(scope="module")
def redis(cluster: tuple[Path, Database]) -> Iterator[None]:
    with redis_server() as port:
        cluster[1]("redis", REDIS_PORT, port)
        yield


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority("database-test-ca")


@pytest.fixture(scope="module")
def postgres(cluster: tuple[Path, Database], authority: CertificateAuthority) -> Iterator[None]:
    with postgres_server(authority, POSTGRES_HOST) as port:
        cluster[1]("postgres", POSTGRES_PORT, port)
        yield


def run(*command: str, stdin: bytes | None = None, status: int = 0) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=without_proxies())
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


# Redis


@pytest.fixture(params=WAYS)
def redis_cli(request: pytest.FixtureRequest, tunnel: Tunnel, redis: None) -> Iterator[list[str]]:
    with relay(lambda: WAYS[request.param](tunnel.port, REDIS_HOST, REDIS_PORT)) as port:
        yield ["redis-cli", "-h", "127.0.0.1", "-p", str(port)]


@needs_redis
def test_redis_answers(redis_cli: list[str]) -> None:
    assert run(*redis_cli, "PING") == b"PONG\n"


@needs_redis
def test_a_redis_value_of_1_mib_comes_back_whole(redis_cli: list[str]) -> None:
    value = bytes(range(256)) * (MIB // 256)
    assert run(*redis_cli, "-x", "SET", "big", stdin=value) == b"OK\n"
    assert run(*redis_cli, "--raw", "GET", "big") == value + b"\n"


@needs_redis
def test_what_redis_pushes_arrives(redis_cli: list[str]) -> None:
    channel = f"news-{redis_cli[-1]}"
    subscribe = [*redis_cli, "SUBSCRIBE", channel]
    with subprocess.Popen(subscribe, stdout=subprocess.PIPE, env=without_proxies()) as subscriber:
        assert subscriber.stdout is not None
        try:
            assert [subscriber.stdout.readline() for _ in range(3)] == [b"subscribe\n", f"{channel}\n".encode(), b"1\n"]
            for text in (b"first", b"second"):
                assert run(*redis_cli, "PUBLISH", channel, text.decode()) == b"1\n"
                assert [subscriber.stdout.readline() for _ in range(3)] == [
                    b"message\n",
                    f"{channel}\n".encode(),
                    text + b"\n",
                ]
        finally:
            subscriber.terminate()


@needs_redis
def test_redis_commands_that_look_like_http_are_none(tunnel: Tunnel, redis: None) -> None:
    """Inline commands: GET and a space, as a request begins."""
    with socks5(tunnel.port, REDIS_HOST, REDIS_PORT) as connection:
        connection.sendall(b"GET nothing-of-that-name\r\n")
        assert received(connection, 5) == b"$-1\r\n"


# PostgreSQL


@pytest.fixture(params=WAYS)
def postgres_port(request: pytest.FixtureRequest, tunnel: Tunnel, postgres: None) -> Iterator[int]:
    """Where psql reaches it."""
    with relay(lambda: WAYS[request.param](tunnel.port, POSTGRES_HOST, POSTGRES_PORT)) as port:
        yield port


def psql(port: int, *sql: str, stdin: bytes | None = None, status: int = 0, **parameters: str) -> bytes:
    return run(*psql_command(port, *sql, **parameters), stdin=stdin, status=status)


def psql_command(port: int, *sql: str, **parameters: str) -> list[str]:
    where = {"hostaddr": "127.0.0.1", "host": POSTGRES_HOST, "port": str(port), "user": "kube", "dbname": "postgres"}
    conninfo = " ".join(f"{key}='{value}'" for key, value in {**where, "sslmode": "disable", **parameters}.items())
    commands = [part for statement in sql for part in ("-c", statement)]
    return [
        "psql",
        "--no-psqlrc",
        "--quiet",
        "--no-align",
        "--tuples-only",
        "-v",
        "ON_ERROR_STOP=1",
        conninfo,
        *commands,
    ]


@needs_postgres
def test_postgres_answers(postgres_port: int) -> None:
    assert psql(postgres_port, "SELECT 6 * 7") == b"42\n"
    assert b"division by zero" in psql(postgres_port, "SELECT 1 / 0", status=1)


ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@needs_postgres
def test_postgres_takes_tls_when_asked_and_it_is_end_to_end(
    postgres_port: int, authority: CertificateAuthority, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.certificate_pem)
    assert psql(postgres_port, ENCRYPTED) == b"f\n"
    assert psql(postgres_port, ENCRYPTED, sslmode="prefer") == b"t\n"
    assert psql(postgres_port, ENCRYPTED, sslmode="verify-full", sslrootcert=str(ca)) == b"t\n"
    ca.write_text(CertificateAuthority("another").certificate_pem)
    assert b"certificate verify failed" in psql(
        postgres_port, ENCRYPTED, sslmode="verify-full", sslrootcert=str(ca), status=2
    )


@pytest.fixture
def without_tls(postgres_port: int) -> Iterator[None]:
    def set_tls(value: str) -> None:
        psql(postgres_port, f"ALTER SYSTEM SET ssl = {value}", "SELECT pg_reload_conf()")
        for _ in range(100):
            if psql(postgres_port, "SHOW ssl") == f"{value}\n".encode():
                return
        raise AssertionError(f"PostgreSQL did not turn its TLS {value}")

    set_tls("off")
    yield
    set_tls("on")


@needs_postgres
def test_postgres_that_has_no_tls_says_so(postgres_port: int, without_tls: None) -> None:
    assert psql(postgres_port, ENCRYPTED, sslmode="prefer") == b"f\n"
    assert b"does not support SSL" in psql(postgres_port, ENCRYPTED, sslmode="require", status=2)


@needs_postgres
def test_copy_of_50_mb_both_ways(postgres_port: int) -> None:
    line = "".join(chr(48 + i % 75) if chr(48 + i % 75) != "\\" else "_" for i in range(92))
    rows = "".join(f"{i:06d}\t{line}\n" for i in range(500_000)).encode()
    assert len(rows) == 50_000_000
    create = "CREATE UNLOGGED TABLE rows (id int, line text)"
    psql(postgres_port, "DROP TABLE IF EXISTS rows", create, "COPY rows FROM STDIN", stdin=rows)
    back = psql(postgres_port, "COPY (SELECT lpad(id::text, 6, '0'), line FROM rows ORDER BY id) TO STDOUT")
    assert hashlib.sha256(back).digest() == hashlib.sha256(rows).digest()


@needs_postgres
def test_a_query_can_be_cancelled(postgres_port: int) -> None:
    """By a connection of its own that carries nothing but the request, and has no answer."""
    sleeping = psql_command(postgres_port, "SELECT pg_sleep(60)")
    with subprocess.Popen(sleeping, stderr=subprocess.PIPE, env=without_proxies()) as client:
        try:
            _await_sleep(postgres_port)
            client.send_signal(signal.SIGINT)
            _, said = client.communicate(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                client.kill()
    assert b"canceling statement due to user request" in said


def _await_sleep(port: int) -> None:
    deadline = time.monotonic() + 20
    while psql(port, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") != b"1\n":
        assert time.monotonic() < deadline, "the query did not begin"
