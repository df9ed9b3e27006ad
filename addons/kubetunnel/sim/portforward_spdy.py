"""The SPDY/3.1 port-forward server of a container runtime, with its habits: kubelet's
`cri/streaming/portforward/httpstream.go` over moby/spdystream, as seen on a real node.

- SYN_REPLY says nothing about the pod, which is dialled when the pair of streams (error, data) is complete.
- Frames go to five workers by stream id, in queues of fifty. A worker hands a data frame to the stream's reader
  without a buffer between: one pod port that does not read stops its worker, then the whole connection; data for a
  stream whose forward has ended stops its worker for good. Pings go to the workers in turn and stop with them.
- RST_STREAM only ends reading: what the pod sends goes on for a second.
- GOAWAY ends the connection at once.

Not here: the timeout for a pair that stays incomplete (30 s), and the idle timeout (4 h). A stream id used twice, which
is answered with a reset on a real node, ends the connection.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from dataclasses import dataclass

from kubetunnel.forward.spdy import (
    CANCEL,
    DataReceived,
    Event,
    GoAwayReceived,
    SpdyConnection,
    StreamOpened,
    StreamReset,
)
from kubetunnel.sim.faults import Faults
from kubetunnel.sim.runtime import Inbox, Pod, PortForward
from kubetunnel.sim.wire import Wire

logger = logging.getLogger(__name__)

FRAME_WORKERS, QUEUE_FRAMES = 5, 50  # spdystream's FRAME_WORKERS and QUEUE_SIZE
PING_FRAME_BYTES = 12

_DATA_HEAD = struct.Struct(">II")


class _Stream(Inbox):
    """One stream: io.Reader and io.Writer of the runtime. It ends behind what came before: one worker does both."""

    def __init__(self, server: SpdyServer, stream_id: int, headers: dict[str, str]) -> None:
        super().__init__()
        self.headers = headers
        self._server = server
        self._id = stream_id

    async def write(self, data: bytes) -> None:
        await self._server.send_data(self._id, data)

    async def close(self) -> None:
        await self._server.send_fin(self._id)


@dataclass(slots=True)
class _Pair:
    error: _Stream | None = None
    data: _Stream | None = None


class SpdyServer:
    """One upgraded connection.

    Args:
        wire: the bytes, the connection's own or tunnelled.
        pod: where the streams lead.
    """

    def __init__(self, wire: Wire, pod: Pod, faults: Faults) -> None:
        self._wire = wire
        self._pod = pod
        self._faults = faults
        self._spdy = SpdyConnection(client=False)
        self._out: list[bytes] = []
        self._queues: list[asyncio.Queue[Event | bytes]] = [asyncio.Queue(QUEUE_FRAMES) for _ in range(FRAME_WORKERS)]
        self._next_worker = 0
        self._streams: dict[int, _Stream] = {}
        self._pairs: dict[str, _Pair] = {}
        self._forwards: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the connection ends. Raises a group of OSError, SpdyError where it did not end well."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            children = [tasks.create_task(self._work(queue)) for queue in self._queues]
            try:
                await self._read()
            finally:
                for task in (*children, *self._forwards):
                    task.cancel()

    async def send_data(self, stream_id: int, data: bytes) -> None:
        """A data frame, also on a stream that the client has reset: the runtime does not look."""
        self._out += (_DATA_HEAD.pack(stream_id, len(data)), data)
        await self._flush()

    async def send_fin(self, stream_id: int) -> None:
        """The end of a stream, once; a reset stream has no end."""
        if self._spdy.can_send(stream_id):
            self._spdy.send_data(stream_id, b"", fin=True)
            if self._streams[stream_id].ended:
                del self._streams[stream_id]
            await self._flush()

    async def _read(self) -> None:
        while data := await self._wire.read():
            events = self._spdy.receive_data(data)
            pongs = self._spdy.data_to_send()
            for event in events:
                if isinstance(event, GoAwayReceived):
                    await self._leave()
                    return
                stream_id = getattr(event, "stream_id", 0)
                await self._queues[stream_id % FRAME_WORKERS].put(event)
            for start in range(0, len(pongs), PING_FRAME_BYTES):
                await self._queues[self._next_worker].put(pongs[start : start + PING_FRAME_BYTES])
                self._next_worker = (self._next_worker + 1) % FRAME_WORKERS

    async def _leave(self) -> None:
        if not self._forwards:
            self._spdy.goaway()
            await self._flush()

    async def _work(self, queue: asyncio.Queue[Event | bytes]) -> None:
        while True:
            frame = await queue.get()
            if isinstance(frame, bytes):
                self._out.append(frame)
                await self._flush()
            elif isinstance(frame, StreamOpened):
                await self._open(frame)
            elif isinstance(frame, DataReceived) and (stream := self._streams.get(frame.stream_id)):
                if frame.data:
                    await stream.hand_over(frame.data)
                if frame.fin:
                    stream.end()
                    if not self._spdy.can_send(frame.stream_id):
                        self._streams.pop(frame.stream_id, None)
            elif isinstance(frame, StreamReset) and (reset := self._streams.pop(frame.stream_id, None)):
                reset.end()

    async def _open(self, opened: StreamOpened) -> None:
        headers = {name.lower(): value for name, value in opened.headers}
        port, kind = headers.get("port", ""), headers.get("streamtype")
        if not port.isdecimal() or not 0 < int(port) < 1 << 16 or kind not in ("error", "data"):
            logger.info("pod %s: stream %s rejected: headers %s", self._pod, opened.stream_id, headers)
            self._spdy.reset(opened.stream_id, CANCEL)
            await self._flush()
            return
        stream = self._streams[opened.stream_id] = _Stream(self, opened.stream_id, headers)
        if opened.fin:
            stream.end()
        self._spdy.reply(opened.stream_id)
        await self._flush()
        # clients that send no requestID open both streams in a row (httpstream.go: requestID)
        request_id = headers.get("requestid") or str(opened.stream_id - (2 if kind == "data" else 0))
        await self._pair(request_id, kind, stream)

    async def _pair(self, request_id: str, kind: str, stream: _Stream) -> None:
        pair = self._pairs.setdefault(request_id, _Pair())
        if getattr(pair, kind) is not None:
            if pair.error is not None:
                text = f"error processing stream for request {request_id}: {kind} stream already assigned"
                await pair.error.write(text.encode())
            return
        setattr(pair, kind, stream)
        if pair.error is not None and pair.data is not None:
            task = self._tasks.create_task(self._forward(request_id, pair.error, pair.data))
            if not task.done():
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)

    async def _forward(self, request_id: str, error: _Stream, data: _Stream) -> None:
        forward = PortForward(self._pod, int(data.headers["port"]), data, self._faults)
        try:
            if text := await forward.run():
                logger.info("pod %s: %s", self._pod, text)
                await error.write(text.encode())
            await error.close()
            await data.close()
            del self._pairs[request_id]
            await forward.linger()
        finally:
            await forward.aclose()

    async def _flush(self) -> None:
        self._out.append(self._spdy.data_to_send())
        out = b"".join(self._out)
        self._out.clear()
        if out:
            await self._wire.write(out)
