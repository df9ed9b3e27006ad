"""The WebSocket port-forward server (v4.channel.k8s.io, v4.base64.channel.k8s.io) of a container runtime: kubelet's
`cri/streaming/portforward/websocket.go` over `wsstream`, as seen on a real node.

Channels 2i and 2i+1 are the data and error streams of the i-th port that the request lists. Each begins with the port's
number (little-endian), the pod is dialled at once, and the connection is closed when the last forward has ended. Each
frame is taken as a message, so a client's fragments are lost. One reader serves all channels: a port that does not read
stops them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import struct
from collections.abc import Sequence

from kubetunnel.sim.faults import Faults
from kubetunnel.sim.runtime import Inbox, Pod, PortForward
from kubetunnel.sim.wire import Frames, Wire

logger = logging.getLogger(__name__)

V4, V4_BASE64 = "v4.channel.k8s.io", "v4.base64.channel.k8s.io"
_PORT = struct.Struct("<H")


class _Channel(Inbox):
    """One channel: io.Reader and io.Writer of the runtime. After `close` the client's data is dropped."""

    def __init__(self, server: V4Server, number: int) -> None:
        super().__init__()
        self._server = server
        self._number = number

    async def hand_over(self, data: bytes) -> None:
        """Give the reader one frame; returns when it was taken or the channel is closed."""
        if not self.ended and data:
            await super().hand_over(data)

    async def write(self, data: bytes) -> None:
        await self._server.send(self._number, data)

    async def close(self) -> None:
        if not self.ended:
            self.drop()
            self.end()


class V4Server:
    """One upgraded connection.

    Args:
        wire: the connection's bytes.
        ports: the ports that the request lists, in its order.
        base64_text: v4.base64.channel.k8s.io: text frames, the channel's digit first, the rest in base64.
    """

    def __init__(self, wire: Wire, pod: Pod, faults: Faults, ports: Sequence[int], *, base64_text: bool) -> None:
        self._frames = Frames(wire)
        self._pod = pod
        self._faults = faults
        self._ports = ports
        self._base64_text = base64_text
        self._channels = [_Channel(self, number) for number in range(2 * len(ports))]

    async def run(self) -> None:
        """Serve until the client has gone or the last forward has ended. Raises OSError where the client cut it."""
        for i, port in enumerate(self._ports):
            for channel in self._channels[2 * i : 2 * i + 2]:
                await channel.write(_PORT.pack(port))
        async with asyncio.TaskGroup() as tasks:
            forwards = [tasks.create_task(self._forward(i, port)) for i, port in enumerate(self._ports)]
            reading = tasks.create_task(self._read())
            closing = tasks.create_task(self._close_after(forwards))
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, closing, *forwards):
                task.cancel()

    async def send(self, channel: int, data: bytes) -> None:
        """One message on a channel."""
        if self._base64_text:
            await self._frames.write_text(b"%d" % channel + base64.b64encode(data))
        else:
            await self._frames.write_binary(bytes([channel]) + data)

    async def _close_after(self, forwards: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.wait(forwards)
        await self._frames.close()

    async def _read(self) -> None:
        while frames := await self._frames.read():
            for frame in frames:
                await self._take(bytes(frame.data))

    async def _take(self, message: bytes) -> None:
        if not message:
            return
        number, data = message[0], message[1:]
        if self._base64_text:
            number -= ord("0")
            try:
                data = base64.b64decode(data)
            except binascii.Error as e:
                logger.info("pod %s: a frame is no base64: %s", self._pod, e)
                return
        if 0 <= number < len(self._channels):  # others the runtime ignores
            await self._channels[number].hand_over(data)

    async def _forward(self, i: int, port: int) -> None:
        data, error = self._channels[2 * i : 2 * i + 2]
        forward = PortForward(self._pod, port, data, self._faults)
        try:
            if text := await forward.run():
                logger.info("pod %s: %s", self._pod, text)
                await error.write(text.encode())
            await error.close()
            await data.close()
        finally:
            await forward.aclose()
