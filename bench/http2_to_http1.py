"""`python -m bench.http2_to_http1`: many requests on one HTTP/2 connection to a Service that speaks HTTP/1.1 alone.

mitmproxy's own translation opens an upstream for each request and keeps the list of them: it gets slower and larger as
the connection lives. Here rate and memory at the end are to be those of the beginning.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

from bench.processes import MIB, cpu_s, resident_bytes, tunnel_to_simulated_cluster

HOST = "echo.demo.svc.cluster.local"
LIMIT_S = 170.0
TIMEOUT_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thousands", type=int, default=8, help="of requests")
    parser.add_argument("--concurrent", type=int, default=10, help="requests under way at a time")
    options = parser.parse_args()
    with tunnel_to_simulated_cluster(["--set", "kube_services=echo.demo app_protocol=http"]) as tunnel:
        ask(tunnel.port, 1, 1, lambda _: None)  # opens the port-forward
        samples = [Sample.of(tunnel.process.pid)]

        def note(count: int) -> None:
            if count % 1000 == 0:
                samples.append(Sample.of(tunnel.process.pid))

        done = ask(tunnel.port, options.thousands * 1000, options.concurrent, note)
    print(f"HTTP/2 to HTTP/1.1, one connection, {options.concurrent} at a time: {done:,} requests")
    for which, before, after in (("first", samples[0], samples[1]), ("last", samples[-2], samples[-1])):
        rate, cpu_us = 1000 / (after.at_s - before.at_s), (after.cpu_s - before.cpu_s) * 1000
        print(f"  {which} 1,000: {rate:.0f} requests/s, {cpu_us:.0f} us of the tunnel's CPU each")
    sizes = [f"{sample.resident_bytes / MIB:.0f} MiB" for sample in samples]
    print(f"  the tunnel's memory: {sizes[0]} before, {sizes[1]} after 1,000, {sizes[-1]} at the end")


@dataclass(frozen=True, slots=True)
class Sample:
    """Of the tunnel's process."""

    at_s: float
    cpu_s: float
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(time.monotonic(), cpu_s(pid), resident_bytes(pid))


def ask(port: int, requests: int, concurrent: int, on_end: Callable[[int], None]) -> int:
    """GETs on one connection, `on_end` called at the end of each with their number. Stops at `LIMIT_S`; how many."""
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
    return ended


def _send(h2: H2Connection) -> None:
    headers = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/hostname")]
    h2.send_headers(h2.get_next_available_stream_id(), headers, end_stream=True)


if __name__ == "__main__":
    main()
