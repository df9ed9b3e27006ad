"""How a refusal is told: a `KubeTunnelError` becomes an answer that the client's protocol understands.

The table of the contract's section 5, and the only place that knows status codes. HTTP follows RFC 9457 (problem
details), gRPC its HTTP/2 mapping (status in the trailers, HTTP 200), SOCKS5 the reply codes of RFC 1928 section 6.
"""

from __future__ import annotations

import json
import time
from copy import copy
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import quote

from mitmproxy import http

from kubetunnel.core.errors import KubeTunnelError, NotAServiceName, Unauthenticated, UpstreamProtocol
from kubetunnel.core.media_types import is_grpc_type

ERROR_HEADER = "X-Kube-Tunnel-Error"
_SERVER_ERRORS = 500  # and above (RFC 9110 section 15.6)


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of one reason. `socks5` None: the connection is reset instead of answered."""

    http: int
    grpc: int
    socks5: int | None


CODES = {
    "NotAServiceName": Codes(400, 3, 4),
    "ServiceNotFound": Codes(404, 5, 4),
    "NamespaceNotFound": Codes(404, 5, 4),
    "PortNotExposed": Codes(404, 5, 5),
    "NoReadyEndpoints": Codes(503, 14, 1),
    "NotForwardable": Codes(501, 12, 2),
    "Forbidden": Codes(502, 7, 2),
    "Unauthenticated": Codes(502, 16, 2),
    "ClusterUnreachable": Codes(502, 14, 3),
    "ConnectionRefused": Codes(502, 14, 5),
    "UpstreamReset": Codes(502, 14, None),
    "UpstreamProtocol": Codes(502, 14, None),
    "Timeout": Codes(504, 4, 6),
}


class Refusal(http.Response):
    """An answer of the tunnel's own. A pod's is none, whatever its headers say."""

    error: KubeTunnelError | None = None


class RefusalTrailers(http.Headers):
    """The end that the tunnel gives to a pod's answer."""

    error: KubeTunnelError | None = None


def error_of_answer(response: http.Response) -> KubeTunnelError | None:
    """Why the tunnel refused a request, or ended its answer; None where it did neither."""
    if isinstance(response, Refusal):
        return response.error
    return response.trailers.error if isinstance(response.trailers, RefusalTrailers) else None


def refusal(error: KubeTunnelError, request: http.Request) -> http.Response:
    """The answer to `request`: problem+json, or a trailers-only gRPC response where the request is gRPC."""
    if is_grpc(request):
        return _grpc(error)
    return _problem(error, has_body=request.method != "HEAD")


def complaint(status: int, detail: str, *, grpc: bool = False) -> http.Response:
    """The answer to what HTTP itself refuses, with a status of its own, e.g. 431, and the nearest reason of the table.

    What never became a request names no Service; what is wrong after that is what the pod sent.
    """
    error = (NotAServiceName if status < _SERVER_ERRORS else UpstreamProtocol)(detail)
    return _grpc(error) if grpc else _problem(error, status=status, title=HTTPStatus(status).phrase)


def credentials_wanted(request: http.Request) -> http.Response:
    """The answer to who has not shown the credentials that this proxy asks for (RFC 9110 section 11.7)."""
    error = Unauthenticated(
        f"This tunnel asks for a user name and a password, in the header Proxy-Authorization, and {request.method} "
        "came without any that it knows.",
        command="curl --proxy-user USER:PASSWORD -x http://TUNNEL http://SERVICE.NAMESPACE/",
    )
    if is_grpc(request):
        return _grpc(error)
    status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
    answer = _problem(error, status=status, title=status.phrase, has_body=request.method != "HEAD")
    answer.headers["Proxy-Authenticate"] = 'Basic realm="kube-tunnel"'
    return answer


def is_grpc(request: http.Request) -> bool:
    """Whether it is gRPC over HTTP/2; grpc-web and Connect are HTTP."""
    return request.is_http2 and is_grpc_type(request.headers.get("content-type", ""))


def _problem(
    error: KubeTunnelError, *, status: int | None = None, title: str | None = None, has_body: bool = True
) -> http.Response:
    status = int(status or CODES[error.reason].http)
    problem = {
        "type": "about:blank",
        "title": title or error.title,
        "status": status,
        "detail": error.detail,
        "reason": error.reason,
    }
    if error.command:
        problem["command"] = error.command
    body = json.dumps(problem, ensure_ascii=False, indent=2).encode() + b"\n" if has_body else b""
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store", ERROR_HEADER: error.reason}
    answer = cast("Refusal", Refusal.make(status, body, headers))
    answer.error = copy(error)  # without its traceback, whose frames know the connection
    return answer


def grpc_trailers(error: KubeTunnelError) -> RefusalTrailers:
    """The end of a gRPC call that has begun to be answered."""
    trailers = RefusalTrailers(
        grpc_status=str(CODES[error.reason].grpc),
        # gRPC over HTTP/2, Status-Message: percent-encoded UTF-8
        grpc_message=quote(str(error), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    )
    trailers[ERROR_HEADER.lower()] = error.reason
    trailers.error = copy(error)
    return trailers


def _grpc(error: KubeTunnelError) -> http.Response:
    now = time.time()
    trailers = grpc_trailers(error)
    headers = http.Headers([(b"content-type", b"application/grpc"), *trailers.fields])
    answer = Refusal(b"HTTP/2.0", 200, b"", headers, b"", None, now, now)
    answer.error = trailers.error
    return answer
