"""The container runtime's end of a port-forward: dial a port inside the pod, copy both ways, end as containerd does.

Modelled on containerd 1.6 `pkg/cri/server/sandbox_portforward_linux.go` and seen on a real node: the dial goes to
127.0.0.1, then to ::1; the client's EOF is never passed on to the pod; when one direction ends, the other has one
second more, then both are cut; what goes wrong becomes one text on the error stream.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Protocol

from kubetunnel.sim.faults import Faults
from kubetunnel.sim.listener import BUFFER_BYTES
from kubetunnel.sim.workloads import RESET_PORT, Workload

logger = logging.getLogger(__name__)

GRACE_S = 1.0  # containerd's, as socat's: what the other direction still has when one ended
PIECE_BYTES = 1 << 16
DIAL_TIMEOUT_S = 5.0  # on loopback; only a pod with a full backlog is that slow

REFUSED, RESET = "connection refused", "connection reset by peer"


class Pod(Protocol):
    """What the runtime knows of a pod; `str()` is "namespace/name". `gone`: its sandbox is no more."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def workload(self) -> Workload | None: ...
    @property
    def gone(self) -> asyncio.Event: ...


class PodStream(Protocol):
    """The data stream of a port-forward, as the runtime reads and writes it. `close` ends our direction, once."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


class Inbox:
    """What the client sent on a stream, frame by frame: a frame is with its reader before the next one is taken."""

    def __init__(self) -> None:
        self.ended = False
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        if self.ended and self._frames.empty():
            return b""
        data = await self._frames.get()
        self._frames.task_done()
        return data

    async def hand_over(self, data: bytes) -> None:
        """Give the reader one frame; returns when it was taken, never where nobody reads any more."""
        self._frames.put_nowait(data)
        await self._frames.join()

    def drop(self) -> None:
        """Whoever hands something over need not wait: nobody will read it."""
        while not self._frames.empty():
            self._frames.get_nowait()
            self._frames.task_done()

    def end(self) -> None:
        """No more comes; a reader that waits is told."""
        self.ended = True
        self._frames.put_nowait(b"")


class _DialError(Exception):
    pass


class PortForward:
    """One forwarded connection.

    Args:
        pod: where to; its workload is looked up when the dial is made.
        port: the number of the pod's port.
        stream: the client's side.
    """

    def __init__(self, pod: Pod, port: int, stream: PodStream, faults: Faults) -> None:
        self._pod = pod
        self._port = port
        self._stream = stream
        self._faults = faults
        self._sandbox = hashlib.sha256(pod.uid.encode()).hexdigest()
        self._up: asyncio.Task[str | None] | None = None
        self._down: asyncio.Task[str | None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> str | None:
        """Forward until one side ends. Returns the text for the error stream, None where nothing went wrong."""
        problem = await self._forward()
        return f"error forwarding port {self._port} to pod {self._sandbox}, uid : {problem}" if problem else None

    async def linger(self) -> None:
        """Go on reading the client's stream as the runtime does after `run`: up to the piece whose write fails.

        Nobody reads what comes after that, which is how a frame worker of the connection gets stuck for good.
        """
        if self._up is not None:
            await asyncio.wait({self._up})

    async def aclose(self) -> None:
        """Give everything up at once."""
        tasks = [task for task in (self._up, self._down) if task is not None]
        for task in tasks:
            task.cancel()
        if self._writer is not None:
            self._writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self) -> str | None:
        if self._pod.gone.is_set():
            return f'network namespace for sandbox "{self._sandbox}" is closed'
        problem = None
        try:
            reader, self._writer = await self._dial()
        except _DialError as e:
            problem = str(e)
        else:
            problem = await self._copy(reader, self._writer)
        await self._stream.close()
        if problem is None:
            return None
        digest = hashlib.sha256(self._sandbox.encode()).hexdigest()
        namespace = f"cni-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
        return f'failed to execute portforward in network namespace "/var/run/netns/{namespace}": {problem}'

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        fault = self._faults.at(str(self._pod), self._port)
        address = self._pod.workload.listen_address(self._port) if self._pod.workload else None
        over_ipv6 = address is not None and ":" in address[0]
        why4 = why6 = REFUSED
        if fault.reset or (self._port == RESET_PORT and address is not None and not fault.refuse):
            why4 = RESET  # the reset comes before the runtime's connect returns
        elif address is not None and not fault.refuse and (self._faults.ipv6_localhost or not over_ipv6):
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    return await asyncio.open_connection(*address, limit=BUFFER_BYTES)
            except (OSError, TimeoutError) as e:
                logger.info("pod %s port %s cannot be dialled: %s", self._pod, self._port, e)
        ipv6 = f"dial tcp6 [::1]:{self._port}: connect: {why6}"
        if not self._faults.ipv6_localhost:
            ipv6 = "dial tcp6: address localhost: no suitable address found"
        ipv4 = f"dial tcp4 127.0.0.1:{self._port}: connect: {why4}"
        namespace = f'inside namespace "{self._sandbox}"'
        raise _DialError(f"failed to connect to localhost:{self._port} {namespace}, IPv4: {ipv4} IPv6 {ipv6} ")

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        self._up = asyncio.create_task(self._copy_up(writer))
        self._down = asyncio.create_task(self._copy_down(reader))
        first, rest = await asyncio.wait({self._up, self._down}, return_when=asyncio.FIRST_COMPLETED)
        second = (await asyncio.wait(rest, timeout=GRACE_S))[0] if rest else set()
        self._down.cancel()
        writer.transport.abort()
        problems = [task.result() for task in (*first, *second) if not task.cancelled()]
        return next((problem for problem in problems if problem), None)

    async def _copy_up(self, writer: asyncio.StreamWriter) -> str | None:
        try:
            while data := await self._stream.read():
                await self._faults.pass_port(str(self._pod), self._port)
                if writer.is_closing():
                    return f"{self._operation('write', writer)}: use of closed network connection"
                writer.write(data)
                await writer.drain()
        except ConnectionResetError:
            return f"{self._operation('write', writer)}: write: {RESET}"
        except BrokenPipeError:
            return f"{self._operation('write', writer)}: write: broken pipe"
        return None

    async def _copy_down(self, reader: asyncio.StreamReader) -> str | None:
        while True:
            try:
                data = await reader.read(PIECE_BYTES)
                await self._faults.pass_port(str(self._pod), self._port)
            except ConnectionResetError:
                return f"{self._operation('read', self._writer)}: read: {RESET}"
            if not data:
                return None
            await self._stream.write(data)

    def _operation(self, verb: str, writer: asyncio.StreamWriter | None) -> str:
        local = writer.get_extra_info("sockname")[1] if writer is not None else 0
        return f"{verb} tcp4 127.0.0.1:{local}->127.0.0.1:{self._port}"
