"""What is done through a local listener, and how long it takes: the measures of `bench.forward`."""

from __future__ import annotations

import re
import selectors
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass

from bench.processes import MIB

TIMEOUT_S = 30.0
_BUFFER = bytearray(MIB)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of durations in milliseconds."""

    p50_ms: float
    p99_ms: float


def download(port: int, size: int) -> float:
    """GET of `size` bytes. Returns seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        started = time.perf_counter()
        connection.sendall(_get(f"/bytes?n={size}"))
        got = 0
        while got < size:
            count = connection.recv_into(_BUFFER)
            if not count:
                raise ConnectionResetError(f"the download ended after {got} bytes")
            got += count
        return time.perf_counter() - started


def upload(port: int, size: int) -> float:
    """POST of `size` bytes, until it is answered. Returns seconds."""
    head = f"POST /upload HTTP/1.1\r\nHost: echo\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        started = time.perf_counter()
        connection.sendall(head)
        for _ in range(size // MIB):
            connection.sendall(_BUFFER)
        if b" 200 " not in connection.recv(65536):
            raise ConnectionResetError("the upload was not answered with 200")
        return time.perf_counter() - started


def new_connections(port: int, count: int) -> Percentiles:
    """Connect, send 1 byte to an echo, get it back, close; one after the other."""
    took: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
            connection.sendall(b"x")
            if connection.recv(1) != b"x":
                raise ConnectionResetError("the echo did not answer")
            took.append((time.perf_counter() - started) * 1000)
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return Percentiles(statistics.median(took), cuts[98])


def concurrent_downloads(port: int, count: int, size: int) -> float:
    """That many GETs of `size` bytes at once. Returns seconds until the last is there."""
    started = time.perf_counter()
    left: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
            connection.sendall(_get(f"/bytes?n={size}"))
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            left[connection] = size
        while left:
            ready = selector.select(TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"{len(left)} of {count} transfers hang")
            for key, _ in ready:
                readable = key.fileobj
                assert isinstance(readable, socket.socket)  # noqa: S101  (what was registered)
                got = readable.recv_into(_BUFFER)
                left[readable] -= got
                if left[readable] > 0 and not got:
                    raise ConnectionResetError(f"a transfer ended {left[readable]} bytes early")
                if left[readable] <= 0:
                    selector.unregister(readable)
                    readable.close()
                    del left[readable]
    return time.perf_counter() - started


def requests_per_s(port: int, connections: int, duration_s: int) -> float:
    """wrk's GETs of a small answer over kept-alive connections."""
    url = f"http://127.0.0.1:{port}/hostname"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration_s}s", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=duration_s + TIMEOUT_S)  # noqa: S603 - ours
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"wrk said: {done.stdout}{done.stderr}")
    return float(found[1])


def open_connections(port: int, count: int) -> list[socket.socket]:
    """That many connections to an echo that answered each once."""
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise ConnectionResetError("the echo did not answer")
        opened.append(connection)
    return opened


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n".encode()
