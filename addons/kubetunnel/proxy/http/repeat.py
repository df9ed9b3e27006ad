"""What of a request went upstream, kept for as long as it may have to be sent again."""

from __future__ import annotations

from collections.abc import Iterator

from mitmproxy import http
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, RequestHeaders, RequestTrailers

# of a streamed body, so much is kept until the response begins
MAX_KEPT_BYTES = 64 << 10

_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}


def is_idempotent(request: http.Request) -> bool:
    """Whether to send it twice is the same as to send it once (RFC 9110 section 9.2.2)."""
    return request.method in _IDEMPOTENT


class SentRequest:
    """One request's head and as much of its body as was sent.

    Args:
        content: the whole body where it was held back until complete; None where it is streamed.
    """

    def __init__(self, request: http.Request, content: bytes | None = None) -> None:
        self._request = request
        self._is_streamed = content is None
        self._body: list[bytes] = [content] if content else []
        self._size_bytes = 0
        self.is_at_hand = True

    def add(self, data: bytes) -> None:
        """More of a streamed body was sent."""
        self._size_bytes += len(data)
        if self._size_bytes > MAX_KEPT_BYTES:
            self.forget()
        elif self.is_at_hand:
            self._body.append(data)

    def forget(self) -> None:
        """It will not be sent again."""
        self.is_at_hand = False
        self._body.clear()

    def events(self, stream_id: int, *, complete: bool) -> Iterator[HttpEvent]:
        """The request again; `complete`: with its end."""
        trailers = self._request.trailers
        yield RequestHeaders(stream_id, self._request, not (self._is_streamed or self._body or trailers))
        for data in self._body:
            yield RequestData(stream_id, data)
        if complete:
            if trailers:
                yield RequestTrailers(stream_id, trailers)
            yield RequestEndOfMessage(stream_id)
