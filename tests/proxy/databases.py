"""A real Redis, a real PostgreSQL, as temporary instances on loopback; ports for their clients, which have no SOCKS."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kubetunnel.sim.certs import CertificateAuthority
from tests.proxy.loopback import connect, listener, socks5

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def postgres_program(name: str) -> str | None:
    """A program of the newest PostgreSQL here: Debian has the server's beside the PATH."""
    versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = sorted(versions, key=lambda path: float(re.sub(r"[^0-9.]", "", path.parts[-3]) or 0))
    return str(newest[-1]) if newest else shutil.which(name)


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """Its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kube-tunnel-redis-") as directory:
        command = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no",
            "--dir", directory,
        ]  # fmt: skip
        with running(command, "Ready to accept connections", Path(directory)):
            yield port


@contextlib.contextmanager
def postgres_server(authority: CertificateAuthority, host: str) -> Iterator[int]:
    """Its port. Superuser `kube`, no password, TLS with a certificate for `host`."""
    port = free_port()
    owner = unprivileged_user()
    # not pytest's tmp_path, which nobody but its owner may enter
    with tempfile.TemporaryDirectory(prefix="kube-tunnel-postgres-") as temporary:
        directory = Path(temporary)
        pair = authority.server("postgres", (host,))
        for name, content in (("server.crt", pair.certificate_pem), ("server.key", pair.key_pem)):
            path = directory / name
            path.touch(mode=0o600)
            path.write_text(content)
            if owner:
                shutil.chown(path, owner)
        if owner:
            shutil.chown(directory, owner)
        data = directory / "data"
        initdb = [
            str(postgres_program("initdb")), "--pgdata", str(data), "--username=kube", "--auth=trust", "--no-sync",
            "--locale=C", "--encoding=UTF8",
        ]  # fmt: skip
        made = subprocess.run(initdb, capture_output=True, text=True, timeout=60, cwd=directory, **as_user(owner))
        assert made.returncode == 0, made.stderr
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
            "ssl": "on", "ssl_cert_file": directory / "server.crt", "ssl_key_file": directory / "server.key",
        }  # fmt: skip
        with (data / "postgresql.conf").open("a") as file:  # not the command line, which ALTER SYSTEM has no power over
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())
        command = [str(postgres_program("postgres")), "-D", str(data)]
        with running(command, "ready to accept connections", directory, owner):
            yield port


def unprivileged_user() -> str | None:
    """PostgreSQL does not run as root; None: we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def as_user(owner: str | None) -> dict[str, Any]:
    return {"user": owner, "group": pwd.getpwnam(owner).pw_gid, "extra_groups": []} if owner else {}


@contextlib.contextmanager
def running(command: list[str], ready: str, directory: Path, owner: str | None = None) -> Iterator[None]:
    """A server in the foreground, from when it says that it is ready."""
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=directory, **as_user(owner))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while ready not in log.read_text():
            said = f"{command[0]} is not ready (exit status {process.poll()}):\n{log.read_text()}"
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def relay(dial: Callable[[], socket.socket]) -> contextlib.AbstractContextManager[int]:
    """The port of a listener that passes each connection on to one that `dial` opens; one end is that of both."""

    def serve(client: socket.socket) -> None:
        with dial() as upstream:
            down = threading.Thread(target=copy, args=(upstream, client))
            down.start()
            copy(client, upstream)
            down.join()

    return listener(serve)


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def http_connect(proxy_port: int, host: str, port: int) -> socket.socket:
    """A connection through the proxy by CONNECT, after its 200."""
    connection = connect(proxy_port)
    connection.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)  # not a byte of what the server says first
        assert byte, head
        head += byte
    assert head.startswith(b"HTTP/1.1 200 "), head
    return connection


WAYS = {"SOCKS5": socks5, "CONNECT": http_connect}
