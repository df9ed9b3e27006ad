"""The upgrade of `pods/portforward` in the simulated cluster: which protocol is spoken, or how it is refused.

The API server has authenticated and authorized the request. Statuses and texts are those of a Kubernetes 1.20 API
server with containerd 1.6 and, for the tunnel (KEP-4006), of 1.36's handler, as seen on the wire. The protocols
themselves are in portforward_spdy.py and portforward_v4.py; which of them the server knows is `Faults.protocols`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from websockets.utils import accept_key

from kubetunnel.forward.spdy import SpdyError
from kubetunnel.sim.faults import Faults, Protocols
from kubetunnel.sim.portforward_spdy import SpdyServer
from kubetunnel.sim.portforward_v4 import V4, V4_BASE64, V4Server
from kubetunnel.sim.runtime import Pod
from kubetunnel.sim.wire import RawWire, TunnelWire

logger = logging.getLogger(__name__)

STREAM_PROTOCOL = "portforward.k8s.io"
TUNNEL = f"SPDY/3.1+{STREAM_PROTOCOL}"
ANSWER_TIMEOUT_S = 10.0
TEXT = "text/plain; charset=utf-8"
NODE = "10.244.0.1:10250"  # the kubelet's address, for the text about a node that is gone


class UpgradeRequest(Protocol):
    """The HTTP request that asks for a port-forward.

    `query_lists` has every value of each parameter, `headers` lower-case names and repeated headers joined by commas.
    """

    @property
    def method(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def query_lists(self) -> Mapping[str, Sequence[str]] | None: ...


class _RefusedError(Exception):
    def __init__(
        self, status: str, body: str = "", *, json_status: bool = False, headers: tuple[str, ...] = ()
    ) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.content_type = "application/json" if json_status else TEXT
        self.headers = headers


@dataclass(frozen=True, slots=True)
class _Accepted:
    protocol: Protocols
    subprotocol: str
    headers: tuple[str, ...]
    ports: tuple[int, ...] = ()


async def serve(
    request: UpgradeRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pod: Pod, faults: Faults
) -> None:
    """Answer the upgrade and serve the connection to its end; the caller closes it then.

    Args:
        request: authenticated and authorized already.
        reader, writer: the raw connection, right after the request's head and body.
        pod: exists; whether it runs is found out here.
        faults: what goes wrong, may change at any time.
    """
    try:
        await faults.pass_upgrade(str(pod))
        try:
            accepted = _negotiate(request, pod, faults)
        except _RefusedError as refusal:
            logger.info("port-forward to pod %s refused: %s %s", pod, refusal.status, refusal.body)
            await _answer(writer, *_refusal_lines(refusal), body=refusal.body)
            return
        await _answer(writer, "101 Switching Protocols", *accepted.headers)
        logger.info("port-forward to pod %s opened: %s", pod, accepted.subprotocol or accepted.protocol.name)
        await _run(accepted, reader, writer, pod, faults)
        logger.info("port-forward to pod %s ended", pod)
    except* (OSError, SpdyError) as group:
        logger.info("port-forward to pod %s cut: %s", pod, "; ".join(map(repr, group.exceptions)))


async def _run(
    accepted: _Accepted, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pod: Pod, faults: Faults
) -> None:
    tunnel = accepted.protocol is Protocols.TUNNEL
    with faults.track(str(pod), writer.transport, tunnel=tunnel) as connection:
        wire = RawWire(reader, writer, faults, connection)
        if accepted.protocol is Protocols.V4:
            base64_text = accepted.subprotocol == V4_BASE64
            await V4Server(wire, pod, faults, accepted.ports, base64_text=base64_text).run()
        else:
            await SpdyServer(TunnelWire(wire) if tunnel else wire, pod, faults).run()


def _negotiate(request: UpgradeRequest, pod: Pod, faults: Faults) -> _Accepted:
    upgrade = request.headers.get("upgrade", "").lower()
    asked = "upgrade" in request.headers.get("connection", "").lower()
    if not upgrade or not asked or (upgrade != "websocket" and Protocols.SPDY not in faults.protocols):
        raise _bad_request("Upgrade request required")  # a proxy that knows no SPDY drops the Upgrade header
    accepted = _websocket(request, faults) if upgrade == "websocket" else _spdy(request, upgrade)
    if faults.at(str(pod)).dead_node:
        raise _RefusedError(
            "500 Internal Server Error", f"error dialing backend: dial tcp {NODE}: connect: no route to host"
        )
    if pod.workload is None or pod.gone.is_set():
        raise _RefusedError("500 Internal Server Error", f'pod not found ("{pod.name}_{pod.namespace}")')
    return accepted


def _spdy(request: UpgradeRequest, upgrade: str) -> _Accepted:
    offered = [name.strip() for name in request.headers.get("x-stream-protocol-version", "").split(",") if name.strip()]
    if not offered or upgrade != "spdy/3.1":
        raise _RefusedError("500 Internal Server Error", "invalid upgrade response: status code 200\n")
    if STREAM_PROTOCOL not in offered:
        text = f"client supports [{' '.join(offered)}], server accepts [{STREAM_PROTOCOL}]\n"
        accepts = f"X-Accepted-Stream-Protocol-Versions: {STREAM_PROTOCOL}"
        text = f"unable to upgrade: unable to negotiate protocol: {text}"
        raise _RefusedError("403 Forbidden", text, headers=(accepts,))
    headers = ("Connection: Upgrade", "Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {STREAM_PROTOCOL}")
    return _Accepted(Protocols.SPDY, "", headers)


def _websocket(request: UpgradeRequest, faults: Faults) -> _Accepted:
    key = request.headers.get("sec-websocket-key")
    if request.method != "GET":
        raise _RefusedError("405 Method Not Allowed", "bad method")
    if key is None:
        raise _RefusedError("400 Bad Request", "mismatch challenge/response")
    offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",") if name.strip()]
    headers = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept_key(key)}")
    if TUNNEL in offered and Protocols.TUNNEL in faults.protocols:
        return _Accepted(Protocols.TUNNEL, TUNNEL, (*headers, f"Sec-WebSocket-Protocol: {TUNNEL}"))
    ports = _ports(request)
    known = [name for name in offered if name in (V4, V4_BASE64)]
    if Protocols.V4 not in faults.protocols or (offered and not known):
        raise _RefusedError("403 Forbidden")
    subprotocol = known[0] if known else ""
    return _Accepted(Protocols.V4, subprotocol, (*headers, f"Sec-WebSocket-Protocol: {subprotocol}"), ports)


def _ports(request: UpgradeRequest) -> tuple[int, ...]:
    texts = [text for value in (request.query_lists or {}).get("ports", ()) for text in value.split(",")]
    if not texts:
        raise _RefusedError("400 Bad Request", 'query parameter "port" is required')
    for text in texts:
        if not (text.isascii() and text.isdecimal()):
            raise _bad_request(f'cannot convert to []int32: strconv.ParseUint: parsing "{text}": invalid syntax')
        if not 0 < int(text) < 1 << 16:
            raise _RefusedError("400 Bad Request", f'port "{text}" must be > 0')
    return tuple(int(text) for text in texts)


def _bad_request(message: str) -> _RefusedError:
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
    }
    status |= {"reason": "BadRequest", "code": 400}
    return _RefusedError("400 Bad Request", json.dumps(status, separators=(",", ":")) + "\n", json_status=True)


def _refusal_lines(refusal: _RefusedError) -> list[str]:
    if not refusal.body:
        return [refusal.status, "Connection: close"]
    length = f"Content-Length: {len(refusal.body.encode())}"
    return [refusal.status, "Connection: close", length, f"Content-Type: {refusal.content_type}", *refusal.headers]


async def _answer(writer: asyncio.StreamWriter, status: str, *headers: str, body: str = "") -> None:
    head = "\r\n".join((f"HTTP/1.1 {status}", *headers, "", ""))
    writer.write(head.encode() + body.encode())
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await writer.drain()
