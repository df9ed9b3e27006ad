"""Stops the reading of one connection, where a layer of mitmproxy cannot: its handlers read as fast as they can write.

What an HTTP/1 sender sends and an HTTP/2 reader does not take would otherwise wait in our memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from ipaddress import ip_address
from typing import Protocol
from weakref import WeakValueDictionary

from mitmproxy.connection import Client, Connection

from kubetunnel.proxy.raw.departed import departed

# A reader with more at hand gives it without a wait, and 64 KiB of HTTP/2 frames with a few bytes each take 40 ms and
# more. Who has taken longer than the first lets all others have their turn, and gets a piece that takes the second
SHORT_S = 0.005
TURN_S = 0.02
LEAST_BYTES = 16 << 10  # smaller ones cost where it is the other side that takes long


class Readable(Protocol):
    """What a connection handler reads from."""

    async def read(self, n: int, /) -> bytes:
        """At most `n` bytes; none at the end."""
        ...


class PausableReader:
    """Passes reads on, unless it is paused. One read that waits already may still bring data.

    A failure is an end, as its handler takes it anyway: raised through the handler's frames it would have a traceback
    that leads to them, and they to the reader that keeps it, a cycle with all that the connection had.

    `is_reading`: whether the peer's end would be noticed now.
    """

    def __init__(self, reader: Readable) -> None:
        self.reader = reader
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.is_reading = False
        self._reading_since_s = 0.0
        self._gave_at_s = math.inf
        self._gave_bytes = 0
        self._waited_s = 0.0  # in reads that are over

    @property
    def waited_s(self) -> float:
        """For how long, in all, somebody has waited in `read` for what the peer sends."""
        return self._waited_s + (time.monotonic() - self._reading_since_s if self.is_reading else 0.0)

    async def read(self, n: int, /) -> bytes:
        """As the reader's; none where it fails."""
        took_s = time.monotonic() - self._gave_at_s
        if took_s > SHORT_S:
            await asyncio.sleep(0)
            n = min(n, max(LEAST_BYTES, int(self._gave_bytes * TURN_S / took_s)))
        await self.may_read.wait()
        self.is_reading = True
        self._reading_since_s = time.monotonic()
        try:
            data = await self.reader.read(n)
        except OSError as e:
            e.__traceback__ = None
            return b""
        else:
            self._gave_bytes = len(data)
            return data
        finally:
            self._waited_s = self.waited_s
            self.is_reading = False
            self._gave_at_s = time.monotonic()


def unwrapped(reader: object) -> object:
    """The reader below, for who takes the connection over as a whole."""
    return reader.reader if isinstance(reader, PausableReader) else reader


class PausableReaders:
    """The readers of all connections: the `Reading` of `KubeHttpLayer`."""

    def __init__(self) -> None:
        self._readers: WeakValueDictionary[str, PausableReader] = WeakValueDictionary()

    def wrap(self, connection: Connection, reader: Readable) -> PausableReader:
        """The reader to give to the connection's handler."""
        pausable = self._readers[connection.id] = PausableReader(reader)
        return pausable

    def pause(self, connection: Connection) -> None:
        """Nothing more is to be read for now. No effect on a connection whose reader was not wrapped."""
        if reader := self._readers.get(connection.id):
            reader.may_read.clear()

    def waited_s(self, connection: Connection) -> float:
        """For how long, in all, we have waited for its bytes: not while it waited for us."""
        reader = self._readers.get(connection.id)
        return reader.waited_s if reader is not None else 0.0

    def may_have_departed(self, client: Client) -> bool:
        """Whether a client that sends no more may be gone altogether; of one on another machine that is not known."""
        return not ip_address(client.peername[0]).is_loopback or bool(departed([client]))

    def resume(self, connection: Connection) -> None:
        """Goes on."""
        if reader := self._readers.get(connection.id):
            reader.may_read.set()
