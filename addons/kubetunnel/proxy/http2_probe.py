"""Asks a pod's port in clear whether it speaks HTTP/2, where nothing says so (RFC 9113 section 3.3: prior knowledge).

An HTTP/2 server sends its SETTINGS as its first frame (3.4); anything else answers the preface with an error, or not.
"""

from __future__ import annotations

import asyncio

from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame, SettingsFrame

PATIENCE_S = 1.0  # longer than any pod nearby takes for its SETTINGS, short enough for a first request to wait once
_FRAME_HEADER_BYTES = 9  # RFC 9113 section 4.1


async def speaks_http2(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, patience_s: float = PATIENCE_S
) -> bool | None:
    """Whether the peer of this fresh stream answers the preface with SETTINGS. The stream is of no other use then.

    Returns:
        None where it was silent, which says nothing.

    Raises:
        OSError: the stream failed.
    """
    connection = H2Connection()
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    try:
        async with asyncio.timeout(patience_s):
            head = await reader.readexactly(_FRAME_HEADER_BYTES)
    except TimeoutError:
        return None
    except asyncio.IncompleteReadError as e:
        return False if e.partial else None
    try:
        frame, _ = Frame.parse_frame_header(memoryview(head))
    except (HyperframeError, ProtocolError, ValueError):
        return False
    return isinstance(frame, SettingsFrame) and "ACK" not in frame.flags
