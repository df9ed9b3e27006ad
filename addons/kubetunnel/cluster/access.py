"""How to reach one API server and as whom: connections, TLS and credentials of one kubeconfig context.

Everything that talks to the API server (`api.py`, and `forward/` for its upgraded connections) goes through here, so
that TLS, proxy-url, credentials and their errors are the same for all. No HTTP(S)_PROXY is ever taken from the
environment: one that points at this very tunnel would make a loop. Only the kubeconfig's proxy-url counts.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from multidict import CIMultiDict

from kubetunnel.cluster.connection import why_failed
from kubetunnel.cluster.connector import Connector
from kubetunnel.cluster.credentials import PATIENCE_S, IssuedCredentials
from kubetunnel.cluster.exec_plugin import Credential
from kubetunnel.cluster.kubeconfig import read_kubeconfig
from kubetunnel.cluster.loaded import Loaded, ready, stamp_of, tls_context
from kubetunnel.cluster.reach import FIRST_S
from kubetunnel.cluster.refused import why_refused
from kubetunnel.cluster.suspicion import Suspicion
from kubetunnel.core.errors import ClusterUnreachable, KubeconfigError, KubeTunnelError, Unauthenticated

logger = logging.getLogger(__name__)

FILES_INTERVAL_S = 1.0  # who waits for a plugin that hangs may be mending it


class ClusterAccess:
    """One kubeconfig context. Made by `load_access`; files that change later are read again at the next use.

    Attributes:
        suspicion: tells when connections that are open may be dead.
        reach: whether the API server answers, and how long that is to be waited for.
        is_one_of_several: there are other contexts, so log lines are to name theirs.
    """

    is_one_of_several = False

    def __init__(
        self,
        load: Callable[[str | None], Loaded],
        loaded: Loaded,
        *,
        kubeconfig: str | None = None,
        connect_timeout_s: float = FIRST_S,
        plugin_patience_s: float = PATIENCE_S,
    ) -> None:
        self._load = load
        self._kubeconfig = kubeconfig
        self.suspicion = Suspicion(lambda: self.of_context)
        self._connector = Connector(connect_timeout_s)
        self.reach = self._connector.reach
        self._plugin_patience_s = plugin_patience_s
        self._closing: list[IssuedCredentials] = []
        self._take(loaded)

    def _take(self, loaded: Loaded) -> None:
        self._loaded = loaded
        user = loaded.config.user
        self._issued: IssuedCredentials | None = None
        self._issued_tls: tuple[Credential, ssl.SSLContext | None] | None = None
        if self.secure and not user.token and not user.token_file and (user.exec_plugin or user.oidc):
            self._issued = IssuedCredentials(loaded.config)
            self._closing = [issued for issued in self._closing if issued.run is not None] + [self._issued]
            self._issued.begin()

    @property
    def context(self) -> str:
        return self._loaded.config.context

    @property
    def of_context(self) -> str:
        """For a log line, behind the name of something in this cluster: which cluster, where there are several."""
        return f" of context {self.context}" if self.is_one_of_several else ""

    @property
    def namespace(self) -> str:
        return self._loaded.config.namespace

    @property
    def user(self) -> str:
        """The name of the kubeconfig's entry, "" where it has none."""
        return self._loaded.config.user_name

    @property
    def server(self) -> str:
        """https://host:port[/path], no slash at the end."""
        return self._loaded.config.cluster.server

    @property
    def path_prefix(self) -> str:
        """The path of `server`, mostly ""; stands before every API path (Rancher and other front ends have one)."""
        return urlsplit(self.server).path

    @property
    def secure(self) -> bool:
        return self.server.startswith("https://")

    @property
    def obtaining(self) -> asyncio.Future[None] | None:
        """The run of a credential plugin, or the question to the issuer, that is on: requests wait for it."""
        return self._issued.run if self._issued is not None else None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that this was read from."""
        return self._loaded.config.files

    def kubectl(self, *arguments: str) -> str:
        """A kubectl command line for this context, for a person to paste."""
        command = ["kubectl"]
        if self._kubeconfig:
            command += ["--kubeconfig", self._kubeconfig]
        if not self._loaded.config.current:
            command += ["--context", self.context]
        return shlex.join([*command, *arguments])

    async def headers(self) -> CIMultiDict[str]:
        """Authorization and Impersonate-… of a request. Impersonate-Group may stand there several times.

        Raises:
            Unauthenticated: there are no credentials, or none can be had.
        """
        await self._refresh_files()
        headers: CIMultiDict[str] = CIMultiDict()
        credential = await self._credential()
        if credential.authorization:
            headers["Authorization"] = credential.authorization
        for name, value in self._loaded.config.user.impersonate:
            headers.add(name, value)
        return headers

    async def renew(self, refused: str) -> None:
        """After a 401: read the files again, run the plugin or ask the issuer again.

        Args:
            refused: the Authorization that was refused, "" where a client certificate was; what came in its place
                meanwhile, for another request, is not renewed once more.

        Raises:
            Unauthenticated: there is nothing newer than what was refused.
            KubeconfigError: the kubeconfig was broken meanwhile.
        """
        changed = self._outdated() and await self._reload()
        if self._issued is not None:
            if not changed:
                self._issued.distrust(refused)
            await self._obtain()
            return
        if self._loaded.refusal is not None:
            raise self._refusal(self._loaded.refusal)
        if not changed and self._loaded.credential.authorization == refused:
            raise Unauthenticated(
                f"The API server {self.server} refused the credentials of {self._user()}"
                f"{self.why_refused()} (context {self.context}).",
                command=self.kubectl("auth", "whoami"),
            )

    def why_refused(self) -> str:
        """What the dates in our credentials say about a refusal, e.g. ": its token expired on …", else ""."""
        issued = self._issued.last if self._issued is not None else None
        return why_refused(issued or self._loaded.credential)

    async def tls(self) -> ssl.SSLContext | None:
        """The TLS context in use, None for an http:// server. Another object after a client certificate changed.

        Raises:
            Unauthenticated, KubeconfigError
        """
        await self._refresh_files()
        if self._issued is None:
            return self._loaded.tls
        credential = await self._obtain()
        if self._issued is None or credential.certificate is None:
            return self._loaded.tls
        if self._issued_tls is None or self._issued_tls[0] != credential:
            context = await asyncio.to_thread(tls_context, self._loaded.config, credential)
            self._issued_tls = (credential, context)
        return self._issued_tls[1]

    async def connect[P: asyncio.BaseProtocol](
        self, protocol_factory: Callable[[], P], *, bulk: bool = False
    ) -> tuple[asyncio.Transport, P]:
        """Open a connection to the API server: TCP, through proxy-url where there is one, and TLS without HTTP/2.

        `bulk`: it is to carry port-forwards.

        Raises:
            ClusterUnreachable: nobody there, or nobody that its certificate authority vouches for.
            Unauthenticated: the client certificate comes from a plugin, and the plugin failed.
        """
        context = await self.tls()
        try:
            return await self._connector.open(self._loaded.config.cluster, context, protocol_factory, bulk=bulk)
        except (OSError, ValueError) as error:  # TimeoutError is one
            raise ClusterUnreachable(
                f"The API server {self.server} of context {self.context} cannot be reached: {why_failed(error)}.",
                command=self.kubectl("cluster-info"),
            ) from error

    async def aclose(self) -> None:
        """End credential plugins that are still running, and look-ups."""
        await self._connector.aclose()
        closing, self._closing = self._closing, []
        for issued in closing:
            await issued.aclose()

    async def _credential(self) -> Credential:
        if not self.secure:
            return Credential()  # client-go sends none in clear either; `kubectl proxy` needs none
        return await self._obtain()

    async def _obtain(self) -> Credential:
        """Waits for a plugin or an issuer where there is one; files that are mended meanwhile are taken up."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self._plugin_patience_s
        while self._issued is not None and not await self._issued.settled(min(FILES_INTERVAL_S, give_up_at - clock())):
            if clock() >= give_up_at:
                break
            await self._refresh_files()
        if self._issued is not None:
            return self._issued.take()
        if self._loaded.refusal is not None:
            raise self._refusal(self._loaded.refusal)
        return self._loaded.credential

    def _refusal(self, refusal: KubeTunnelError) -> KubeTunnelError:
        return type(refusal)(refusal.detail, command=self.kubectl("config", "view", "--minify"))

    def _user(self) -> str:
        return f"user {self._loaded.config.user.name!r}" if self._loaded.config.user.name else "nobody"

    def _outdated(self) -> bool:
        return stamp_of(self._loaded.config.files) != self._loaded.stamp

    async def _refresh_files(self) -> None:
        """Take up changed files. A kubeconfig that is being edited may be half-written: then what was good stays."""
        if not self._outdated():
            return
        try:
            await self._reload()
        except KubeconfigError as error:
            logger.warning("The changed kubeconfig is not taken up: %s", error)
            self._loaded = replace(self._loaded, stamp=stamp_of(self.files))

    async def _reload(self) -> bool:
        """Read the files again. True when something changed by it."""
        before = self._loaded
        # the same context by its name: somebody who switches kubectl's current-context in another window must not find
        # that the running tunnel went to another cluster
        loaded = await asyncio.to_thread(self._load, before.config.context)
        if self._loaded is not before:
            return True  # another request was faster
        if loaded.config == before.config and loaded.credential == before.credential:
            self._loaded = replace(before, stamp=loaded.stamp)
            return False
        self._take(loaded)
        logger.info("Context %s was read again: its files changed", self.context)
        return True


async def load_access(
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
    connect_timeout_s: float = FIRST_S,
    plugin_patience_s: float = PATIENCE_S,
) -> ClusterAccess:
    """Read the kubeconfig (kubectl's rules, in-cluster where there is none). Cheap; call it again after a failure.

    A credential plugin is started at once, so that the first request finds its token; `aclose` ends it.

    Args:
        connect_timeout_s: for the first connection; later ones have what is usual (`reach.py`).
        plugin_patience_s: how long a request waits for a credential plugin; its run goes on.

    Raises:
        KubeconfigError: what was looked for, or the file and key that is broken.
    """

    def load(name: str | None) -> Loaded:
        config = read_kubeconfig(kubeconfig=kubeconfig, context=name, namespace=namespace)
        return ready(config)

    return ClusterAccess(
        load,
        await asyncio.to_thread(load, context),
        kubeconfig=kubeconfig,
        connect_timeout_s=connect_timeout_s,
        plugin_patience_s=plugin_patience_s,
    )
