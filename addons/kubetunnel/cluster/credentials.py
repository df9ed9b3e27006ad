"""What authenticates us right now: fixed credentials, or those that a plugin or an OIDC issuer gives out for a while.

One run serves all that wait for it, as long as it takes, within its limit (kubectl waits without one). Who will not
wait so long is refused; the run goes on, and later requests profit from it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kubetunnel.cluster import oidc
from kubetunnel.cluster.exec_plugin import Credential, run_exec_plugin
from kubetunnel.cluster.kubeconfig import Kubeconfig
from kubetunnel.cluster.user import User
from kubetunnel.core.errors import KubeTunnelError, Unauthenticated

logger = logging.getLogger(__name__)

RUN_TIMEOUT_S = 60.0  # a token from a cloud's own tool takes 0.5 to 5 s; the rest is for a person who confirms
PATIENCE_S = RUN_TIMEOUT_S + 5.0  # of a request: the run's own end comes first, and says what was wrong with it
TELL_AFTER_S = 1.0  # somebody wonders by then why his request takes so long
EXPIRY_SKEW = timedelta(seconds=1)  # clocks differ, and the request has still to travel; a 401 catches the rest
FAILURE_MEMORY_S = 1.0  # a burst of requests must not start a failing plugin once each


def fixed_credential(user: User) -> Credential:
    """The credential of a user that nothing has to be run for. Reads the token file: run it in a thread.

    Raises:
        Unauthenticated: the token file cannot be read or is empty.
    """
    authorization = ""
    if user.token_file:  # before `token`, as the kubeconfig API says
        authorization = f"Bearer {_read_token(user.token_file)}"
    elif user.token:
        authorization = f"Bearer {user.token}"
    elif user.basic:
        authorization = "Basic " + base64.b64encode(":".join(user.basic).encode()).decode()
    return Credential(authorization=authorization, certificate=user.certificate, key=user.key)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unauthenticated(f"The token file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Unauthenticated(f"The token file {path} is no text.") from error
    if not token:
        raise Unauthenticated(f"The token file {path} is empty.")
    if not token.isprintable():
        raise Unauthenticated(f"The token file {path} has a control character in its token.")
    return token


class IssuedCredentials:
    """The credentials of a user with an exec plugin or an OIDC issuer; runs it when they are missing or expired."""

    def __init__(self, config: Kubeconfig) -> None:
        self._config = config
        self._provider = config.user.oidc
        self._run: asyncio.Task[None] | None = None
        self._credential = self._first()
        self._failure: KubeTunnelError | None = None
        self._failed_at = float("-inf")
        self._failure_told = False

    def _first(self) -> Credential | None:
        if self._provider is None or not self._provider.id_token:
            return None
        return self._with_certificate(_bearer(self._provider.id_token))

    def _with_certificate(self, issued: Credential) -> Credential:
        user = self._config.user
        return Credential(
            authorization=issued.authorization,
            certificate=issued.certificate or user.certificate,
            key=issued.key or user.key,
            expires=issued.expires,
        )

    def begin(self) -> None:
        """Start a run, if one is needed and none is on, so that the first request finds it done."""
        if self._run is None and not self._valid():
            run = asyncio.create_task(self._obtain(), name="kube-tunnel credentials")
            # an eager task may be over by now, and has reset `_run` before it was set
            self._run = None if run.done() else run

    async def settled(self, timeout_s: float) -> bool:
        """Whether `take` has an answer, after at most so long; runs what has to be run."""
        if self._valid() or (self._run is None and self._is_failure_to_tell()):
            return True
        self.begin()
        if self._run is not None:
            await asyncio.wait({self._run}, timeout=timeout_s)
        return self._run is None

    def take(self) -> Credential:
        """The credential. One that has expired when it comes is given to those who waited for it, as client-go does:
        clocks may differ, and the API server's decides.

        Raises:
            Unauthenticated: the run failed, or is still on.
        """
        just_issued = self._run is None and self._failure is None
        if self._credential and (self._valid() or just_issued):
            return self._credential
        if self._failure is not None and self._is_failure_to_tell():
            self._failure_told = True
            # a fresh one each time: a raised exception keeps its raiser's frames
            raise type(self._failure)(self._failure.detail, command=self._failure.command) from self._failure
        raise Unauthenticated(f"{self._what()} is still at work: ask again in a moment.")

    def distrust(self, refused: str) -> None:
        """The API server refused this Authorization, whatever the credential says about itself."""
        if self._credential is not None and self._credential.authorization == refused:
            self._credential = None

    @property
    def last(self) -> Credential | None:
        """What was last obtained, expired or not."""
        return self._credential

    @property
    def run(self) -> asyncio.Task[None] | None:
        """The run that is on."""
        return self._run

    async def aclose(self) -> None:
        """End a run that is on."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.wait({self._run})

    def _valid(self) -> bool:
        if self._credential is None:
            return False
        expires = self._credential.expires
        return expires is None or datetime.now(tz=UTC) + EXPIRY_SKEW < expires

    def _is_failure_to_tell(self) -> bool:
        """A failure is told for a moment, and in any case once: to whoever comes next when the waiters had gone."""
        recent = asyncio.get_running_loop().time() - self._failed_at < FAILURE_MEMORY_S
        return self._failure is not None and (recent or not self._failure_told)

    def _what(self) -> str:
        plugin = self._config.user.exec_plugin
        return f"The credential plugin {plugin.name}" if plugin else "The OIDC issuer"

    async def _obtain(self) -> None:
        """One run. Leaves its credential or its failure behind."""
        clock = asyncio.get_running_loop().time
        started = clock()
        telling = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._tell_of_run)
        try:
            self._credential = self._with_certificate(await self._issue())
            self._failure = None
            if clock() - started >= TELL_AFTER_S:
                logger.info("%s gave credentials after %.1f s", self._what(), clock() - started)
            logger.debug("%s gave credentials that expire %s", self._what(), self._credential.expires or "never")
        except KubeTunnelError as error:
            self._failure, self._failed_at, self._failure_told = error, clock(), False
            logger.warning("No credentials for context %s: %s", self._config.context, error)
        except Exception:  # supervision point: a fault of ours must not leave the waiters with "still at work" for ever
            logger.exception("%s of context %s failed unexpectedly", self._what(), self._config.context)
            unexpected = Unauthenticated(f"{self._what()} failed in the tunnel itself; see its log.")
            self._failure, self._failed_at, self._failure_told = unexpected, clock(), False
        finally:
            telling.cancel()
            self._run = None

    def _tell_of_run(self) -> None:
        logger.info(
            "%s of context %s is at work; requests wait for it, for at most %g s",
            self._what(),
            self._config.context,
            RUN_TIMEOUT_S,
        )

    async def _issue(self) -> Credential:
        if plugin := self._config.user.exec_plugin:
            return await run_exec_plugin(plugin, self._config.cluster, timeout_s=RUN_TIMEOUT_S)
        assert self._provider is not None  # noqa: S101 - one of the two is why this object exists
        self._provider = await oidc.refresh(self._provider, timeout_s=RUN_TIMEOUT_S)
        return _bearer(self._provider.id_token)


def _bearer(token: str) -> Credential:
    return Credential(authorization=f"Bearer {token}", expires=oidc.expiry(token))
