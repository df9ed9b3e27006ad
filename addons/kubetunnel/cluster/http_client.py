"""HTTP exchanges with one API server: aiohttp over the connections of ClusterAccess, errors turned into ours.

Nothing is taken from the environment: an HTTPS_PROXY that points at this very tunnel would make a loop (`access.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.answers import Answer, CutError, NotKubernetesError, retry_after_s
from kubetunnel.cluster.connection import CLOSE_TIMEOUT_S
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError, Timeout, Unauthenticated

logger = logging.getLogger(__name__)

BODY_TIMEOUT_S = 30.0  # 500 large objects over a thin line
KEEPALIVE_S = 5.0  # for a burst of requests; after it the connection may be dead, and a handshake is soon made
MAX_ANSWER_BYTES = 64 << 20  # a page is 500 objects, mostly of a few KiB; etcd holds 1.5 MiB each at most

_JSON = {"Accept": "application/json", "User-Agent": "kube-tunnel"}


class _Connection(ResponseHandler):
    """aiohttp's protocol, which also tells its connector of the connection's beginning and end."""

    def __init__(self, connector: _Connector) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._connector = connector
        self._own: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if isinstance(transport, asyncio.Transport):
            self._own = transport
            self._connector.opened.add(transport)
            self._connector.all_closed.clear()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._own is not None:
            self._connector.opened.discard(self._own)
        if not self._connector.opened:
            self._connector.all_closed.set()


class _Connector(aiohttp.BaseConnector):
    """aiohttp's pool over the connections of ClusterAccess: TLS, proxy-url and errors are the same everywhere."""

    def __init__(self, access: ClusterAccess) -> None:
        # no limit here: each watch holds a connection for as long as it lasts
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._access = access
        self.opened: set[asyncio.Transport] = set()
        self.all_closed = asyncio.Event()
        self.all_closed.set()

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        _, protocol = await self._access.connect(lambda: _Connection(self))
        return protocol

    def cut(self) -> None:
        """Cut every connection; what is under way on them ends in an error."""
        for transport in list(self.opened):
            transport.abort()

    async def aclose(self) -> None:
        """Close, and see to it that the sockets are closed too: aiohttp leaves TLS connections to say goodbye alone."""
        await self.close()
        self.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.all_closed.wait()


class HttpClient:
    """GETs of one API server. `answer_timeout_s` is the time until an answer's head, longer where the server is far."""

    def __init__(self, access: ClusterAccess, *, answer_timeout_s: float) -> None:
        self.renewals = 0  # how often a 401 made us renew the credentials
        self._access = access
        self._answer_timeout_s = answer_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._unsubscribe = access.suspicion.subscribe(self._distrust)
        self._background_renewal = asyncio.Lock()
        self._refused_in_background: str | None = None  # the Authorization that was last renewed for the background

    async def send(self, path: str, parameters: dict[str, str], *, background: bool = False) -> aiohttp.ClientResponse:
        """The head of an answer. A 401 renews the credentials and is tried again, once.

        With `background` nobody waits for it (a watch): one refused credential is renewed once for all of them, since
        a renewal may start a login.
        """
        response = await self._send_once(path, parameters, background=background)
        if response.status != 401:
            self._refused_in_background = None
            return response
        response.close()
        refused = response.request_info.headers.get("Authorization", "")
        if background:
            async with self._background_renewal:
                if refused != self._refused_in_background:
                    self._refused_in_background = refused
                    await self._renew(refused)
        else:
            await self._renew(refused)
        return await self._send_once(path, parameters, background=background)

    async def _renew(self, refused: str) -> None:
        await self._access.renew(refused)
        self.renewals += 1
        logger.info("The API server %s refused our credentials, and they were renewed", self._access.server)

    async def _send_once(self, path: str, parameters: dict[str, str], *, background: bool) -> aiohttp.ClientResponse:
        headers: CIMultiDict[str] = CIMultiDict(_JSON)
        headers.extend(await self._access.headers())
        # the context is part of aiohttp's pool key: after a new client certificate no old connection is used again
        context = await self._access.tls() or True
        url = URL(self._access.server + path, encoded=True)
        logger.debug("GET %s %s", url, parameters)
        clock = asyncio.get_running_loop().time
        reach, started = self._access.reach, clock()
        usual_s = self._answer_timeout_s
        # a watch is rather begun again: its connection may be what is dead
        timeout_s = max(usual_s, reach.patience_s) if background else reach.answer_timeout_s(usual_s)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http().get(
                    url, params=parameters, headers=headers, ssl=context, allow_redirects=False
                )
        except TimeoutError as error:
            reach.unanswered()
            raise self._timeout(timeout_s) from error
        except (aiohttp.ClientError, ssl.SSLError) as error:
            raise self._cut(error) from error
        except ValueError:  # of a header; not `from`, since the error may hold what it is about
            raise ClusterUnreachable(
                f"The API server {self._access.server} of context {self._access.context} cannot be asked: its address "
                "or our credentials have characters that no HTTP request can carry."
            ) from None
        reach.answered(clock() - started)
        return response

    async def read(self, response: aiohttp.ClientResponse) -> Answer:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S), response:
                body = bytearray()
                while chunk := await response.content.readany():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise self._endless()
                return Answer(response.status, bytes(body), retry_after_s(response.headers.get("Retry-After")))
        except TimeoutError as error:
            raise self._timeout(BODY_TIMEOUT_S) from error
        except (aiohttp.ClientError, ssl.SSLError) as error:
            raise self._cut(error) from error

    async def chunks(self, response: aiohttp.ClientResponse, *, silence_s: float) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Timeout where nothing comes for `silence_s`."""
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    chunk = await response.content.readany()
            except TimeoutError as error:
                raise self._timeout(silence_s) from error
            except (aiohttp.ClientError, ssl.SSLError) as error:
                raise self._cut(error) from error
            if not chunk:
                return
            yield chunk

    async def aclose(self) -> None:
        self._unsubscribe()
        session, self._session = self._session, None
        if session is not None:
            await self._connector.aclose()
            await session.close()

    def _distrust(self, reason: str) -> None:
        """Gets are tried again and watches resumed, on connections that are alive."""
        if self._session is not None:
            self._connector.cut()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._connector = _Connector(self._access)
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),  # each await has its own
                trust_env=False,
            )
        return self._session

    def _timeout(self, after_s: float) -> Timeout:
        return Timeout(
            f"The API server {self._access.server} of context {self._access.context} said nothing for {after_s:.3g} s.",
            command=self._access.kubectl("cluster-info"),
        )

    def _endless(self) -> NotKubernetesError:
        return NotKubernetesError(
            f"An answer of the API server {self._access.server} of context {self._access.context} has more than "
            f"{MAX_ANSWER_BYTES >> 20} MiB.",
            command=self._access.kubectl("cluster-info"),
        )

    def _cut(self, error: Exception) -> KubeTunnelError:
        if isinstance(error, aiohttp.ClientPayloadError):
            text = "its answer was not complete"
        else:
            text = str(error) or type(error).__name__
        why = self._access.why_refused()
        # TLS 1.3 tells of a refused client certificate only after the handshake (RFC 8446 4.4.2.4), if at all
        if why or ("ALERT" in text.upper() and "CERTIFICATE" in text.upper()):
            return Unauthenticated(
                f"The API server {self._access.server} broke off with the credentials of context "
                f"{self._access.context}{why} ({text}).",
                command=self._access.kubectl("auth", "whoami"),
            )
        return CutError(
            f"The API server {self._access.server} of context {self._access.context} broke off: {text}.",
            command=self._access.kubectl("cluster-info"),
        )
