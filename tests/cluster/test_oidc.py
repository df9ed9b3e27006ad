from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.oidc import expiry
from kubetunnel.core.errors import Unauthenticated
from tests.cluster.certificates import Authority
from tests.cluster.conftest import WriteKubeconfig, until


def jwt(expires: float | None) -> str:
    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part({} if expires is None else {'exp': expires})}.c2ln"


FRESH, EXPIRED = jwt(time.time() + 3600), jwt(time.time() - 3600)


def stored_tokens(path: str) -> tuple[str, str, int]:
    """Id token and refresh token in the kubeconfig, and the file's mode."""
    config = yaml.safe_load(Path(path).read_bytes())["users"][0]["user"]["auth-provider"]["config"]
    return config["id-token"], config["refresh-token"], Path(path).stat().st_mode & 0o777


class Issuer:
    def __init__(self) -> None:
        self.url = ""
        self.forms: list[dict[str, str]] = []
        self.answer: dict[str, str] | None = {"id_token": FRESH, "refresh_token": "refresh-2"}

    async def discover(self, request: web.Request) -> web.Response:
        return web.json_response({"token_endpoint": f"{self.url}/token"})

    async def token(self, request: web.Request) -> web.Response:
        self.forms.append({key: str(value) for key, value in (await request.post()).items()})
        return web.json_response(self.answer) if self.answer is not None else web.Response(status=400)


@pytest.fixture
async def issuer(authority: Authority) -> AsyncIterator[Issuer]:
    found = Issuer()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", found.discover)
    app.router.add_post("/token", found.token)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server_context("127.0.0.1")).start()
    found.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


class Lock:
    """The lock that client-go holds while it writes a kubeconfig."""

    def __init__(self, kubeconfig: str) -> None:
        self.file = Path(f"{kubeconfig}.lock")
        self.file.touch()

    @property
    def held(self) -> bool:
        return self.file.exists()

    def release(self) -> None:
        self.file.unlink()


def user(issuer: Issuer, authority: Authority, **config: str) -> dict:
    return {
        "auth-provider": {
            "name": "oidc",
            "config": {
                "idp-issuer-url": issuer.url,
                "client-id": "kubernetes",
                "client-secret": "cs",
                "refresh-token": "refresh-1",
                "idp-certificate-authority-data": base64.b64encode(authority.pem).decode(),
                **config,
            },
        }
    }


async def test_a_valid_token_is_used_as_it_is(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig(user=user(issuer, authority, **{"id-token": FRESH})))
    assert (await access.headers())["Authorization"] == f"Bearer {FRESH}"
    assert issuer.forms == []


async def test_an_expired_token_is_refreshed_and_written_back(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    path = kubeconfig(user=user(issuer, authority, **{"id-token": EXPIRED}))
    access = await load_access(kubeconfig=path)
    assert (await access.headers())["Authorization"] == f"Bearer {FRESH}"
    assert issuer.forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "refresh-1",
            "client_id": "kubernetes",
            "client_secret": "cs",
        }
    ]
    assert stored_tokens(path) == (FRESH, "refresh-2", 0o600)
    assert (await access.headers())["Authorization"] == f"Bearer {FRESH}"
    assert len(issuer.forms) == 1
    await access.aclose()


async def test_an_issuer_that_refuses_is_named(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    issuer.answer = None
    access = await load_access(kubeconfig=kubeconfig(user=user(issuer, authority, **{"id-token": EXPIRED})))
    with pytest.raises(Unauthenticated, match=f"{issuer.url} answered 400: log in again") as refused:
        await access.headers()
    assert "refresh-1" not in str(refused.value)
    path = kubeconfig(user=user(issuer, authority, **{"id-token": EXPIRED, "refresh-token": ""}))
    access = await load_access(kubeconfig=path)
    with pytest.raises(Unauthenticated, match="no refresh token: log in again"):
        await access.headers()


async def test_an_issuer_of_another_authority_is_not_trusted(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    """Without a CA of its own the issuer is verified against the system's authorities, not against nothing."""
    config = user(issuer, authority, **{"id-token": EXPIRED, "idp-certificate-authority-data": ""})
    access = await load_access(kubeconfig=kubeconfig(user=config))
    with pytest.raises(Unauthenticated, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
        await access.headers()
    assert issuer.forms == []


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "a.é.c", jwt(None), "a." + "A" * 5 + ".c", jwt(1e300)])
def test_what_is_no_jwt_has_no_expiry(token: str) -> None:
    assert expiry(token) is None


def test_expiry() -> None:
    assert expiry(jwt(1_700_000_000)) == datetime.fromtimestamp(1_700_000_000, tz=UTC)


async def test_the_tokens_are_written_under_kubectls_lock(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    path = kubeconfig(user=user(issuer, authority, **{"id-token": EXPIRED}))
    lock = Lock(path)
    access = await load_access(kubeconfig=path)
    assert (await access.headers())["Authorization"] == f"Bearer {FRESH}"
    assert stored_tokens(path)[:2] == (EXPIRED, "refresh-1"), "kubectl is about to write it"
    assert f"somebody holds the lock {lock.file}" in caplog.text
    assert lock.held
    await access.aclose()


async def test_kubectls_lock_is_waited_for_and_left_behind_by_nobody(
    issuer: Issuer, authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    path = kubeconfig(user=user(issuer, authority, **{"id-token": EXPIRED}))
    lock = Lock(path)
    access = await load_access(kubeconfig=path)
    asking = asyncio.create_task(access.headers())
    await until(lambda: bool(issuer.forms))
    lock.release()
    assert (await asking)["Authorization"] == f"Bearer {FRESH}"
    assert stored_tokens(path)[:2] == (FRESH, "refresh-2")
    assert not lock.held
    await access.aclose()
