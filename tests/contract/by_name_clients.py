"""Clients in Python that are given a name and nothing else; each prints what it got as JSON.

`python -m tests.contract.by_name_clients CLIENT ARGUMENT…`
"""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 20.0


def tcp(host: str, port: str, sent: str = "") -> dict[str, Any]:
    """What comes back until a newline; `end` is how the connection ended, where it did before one."""
    got, end = b"", None
    try:
        with socket.create_connection((host, int(port)), LIMIT_S) as connection:
            connection.sendall(sent.encode().decode("unicode_escape").encode("latin-1"))
            while not got.endswith(b"\n") and end is None:
                data = connection.recv(1 << 16)
                got += data
                end = None if data else "closed"
    except OSError as e:
        end = type(e).__name__
    return {"got": got.decode("latin-1"), "end": end}


def websocket(url: str, ca: str = "") -> list[str]:
    """The echoes of a text, of an empty and of a long message."""
    from websockets.asyncio.client import connect

    tls: dict[str, Any] = {"ssl": ssl.create_default_context(cafile=ca)} if ca else {}

    async def echoes() -> list[str]:
        async with asyncio.timeout(LIMIT_S), connect(url, proxy=None, max_size=None, **tls) as client:
            heard = []
            for message in ("héllo", "", "long " * 50_000):
                await client.send(message)
                heard.append(str(await client.recv()))
            return heard

    return asyncio.run(echoes())


def grpc(target: str, ca: str = "") -> dict[str, Any]:
    """Each kind of call of the demo's echo, a failure, reflection and health."""
    import grpc as library
    from google.protobuf import wrappers_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    from tests.contract.test_grpc import Echo

    text, octets, number = wrappers_pb2.StringValue, wrappers_pb2.BytesValue, wrappers_pb2.Int64Value
    options = [("grpc.enable_http_proxy", 0)]
    if ca:
        credentials = library.ssl_channel_credentials(Path(ca).read_bytes())
        channel = library.secure_channel(target, credentials, options)
    else:
        channel = library.insecure_channel(target, options)
    with channel:
        echo = Echo(channel)
        requests: queue.Queue[Any] = queue.Queue()
        call, heard = echo.bidi(iter(requests.get, None), timeout=LIMIT_S), []
        for message in ("one", "two"):
            requests.put(text(value=message))
            heard.append(next(call).value)
        requests.put(None)
        answer, unary = echo.unary.with_call(text(value="héllo"), timeout=LIMIT_S)
        failed = echo.fail.future(text(value="why"), timeout=LIMIT_S).exception()
        request = health_pb2.HealthCheckRequest(service="echo.v1.Echo")
        return {
            "unary": answer.value,
            "pod": dict(unary.initial_metadata()).get("x-pod", ""),
            "server_stream": len(list(echo.server_stream(number(value=20), timeout=LIMIT_S))),
            "client_stream": echo.client_stream((octets(value=bytes(1000)) for _ in range(5)), timeout=LIMIT_S).value,
            "bidi": heard,
            "fail": [failed.code().name, failed.details()],
            "reflection": "echo.v1.Echo" in ProtoReflectionDescriptorDatabase(channel).get_services(),
            "health": health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT_S).status,
        }


def grpc_refused(target: str) -> list[str]:
    """Code and details of a call that fails."""
    import grpc as library

    with library.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/echo.v1.Echo/Unary").future(b"", timeout=LIMIT_S)
        error: Any = call.exception()
        return [error.code().name, error.details()]


CLIENTS: dict[str, Callable[..., Any]] = {
    "tcp": tcp,
    "websocket": websocket,
    "grpc": grpc,
    "grpc-refused": grpc_refused,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](*sys.argv[2:])))
