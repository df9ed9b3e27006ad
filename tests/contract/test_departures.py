"""What a client that goes away leaves at the pod: nothing. The pods count their connections in /stats."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.contract.test_grpc import PlainClient
from tests.proxy.loopback import connect
from tests.tunnel import Tunnel

POD = "echo-sts-0.echo-sts.demo.svc.cluster.local"
HANGING = "/delay?ms=120000"
CLIENTS = 20  # the pod may have connections of others, some more or some fewer
LIMIT_S = 30.0


class Pod:
    """Asks on one connection, for each would count a second longer than it is there."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", tunnel.port, timeout=LIMIT_S)

    def connections(self) -> int:
        """Of its ports 8080 and 8443, but for those that speak h2c."""
        self._http.request("GET", "/stats", headers={"Host": f"{POD}:8080"})
        count: int = json.loads(self._http.getresponse().read())["open_conns"]
        return count

    def close(self) -> None:
        self._http.close()


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


@contextlib.contextmanager
def http1_client(tunnel: Tunnel) -> Iterator[socket.socket]:
    with connect(tunnel.port) as client:
        client.sendall(f"GET {HANGING} HTTP/1.1\r\nHost: {POD}:8080\r\n\r\n".encode())
        yield client


@contextlib.contextmanager
def call_client(tunnel: Tunnel) -> Iterator[PlainClient]:
    with PlainClient(tunnel) as client:
        client.call(HANGING, f"{POD}:8443")
        client.send()
        yield client


@pytest.mark.parametrize("open_client", [http1_client, call_client], ids=["http1", "grpc"])
def test_requests_end_at_the_pod_when_their_client_leaves(
    tunnel: Tunnel, open_client: Callable[[Tunnel], contextlib.AbstractContextManager[object]]
) -> None:
    with contextlib.closing(Pod(tunnel)) as pod:
        before = pod.connections()
        with contextlib.ExitStack() as clients:
            for _ in range(CLIENTS):
                clients.enter_context(open_client(tunnel))
            wait_until(lambda: pod.connections() > before + CLIENTS * 3 / 4)
        wait_until(lambda: pod.connections() < before + CLIENTS / 4)
