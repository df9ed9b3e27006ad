"""Which port-forward protocol the simulated cluster takes, and its words where it takes none.

The table was measured on a real node: an API server of 1.20 as it is, and with 1.36's front (`modern`).
"""

from __future__ import annotations

import json

import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.sim.clients import SPDY_HEADERS, upgraded

POD = "demo/echo-sts-0"
TUNNEL, V4, V4_BASE64 = "SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


async def ask(
    cluster: SimCluster, headers: dict[str, str], *, method: str = "POST", query: str = "", pod: str = POD
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer; no body of a 101."""
    async with upgraded(cluster, pod, headers, method=method, query=query) as (head, reader, _):
        lines = head.rstrip().split(b"\r\n")
        found = dict(line.lower().split(b": ", 1) if b": " in line else (line.lower(), b"") for line in lines[1:])
        code = int(lines[0].split()[1])
        body = await reader.readexactly(int(found.get(b"content-length", 0))) if code != 101 else b""
        if code != 101 and b"content-length" not in found:
            assert await reader.read() == b"", "without a length the answer ends with the connection"
        return code, found, body


async def ask_websocket(cluster: SimCluster, offered: str | None) -> tuple[int, bytes, bytes]:
    """Status, chosen subprotocol and body."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY}
    if offered is not None:
        headers["Sec-WebSocket-Protocol"] = offered
    code, found, body = await ask(cluster, headers, method="GET", query="?ports=9000")
    assert code != 101 or found[b"sec-websocket-accept"] == ACCEPT.lower()
    return code, found.get(b"sec-websocket-protocol", b""), body


@pytest.mark.parametrize(
    ("protocols", "offered", "chosen"),
    [
        (Protocols.MODERN, TUNNEL, TUNNEL),
        (Protocols.MODERN, f"{TUNNEL}, {V4}", TUNNEL),
        (Protocols.MODERN, V4, V4),
        (Protocols.MODERN, V4_BASE64, V4_BASE64),
        (Protocols.MODERN, None, ""),
        (Protocols.MODERN, "v5.channel.k8s.io", None),
        (Protocols.MODERN, "portforward.k8s.io", None),
        (Protocols.OLD, TUNNEL, None),
        (Protocols.OLD, f"{TUNNEL}, {V4}", V4),
        (Protocols.NO_SPDY, TUNNEL, TUNNEL),
        (Protocols.V4_ONLY, TUNNEL, None),
        (Protocols.V4_ONLY, V4, V4),
        (Protocols.TUNNEL, V4, None),
    ],
)
async def test_web_socket(cluster: SimCluster, protocols: Protocols, offered: str | None, chosen: str | None) -> None:
    cluster.faults.protocols = protocols
    wanted = (403, b"", b"") if chosen is None else (101, chosen.lower().encode(), b"")
    assert await ask_websocket(cluster, offered) == wanted


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_spdy(cluster: SimCluster, method: str) -> None:
    code, headers, _ = await ask(cluster, SPDY_HEADERS, method=method)
    assert (code, headers[b"upgrade"], headers[b"x-stream-protocol-version"]) == (
        101,
        b"spdy/3.1",
        b"portforward.k8s.io",
    )


@pytest.mark.parametrize("protocols", [Protocols.NO_SPDY, Protocols.V4_ONLY])
async def test_spdy_behind_a_proxy(cluster: SimCluster, protocols: Protocols) -> None:
    cluster.faults.protocols = protocols
    code, _, body = await ask(cluster, SPDY_HEADERS)
    assert (code, json.loads(body)["message"]) == (400, "Upgrade request required")


@pytest.mark.parametrize(
    ("headers", "method", "query", "code", "text"),
    [
        ({}, "POST", "", 400, b"Upgrade request required"),
        ({"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}, "POST", "", 500,
         b"invalid upgrade response: status code 200\n"),
        (SPDY_HEADERS | {"X-Stream-Protocol-Version": "v9"}, "POST", "", 403,
         b"unable to upgrade: unable to negotiate protocol: client supports [v9],"
         b" server accepts [portforward.k8s.io]\n"),
        ({"Connection": "Upgrade", "Upgrade": "websocket"}, "POST", "?ports=9000", 405, b"bad method"),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": KEY}, "GET", "", 400,
         b'query parameter "port" is required'),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": KEY}, "GET", "?ports=0", 400,
         b'port "0" must be > 0'),
        ({"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": KEY}, "GET", "?ports=80,x", 400,
         b'cannot convert to []int32: strconv.ParseUint: parsing \\"x\\": invalid syntax'),
    ],
)  # fmt: skip
async def test_bad_requests(
    cluster: SimCluster, headers: dict[str, str], method: str, query: str, code: int, text: bytes
) -> None:
    answer = await ask(cluster, headers, method=method, query=query)
    assert answer[0] == code
    assert text in answer[2]


async def test_a_pod_that_does_not_run(cluster: SimCluster) -> None:
    cluster.pod("demo", "echo-sts-0").gone.set()
    code, _, body = await ask(cluster, SPDY_HEADERS)
    assert (code, body) == (500, b'pod not found ("echo-sts-0_demo")')
