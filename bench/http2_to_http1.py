"""`python -m bench.http2_to_http1`: many requests on one HTTP/2 connection to a Service that speaks HTTP/1.1 alone.

mitmproxy's own translation opens an upstream for each request and keeps the list of them: it gets slower and larger as
the connection lives. Here rate and memory at the end are to be those of the beginning.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

from bench.processes import MIB, cpu_s, resident_bytes, tunnel_to_simulated_cluster

HOST = "echo.demo.svc.cluster.local"
LIMIT_S = 170.0
TIMEOUT_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--concurrent", type=int, default=10, help="requests under way at a time")
    options = parser.parse_args()
    window = min(1000, options.requests)
    with tunnel_to_simulated_cluster(["--set", "kube_services=echo.demo app_protocol=http"]) as tunnel:
        pid = tunnel.process.pid
        ask(tunnel.port, 1, 1, lambda _: None)  # opens the port-forward
        ended_s: list[float] = []
        resident = [resident_bytes(pid)]

        def note(count: int) -> None:
            ended_s.append(time.monotonic())
            if count == window:
                resident.append(resident_bytes(pid))

        before_s, started_s = cpu_s(pid), time.monotonic()
        ask(tunnel.port, options.requests, options.concurrent, note)
        used_s = cpu_s(pid) - before_s
        resident.append(resident_bytes(pid))
    done = len(ended_s)
    print(
        f"HTTP/2 to HTTP/1.1, one connection, {options.concurrent} requests at a time: {done:,} of {options.requests:,}"
    )
    print(f"  first {window:,}: {window / (ended_s[window - 1] - started_s):7.0f} requests/s")
    print(
        f"  last {window:,}:  {window / (ended_s[-1] - ended_s[-window - 1 if done > window else 0]):7.0f} requests/s"
    )
    print(f"  the tunnel's CPU: {used_s / done * 1e6:7.0f} us a request")
    sizes = [f"{size / MIB:.0f} MiB" for size in resident]
    print(f"  the tunnel's memory: {sizes[0]} before, {sizes[1]} after {window:,}, {sizes[-1]} at the end")


def ask(port: int, requests: int, concurrent: int, on_end: Callable[[int], None]) -> None:
    """GETs on one connection; `on_end` is called at the end of each with their number. Stops at `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    h2 = H2Connection(H2Configuration(client_side=True))
    h2.initiate_connection()
    begun = ended = 0
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while ended < begun or (begun < requests and time.monotonic() < deadline):
            while begun < requests and begun - ended < concurrent and time.monotonic() < deadline:
                _send(h2)
                begun += 1
            connection.sendall(h2.data_to_send())
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError(f"the tunnel closed the connection after {ended} requests")
            for event in h2.receive_data(data):
                if isinstance(event, DataReceived):
                    h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, ResponseReceived) and (b":status", b"200") not in event.headers:
                    raise RuntimeError(f"request {ended + 1}: {event.headers}")
                elif isinstance(event, StreamReset):
                    raise ConnectionResetError(f"request {ended + 1} was reset: {event.error_code}")
                elif isinstance(event, StreamEnded):
                    ended += 1
                    on_end(ended)


def _send(h2: H2Connection) -> None:
    headers = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/hostname")]
    h2.send_headers(h2.get_next_available_stream_id(), headers, end_stream=True)


if __name__ == "__main__":
    main()
