"""Which bodies pass through as they come, and what of them mitmweb still shows.

A short body of known length is held back until it is whole, so that it can be inspected, intercepted and changed.
Everything else (chunked, long, event streams, gRPC) is streamed; where it turns out to be short, the flow shows a copy.
"""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.net.http.http1 import expected_http_body_size

MAX_HELD_BYTES = 1 << 20  # a body of known length up to this is buffered whole
MAX_COPY_BYTES = 1 << 20  # a streamed body up to this is kept for inspection


class BodyCopy:
    """Passes chunks on unchanged and keeps them while they are short: mitmproxy's `message.stream` callable."""

    def __init__(self) -> None:
        self.kept: bytearray | None = bytearray()
        self.passed_bytes = 0

    def __call__(self, chunk: bytes) -> bytes:
        self.passed_bytes += len(chunk)
        if self.kept is not None:
            self.kept += chunk
            if len(self.kept) > MAX_COPY_BYTES:
                self.kept = None  # a part, shown or recorded, would pass for the whole
        return chunk


def stream_request(flow: http.HTTPFlow) -> None:
    """To be called in `requestheaders`: sets `flow.request.stream` where the body shall pass as it comes."""
    unknown_length = flow.request.is_http2 and "content-length" not in flow.request.headers
    # whether the client shall continue is the pod's decision, so the pod has to hear of it first
    expects = "expect" in flow.request.headers
    if unknown_length or expects or not _is_short(expected_http_body_size(flow.request)):
        flow.request.stream = BodyCopy()


def stream_response(flow: http.HTTPFlow) -> None:
    """To be called in `responseheaders`: sets `flow.response.stream` where the body shall pass as it comes."""
    if flow.response and not _is_short(expected_http_body_size(flow.request, flow.response)):
        flow.response.stream = BodyCopy()


def keep_copy(message: http.Message) -> None:
    """To be called when the message is complete: shows the copy as the message's content, if there is one."""
    copy = message.stream
    if isinstance(copy, BodyCopy) and copy.kept is not None:
        message.data.content = bytes(copy.kept)
        copy.kept = None


def drop_copy(message: http.Message | None) -> None:
    """To be called when the message will never be complete."""
    if message and isinstance(message.stream, BodyCopy):
        message.stream.kept = None


def _is_short(size: int | None) -> bool:
    # None: chunked, -1: until the connection closes
    return size is not None and 0 <= size <= MAX_HELD_BYTES
