"""One HTTP exchange with the API server, head and body as they come: a POST for reviews, the Date for the clock.

`cluster/api.py` gets, lists and watches objects and keeps the heads to itself. TLS, proxy-url and credentials are
ClusterAccess's here as there; a connection an exchange is enough for a dozen questions.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.core.errors import ClusterUnreachable, Timeout, Unauthenticated

ANSWER_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """An answer.

    Attributes:
        headers: by lower-case name.
        asked_at_s, answered_at_s: Unix time before the request and when its head had come.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    asked_at_s: float
    answered_at_s: float

    def json(self) -> dict[str, Any]:
        """The body, {} where it is no JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


async def ask(access: ClusterAccess, path: str, *, post: dict[str, Any] | None = None) -> ApiAnswer:
    """GET a path, or POST an object to it. After a 401 once more, with renewed credentials.

    Raises:
        ClusterUnreachable, Unauthenticated, KubeconfigError, Timeout
    """
    headers = await access.headers()
    answer = await _exchange(access, path, list(headers.items()), post)
    if answer.status != 401:
        return answer
    await access.renew(headers.get("Authorization", ""))
    return await _exchange(access, path, list((await access.headers()).items()), post)


async def _exchange(
    access: ClusterAccess, path: str, credentials: list[tuple[str, str]], post: dict[str, Any] | None
) -> ApiAnswer:
    body = b"" if post is None else json.dumps(post).encode()
    http = h11.Connection(h11.CLIENT)
    fields = [
        ("Host", urlsplit(access.server).netloc),
        *credentials,
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("User-Agent", "kube-tunnel"),
        ("Connection", "close"),
    ]
    try:
        request = h11.Request(
            method="GET" if post is None else "POST",
            target=access.path_prefix.rstrip("/") + path,
            headers=[(name.encode(), value.encode()) for name, value in fields],
        )
    except h11.LocalProtocolError:  # its message quotes the header, which may be the token
        raise Unauthenticated("The credentials have characters that no HTTP header can carry.") from None
    sent = (http.send(request) or b"") + (http.send(h11.Data(body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    asked_at_s = time.time()
    transport, _ = await access.connect(lambda: asyncio.StreamReaderProtocol(reader, loop=loop))
    try:
        transport.write(sent)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await _read(http, reader, asked_at_s)
    except TimeoutError as error:
        raise Timeout(f"The API server {access.server} did not answer within {ANSWER_TIMEOUT_S:g} s.") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise ClusterUnreachable(f"The API server {access.server} broke off: {error}.") from error
    finally:
        transport.abort()


async def _read(http: h11.Connection, reader: asyncio.StreamReader, asked_at_s: float) -> ApiAnswer:
    body = bytearray()
    head: h11.Response | None = None
    answered_at_s = asked_at_s
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            head, answered_at_s = event, time.time()
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError("an answer without an end")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
            return ApiAnswer(head.status_code, headers, bytes(body), asked_at_s, answered_at_s)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("it closed the connection without an answer")
