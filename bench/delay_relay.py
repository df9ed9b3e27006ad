"""`python -m bench.delay_relay HOST:PORT MILLISECONDS`: passes TCP on to an address, each byte that much later.

What stands for a long way between client and API server; the round trip is twice the delay. Prints its own port.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def delayed(host: str, port: int, delay_s: float) -> AsyncIterator[int]:
    """A relay that lasts as long as the block. Yields its port on 127.0.0.1."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs is one's
        running.add(task)
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(_pass_on(reader, far_writer, delay_s), _pass_on(far_reader, writer, delay_s))
        except (OSError, asyncio.CancelledError):
            pass  # an end like any other, which both sides are to hear of
        finally:
            running.discard(task)
            for each in filter(None, (writer, far_writer)):
                each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        ending = list(running)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending)


async def relay(host: str, port: int, delay_s: float) -> None:
    async with delayed(host, port, delay_s) as own:
        print(own, flush=True)
        await asyncio.Event().wait()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """One direction. At most 1 MiB is under way, far more than what is asked here. Ends with it, or in OSError."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(16)

    async def write() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.write_eof() if writer.can_write_eof() else writer.close()
                return
            writer.write(data)
            await writer.drain()

    async def read() -> None:
        data = b"-"
        while data:
            data = await reader.read(65536)
            await queue.put((loop.time() + delay_s, data))

    await asyncio.gather(read(), write())


if __name__ == "__main__":
    address, _, number = sys.argv[1].rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay(address, int(number), float(sys.argv[2]) / 1000))
