"""`KUBECONFIG=… python -m tests.flows.record [NAME…]`: records the flows of this directory from a real cluster.

The cluster has the demo's objects (CONTRIBUTING.md). One file a protocol, each by a tunnel of its own, as a user would
record it: `mitmdump -s addons/kube_tunnel.py -w FILE`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from websockets.sync.client import connect

from tests.proxy.loopback import connect as dial
from tests.proxy.loopback import received, socks5
from tests.tunnel import Answer, Tunnel, curl

DIRECTORY = Path(__file__).parent
MAX_FILE_BYTES = 100_000
HOST = "echo.demo.svc.cluster.local"


def http1(tunnel: Tunnel) -> None:
    _answered(tunnel.get(HOST, "/hostname"))
    _answered(tunnel.get("pair.demo", "/hostname"))
    _answered(tunnel.get(HOST, "/bytes?n=3000"))
    _answered(tunnel.get(HOST, "/bytes?n=5000&chunked=1"))
    _answered(tunnel.get(HOST, "/orders/1?full=yes", "-X", "POST", "-H", "X-Mine: yes", "--data-binary", "one"))
    _answered(tunnel.get(HOST, "/orders/1?full=yes", "-X", "POST", "-H", "X-Mine: yes", "--data-binary", "two"))
    _answered(tunnel.via_proxy(f"http://{HOST}/status?code=418"), 418)


def https2(tunnel: Tunnel) -> None:
    through = ("-k", "--http2", "--connect-to", f"::127.0.0.1:{tunnel.port}")
    _answered(curl(*through, f"https://{HOST}/hostname"))
    _answered(curl(*through, "-X", "POST", "--data-binary", "one", f"https://{HOST}/orders/1"))


def refusals(tunnel: Tunnel) -> None:
    _answered(tunnel.get("nothere.demo.svc.cluster.local", "/"), 404)
    _answered(tunnel.get(f"{HOST}:81", "/"), 404)
    _answered(tunnel.get("unready.demo.svc.cluster.local", "/"), 503)


def grpc_unary(tunnel: Tunnel) -> None:
    with _channel(tunnel) as channel:
        call = channel.unary_unary(
            "/echo.v1.Echo/Unary",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        for text in ("one", "two"):
            reply = call(StringValue(value=text), timeout=20, metadata=(("x-mine", "yes"),))
            if text not in reply.value:
                raise RuntimeError(f"gRPC answered {reply.value!r}")


def websocket(tunnel: Tunnel) -> None:
    with connect(f"ws://{HOST}/ws", sock=dial(tunnel.port), open_timeout=20, close_timeout=20) as client:
        for message in ("text", b"\x00binary"):
            client.send(message)
            if client.recv(timeout=20) != message:
                raise RuntimeError("the WebSocket did not echo")


def raw_tcp(tunnel: Tunnel) -> None:
    with socks5(tunnel.port, HOST, 7) as connection:
        for message in (b"first\n", b"second\n"):
            connection.sendall(message)
            if received(connection, len(message)) != message:
                raise RuntimeError("the TCP port did not echo")


RECORDINGS: dict[str, Callable[[Tunnel], None]] = {
    "http1": http1,
    "https2": https2,
    "refusals": refusals,
    "grpc": grpc_unary,
    "websocket": websocket,
    "tcp": raw_tcp,
}


def _answered(answer: Answer, status: int = 200) -> None:
    if answer.exit_code or answer.status != status:
        raise RuntimeError(f"{status} was expected: {answer}")


def _channel(tunnel: Tunnel) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{tunnel.port}",
        options=[("grpc.default_authority", f"{HOST}:9090"), ("grpc.enable_http_proxy", 0)],
    )


def main(names: list[str]) -> None:
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig:
        sys.exit("KUBECONFIG is not set: the recordings are made from a real cluster")
    for name in names or RECORDINGS:
        path = DIRECTORY / f"{name}.mitm"
        path.unlink(missing_ok=True)
        with (
            tempfile.TemporaryDirectory() as confdir,
            # by the environment, so that no path of this machine gets into what a refusal advises
            Tunnel(Path(confdir), env={"KUBECONFIG": kubeconfig}, options=["-w", str(path)]) as tunnel,
        ):
            RECORDINGS[name](tunnel)
            tunnel.wait_for("client disconnect")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            sys.exit(f"{path.name} has {size} bytes, more than {MAX_FILE_BYTES}")
        print(f"{path.name}: {size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
