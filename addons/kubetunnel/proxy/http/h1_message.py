"""HTTP/1.1 messages as bytes (RFC 9112): framing, heads, chunks and trailers, and what HTTP/2 messages become in it."""

from __future__ import annotations

from typing import Literal

from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.net.http import http1, status_codes

# Envoy's limit is 60 KiB, that of the h2 library 64 KiB
MAX_HEAD_BYTES = 64 << 10

# the length of a body, None: chunked, "close": until the connection ends
type Framing = int | Literal["close"] | None

_CONTENT_EXPECTED = {"POST", "PUT", "PATCH"}


class HeadTooLargeError(ValueError):
    """More than `MAX_HEAD_BYTES` of start-line and fields."""


def take_head(buffer: ReceiveBuffer) -> list[bytes] | None:
    """Takes start-line and fields off the buffer; None where they are not all there.

    Raises:
        HeadTooLargeError
        ValueError: there is what others may take for the end of a line.
    """
    while True:
        before = len(buffer)
        lines = buffer.maybe_extract_lines()
        if lines is None:
            if before > MAX_HEAD_BYTES:
                raise HeadTooLargeError(f"more than {MAX_HEAD_BYTES} bytes")
            return None
        if lines:  # RFC 9112 section 2.2: empty lines before a start-line are to be ignored
            if before - len(buffer) > MAX_HEAD_BYTES:
                raise HeadTooLargeError(f"more than {MAX_HEAD_BYTES} bytes")
            return _unfolded([bytes(line) for line in lines])


def _unfolded(lines: list[bytes]) -> list[bytes]:
    """Each field in a line (RFC 9112 section 5.2), and in none what HTTP/2 or a lenient reader would stumble over."""
    whole: list[bytes] = []
    for line in lines:
        if b"\r" in line or b"\0" in line:  # RFC 9110 section 5.5
            raise ValueError("The head has a CR or NUL within a line")
        if len(whole) > 1 and line[:1] in (b" ", b"\t"):
            whole[-1] += b" " + line.strip()
        else:
            whole.append(line)
    return whole


def framing(request: http.Request, response: http.Response | None = None) -> Framing:
    """How the body of the request, or of the response to it, is delimited. Raises ValueError on invalid fields."""
    size = http1.expected_http_body_size(request, response)
    return "close" if size == -1 else size


def framing_to_send(request: http.Request, response: http.Response | None = None) -> Framing:
    """As `framing`, for a message that an addon may have made invalid: it is sent as it is."""
    try:
        return framing(request, response)
    except ValueError:
        return "close"


def asks_to_close(message: http.Request | http.Response) -> bool:
    """Whether the connection ends after this message (RFC 9112 section 9.3)."""
    # tokens are case-insensitive, which mitmproxy's connection_close is not
    tokens = {token.strip().lower() for token in message.headers.get("connection", "").split(",")}
    return "close" in tokens or ("keep-alive" not in tokens and message.http_version == "HTTP/1.0")


def as_http1_request(request: http.Request, *, has_body: bool) -> http.Request:
    """The head of an HTTP/2 request in HTTP/1.1; any other as it is."""
    if not request.is_http2:
        return request
    headers = request.headers.copy()
    if "host" not in headers and request.authority:
        headers.insert(0, "Host", request.authority)
    if len(cookies := headers.get_all("cookie")) > 1:
        headers["Cookie"] = "; ".join(cookies)  # RFC 9113 section 8.2.3
    if "content-length" not in headers:
        if has_body:
            headers["Transfer-Encoding"] = "chunked"
        elif request.method in _CONTENT_EXPECTED:
            headers["Content-Length"] = "0"  # RFC 9110 section 8.6
    data = request.data
    return http.Request(
        data.host, data.port, data.method, data.scheme, b"", data.path, b"HTTP/1.1", headers,
        None, None, data.timestamp_start, data.timestamp_end,
    )  # fmt: skip


def as_http1_response(response: http.Response, request: http.Request, *, has_body: bool) -> http.Response:
    """The head of an HTTP/2 response in HTTP/1.1; any other as it is."""
    if not response.is_http2:
        return response
    headers = response.headers.copy()
    if response.status_code >= 200 and framing_to_send(request, response) == "close":
        # without a length the connection would have to end after it, and trailers would have no place
        if not has_body:
            headers["Content-Length"] = "0"
        elif request.http_version != "HTTP/1.0":
            headers["Transfer-Encoding"] = "chunked"
    reason = status_codes.RESPONSES.get(response.status_code, "").encode()
    data = response.data
    return http.Response(
        b"HTTP/1.1", data.status_code, reason, headers, None, None, data.timestamp_start, data.timestamp_end
    )


def as_http2_request(request: http.Request) -> http.Request:
    """The head of an HTTP/1 request as HTTP/2 may have it; any other as it is."""
    headers = request.headers if request.is_http2 else _end_to_end(request.headers)
    if headers is request.headers:
        return request
    data = request.data
    return http.Request(
        data.host, data.port, data.method, data.scheme, data.authority, data.path, data.http_version, headers,
        None, None, data.timestamp_start, data.timestamp_end,
    )  # fmt: skip


def as_http2_response(response: http.Response) -> http.Response:
    """The head of an HTTP/1 response as HTTP/2 may have it; any other as it is."""
    headers = response.headers if response.is_http2 else _end_to_end(response.headers)
    if headers is response.headers:
        return response
    data = response.data
    return http.Response(
        data.http_version, data.status_code, data.reason, headers,
        None, None, data.timestamp_start, data.timestamp_end,
    )  # fmt: skip


def _end_to_end(headers: http.Headers) -> http.Headers:
    """Without what is about one connection (RFC 9113 section 8.2.2); the customary fields mitmproxy drops itself."""
    named = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    coding = headers.get("te")
    named -= {"", "close", "keep-alive", "te", "host"}  # without a Host it could not be routed
    if not named and coding is None:
        return headers
    kept = headers.copy()
    for name in named | {"te"}:
        kept.pop(name, None)
    if coding is not None and "trailers" in (token.strip().lower() for token in coding.split(",")):
        kept["te"] = "trailers"
    return kept


def chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, since an empty one would be the last."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: http.Headers | None) -> bytes:
    """The end of a chunked body."""
    return b"0\r\n%s\r\n" % (bytes(trailers) if trailers else b"")


def withdraw_h2c_upgrade(headers: http.Headers) -> None:
    """Takes an offer to go on in HTTP/2 back, so that the pod answers in HTTP/1.1 (RFC 9113 dropped that upgrade)."""
    if headers.get("upgrade", "").strip().lower() != "h2c":
        return
    tokens = [token.strip() for token in headers.get("connection", "").split(",")]
    rest = [token for token in tokens if token.lower() not in ("", "upgrade", "http2-settings")]
    for name in ("upgrade", "http2-settings", "connection"):
        headers.pop(name, None)
    if rest:
        headers["Connection"] = ", ".join(rest)
