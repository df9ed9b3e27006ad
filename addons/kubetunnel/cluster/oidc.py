"""Gets the next id token of the `oidc` auth-provider, and writes it back to the kubeconfig as kubectl does.

Sources: OpenID Connect Discovery 1.0 section 4, RFC 6749 section 6 (refreshing), RFC 7519 section 4.1.4 (`exp`).
The provider may hand out a new refresh token and void the old one, so not to write it back would log the user's
kubectl out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import yaml

from kubetunnel.cluster.tls import client_context
from kubetunnel.cluster.user import OidcProvider
from kubetunnel.core.errors import Unauthenticated

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 1.0  # kubectl holds it for milliseconds; a request may be waiting for our token
LOCK_POLL_S = 0.02


class _Discovery(msgspec.Struct):
    token_endpoint: str


class _Tokens(msgspec.Struct):
    id_token: str = ""
    refresh_token: str = ""


class _Claims(msgspec.Struct):
    exp: float | None = None


def expiry(token: str) -> datetime | None:
    """When a JSON Web Token ends; None where it does not say, or is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claims)
        return datetime.fromtimestamp(claims.exp, tz=UTC) if claims.exp is not None else None
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, OverflowError, OSError, ValueError):
        return None


async def refresh(provider: OidcProvider, *, timeout_s: float) -> OidcProvider:
    """Exchange the refresh token for a new id token, within `timeout_s`.

    Raises:
        Unauthenticated: naming the issuer and what it answered.
    """
    import aiohttp  # late: few have an issuer, and it takes a tenth of a second

    if not provider.refresh_token:
        raise Unauthenticated(
            f"The id token of {provider.issuer} has expired, and there is no refresh token: log in again."
        )
    context = await asyncio.to_thread(client_context, provider.ca, insecure=False, certificate=None, key=None)
    try:
        async with (
            asyncio.timeout(timeout_s),
            # trust_env stays False: an HTTPS_PROXY that points at this very tunnel would make a loop
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context), cookie_jar=aiohttp.DummyCookieJar(), raise_for_status=True
            ) as session,
        ):
            tokens = await _exchange(session, provider)
    except TimeoutError as error:
        raise Unauthenticated(f"The OIDC issuer {provider.issuer} did not answer within {timeout_s:g} s.") from error
    except aiohttp.ClientResponseError as error:
        raise Unauthenticated(f"The OIDC issuer {provider.issuer} answered {error.status}: log in again.") from error
    except aiohttp.ClientError as error:
        raise Unauthenticated(f"The OIDC issuer {provider.issuer} cannot be reached: {error}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unauthenticated(f"The OIDC issuer {provider.issuer} answered what is no OpenID: {error}.") from error
    if not tokens.id_token:
        raise Unauthenticated(f"The OIDC issuer {provider.issuer} gave no new id token: log in again.")
    renewed = dataclasses.replace(
        provider, id_token=tokens.id_token, refresh_token=tokens.refresh_token or provider.refresh_token
    )
    await asyncio.to_thread(_write_back, renewed)
    return renewed


async def _exchange(session: aiohttp.ClientSession, provider: OidcProvider) -> _Tokens:
    async with session.get(f"{provider.issuer}/.well-known/openid-configuration") as response:
        discovery = msgspec.json.decode(await response.read(), type=_Discovery)
    form = {"grant_type": "refresh_token", "refresh_token": provider.refresh_token, "client_id": provider.client_id}
    if provider.client_secret:
        form["client_secret"] = provider.client_secret
    async with session.post(discovery.token_endpoint, data=form) as response:
        return msgspec.json.decode(await response.read(), type=_Tokens)


def _write_back(provider: OidcProvider) -> None:
    """Put the new tokens into the kubeconfig. Where that cannot be done it is told, and they are used all the same."""
    try:
        with _locked(provider.file):
            content = yaml.safe_load(provider.file.read_text(encoding="utf-8"))
            for item in content["users"]:
                if item["name"] == provider.user:
                    config = item["user"]["auth-provider"]["config"]
                    config["id-token"], config["refresh-token"] = provider.id_token, provider.refresh_token
            _replace(provider.file, yaml.safe_dump(content, default_flow_style=False))
    except FileExistsError as error:
        logger.warning("The new OIDC tokens were not written: somebody holds the lock %s", error.filename)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        logger.warning("The new OIDC tokens could not be written to %s: %s", provider.file, type(error).__name__)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the file's lock as client-go's clientcmd takes it. Raises FileExistsError where another keeps it."""
    lock = file.with_name(f"{file.name}.lock")
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL, 0))
            break
        except FileExistsError:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        lock.unlink()


def _replace(file: Path, text: str) -> None:
    """Replace the file's content whole or not at all: another kubectl may read it at any moment."""
    target = file.resolve()  # ~/.kube/config is often a symbolic link
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".kubeconfig-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as copy:
            copy.write(text)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
