"""What the peer of a SPDY connection said, as data (SPDY/3 draft 2.6), and the one error that its bytes can cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kubetunnel.forward.spdy_headers import Headers


class SpdyError(Exception):
    """The peer broke the protocol; the connection is of no more use.

    `events` are those of the same bytes that came before the violation: they are good, and nobody else gets them.
    """

    def __init__(self, message: str, events: tuple[Event, ...] = ()) -> None:
        super().__init__(message)
        self.events = events


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """SYN_STREAM: the peer opened a stream."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """SYN_REPLY: the peer took a stream of ours. For a port-forward it does not mean that the pod was reached."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class HeadersReceived:
    """HEADERS: more headers on a stream."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a stream, a whole frame or a piece of one. `fin`: the peer sends no more on this stream."""

    stream_id: int
    data: bytes
    fin: bool


class DataSeen(NamedTuple):
    """DataReceived without a copy: `data` is a view of the bytes that came, and lives as long as they do.

    A NamedTuple because there are a hundred thousand a GiB, and a frozen dataclass takes three times as long to make.
    """

    stream_id: int
    data: memoryview
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """RST_STREAM: the stream is gone in both directions."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """The peer answered a ping of ours."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """GOAWAY: no new streams; those of ours above `last_stream_id` were never looked at."""

    last_stream_id: int
    status: int


type Event = (
    StreamOpened
    | StreamReplied
    | HeadersReceived
    | DataReceived
    | DataSeen
    | StreamReset
    | PingAcknowledged
    | GoAwayReceived
)
