"""`python -m bench.delay_relay HOST:PORT MILLISECONDS`: passes TCP on to an address, each byte that much later.

What stands for a long way between client and API server; the round trip is twice the delay. Prints its own port.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def relay(host: str, port: int, delay_s: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(reader, far_writer, delay_s))
            group.create_task(_pass_on(far_reader, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """One direction. At most 1 MiB is under way, far more than what is asked here."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(16)

    async def write() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    async def read() -> None:
        data = b"-"
        while data:
            data = await reader.read(65536)
            await queue.put((loop.time() + delay_s, data))

    with contextlib.suppress(OSError):
        await asyncio.gather(read(), write())


if __name__ == "__main__":
    address, _, number = sys.argv[1].rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay(address, int(number), float(sys.argv[2]) / 1000))
