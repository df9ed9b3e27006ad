"""Ends an upstream whose pod takes nothing of what was sent to it: the other half of `http.read_timeout`."""

from __future__ import annotations

import asyncio

from kubetunnel.core.errors import Timeout
from kubetunnel.forward.errors import StreamFailed


class TimedWriter(asyncio.StreamWriter):
    """Waits for the peer as `StreamWriter` does, for as long as it takes something at all.

    Where somebody else has taken the transport over, as a relay of raw bytes does, there is no limit.

    Args:
        timeout_s: after which the connection is aborted; the reader has the `Timeout` then.
        peer: for the error.
    """

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        *,
        timeout_s: float,
        peer: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(transport, protocol, reader, loop)
        self._own_protocol = protocol
        self._own_reader = reader
        self._timeout_s = timeout_s
        self._peer = peer

    async def drain(self) -> None:
        """As `StreamWriter.drain`. Raises StreamFailed, too, where the peer has taken nothing for too long."""
        left = self.transport.get_write_buffer_size()
        while self._is_ours():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await super().drain()
            except TimeoutError:
                # nobody writes while a writer is drained, so less is left only where the peer took some
                before, left = left, self.transport.get_write_buffer_size()
                if self._is_ours() and left >= before:
                    raise self._failed() from None
            else:
                return
        await super().drain()

    def _is_ours(self) -> bool:
        transport = self.transport
        return isinstance(transport, asyncio.Transport) and transport.get_protocol() is self._own_protocol

    def _failed(self) -> StreamFailed:
        error = Timeout(f"{self._peer} took nothing of what was sent to it for {self._timeout_s:g} s.")
        failure = StreamFailed(error)
        self._own_reader.set_exception(failure)
        self.transport.abort()
        return failure
