"""One health check through a stream to a pod's port: a TCP connect, an HTTP request, or gRPC's own (grpc.health.v1).

A port-forward has no sign of a pod that was reached: the SYN_REPLY comes before the runtime dials, and only a failure
is told, as a text. So a TCP check takes as proof what can be proof: bytes or an end in order from the pod; and a silent
port counts as accepting when no failure was told for the settle time. The runtime dials on the pod's own loopback,
where a refusal is there at once, so the settle time has to cover the way from the node to us, and no more. A port whose
packets are dropped inside of the pod passes for one that accepts.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import h11

from kubetunnel.core.health import Check, Outcome
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.observe.http2_call import GRPC_HEADERS, Http2CallFailed, call_http2, grpc_message

USER_AGENT = "kube-tunnel-health"
_SETTLE_SHARE = 0.5  # of the timeout
_MAX_READ_BYTES = 1 << 16
_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}, grpc.health.v1


@dataclass(frozen=True, slots=True)
class Probed:
    """What is probed: how, and as what name. `tls`, `http2`: what the port speaks."""

    check: Check
    host: str
    tls: bool = False
    http2: bool = False


async def probe(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probed: Probed, timeout_s: float
) -> Outcome:
    """One check on a stream that was just opened; the caller closes it. Never raises but CancelledError."""
    clock = asyncio.get_running_loop().time
    started_s = clock()
    try:
        async with asyncio.timeout(timeout_s):
            if probed.check.kind == "tcp":
                return await _tcp(reader, timeout_s * _SETTLE_SHARE)
            if probed.tls:
                protocol = "h2" if probed.http2 or probed.check.kind == "grpc" else "http/1.1"
                await writer.start_tls(_unverified(protocol), server_hostname=probed.host)
            if probed.check.kind == "grpc":
                outcome = await _grpc(reader, writer, probed)
            elif probed.http2:
                outcome = await _http2(reader, writer, probed)
            else:
                outcome = await _http1(reader, writer, probed)
    except TimeoutError:
        return Outcome(False, f"no answer within {timeout_s:g} s")
    except StreamFailed as e:
        return Outcome(False, e.error.detail)
    except (OSError, EOFError, h11.RemoteProtocolError, Http2CallFailed) as e:
        return Outcome(False, str(e) or type(e).__name__)
    return Outcome(outcome.ok, outcome.detail, clock() - started_s)


async def _tcp(reader: asyncio.StreamReader, settle_s: float) -> Outcome:
    started_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(settle_s):
            said = await reader.read(1)
    except TimeoutError:
        return Outcome(True, f"not refused within {settle_s:g} s")
    latency_s = asyncio.get_running_loop().time() - started_s
    return Outcome(True, "the server speaks first" if said else "accepted and closed", latency_s)


async def _http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probed: Probed) -> Outcome:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", probed.host), ("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Connection", "close")]
    request = connection.send(h11.Request(method="GET", target=probed.check.argument, headers=headers))
    writer.write((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MAX_READ_BYTES))
        elif isinstance(event, h11.Response):
            return _of_status(event.status_code)
        elif not isinstance(event, h11.InformationalResponse):
            return Outcome(False, "the connection was closed without an answer")


async def _http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probed: Probed) -> Outcome:
    answer = await call_http2(
        reader, writer, method="GET", authority=probed.host, path=probed.check.argument, tls=probed.tls,
        headers=[("user-agent", USER_AGENT)], head_only=True,
    )  # fmt: skip
    return _of_status(answer.status)


async def _grpc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probed: Probed) -> Outcome:
    service = probed.check.argument.encode()
    if len(service) >= 0x80:
        return Outcome(False, "the name of the gRPC service is longer than 127 bytes")
    request = b"\x0a" + bytes([len(service)]) + service if service else b""  # HealthCheckRequest{service: 1}
    answer = await call_http2(
        reader, writer, method="POST", authority=probed.host, path="/grpc.health.v1.Health/Check", tls=probed.tls,
        headers=[*GRPC_HEADERS, ("user-agent", USER_AGENT)], body=grpc_message(request),
    )  # fmt: skip
    status = answer.headers.get("grpc-status", "2")
    if status == "12":
        return Outcome(False, "the server has no grpc.health.v1.Health")
    if status == "5":
        return Outcome(False, f"grpc.health.v1.Health does not know {probed.check.argument!r}")
    if answer.status != 200 or status != "0":
        return Outcome(False, f"HTTP status {answer.status}, gRPC status {status}")
    ok = answer.body[5:] == _SERVING
    return Outcome(ok, "SERVING" if ok else "not SERVING")


def _of_status(status: int) -> Outcome:
    # the kubelet's rule for httpGet probes
    return Outcome(200 <= status < 400, f"HTTP status {status}")


def _unverified(protocol: str) -> ssl.SSLContext:
    """As for requests: the pod's certificate is not verified, and the way to the pod is the API server's TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context
