"""Users and their credentials: bearer tokens, client certificates, and the kubeconfigs that carry them.

A user's credentials can expire and be renewed at any time; the files that an exec plugin or a `tokenFile` reads are
rewritten on renewal (client-go credential plugins, client.authentication.k8s.io/v1).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kubetunnel.sim.certs import CertificateAuthority, KeyPair
from kubetunnel.sim.rbac import NOBODY, User
from kubetunnel.sim.status import unauthorized

type Json = dict[str, Any]
type Auth = Literal["token", "certificate", "exec", "token-file", "none"]

EXEC_API = "client.authentication.k8s.io/v1"
# counts its runs, so that a test can tell how often a client asked
_PLUGIN = '#!/bin/sh\necho run >> "$1.runs"\nexec cat "$1"\n'


@dataclass(frozen=True, slots=True)
class _Files:
    """What a client outside of this process gets its credentials from."""

    plugin: Path
    credential: Path  # an ExecCredential
    token: Path


@dataclass(slots=True)
class _Account:
    user: User
    token: str = ""
    certificate: KeyPair | None = None
    serials: set[int] = field(default_factory=set)  # of certificates that are still accepted
    files: _Files | None = None


class Credentials:
    """Who is who. What exec plugin and token file read lives in a private directory until `close`."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority
        self._accounts: dict[str, _Account] = {}
        self._directory: tempfile.TemporaryDirectory[str] | None = None  # made when first asked for

    def close(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def add(self, user: User) -> None:
        """A new user with credentials, or new rules for one that is there."""
        if user.name in self._accounts:
            self._accounts[user.name].user = user
        else:
            self._accounts[user.name] = _Account(user)
            self.renew(user.name)

    def user(self, name: str) -> User:
        """The user of that name, without rules where nobody has added it (impersonation)."""
        account = self._accounts.get(name)
        return account.user if account else User(name)

    def token(self, name: str) -> str:
        """The user's present bearer token."""
        return self._accounts[name].token

    def expire(self, name: str) -> None:
        """Accept none of the credentials given out so far; the credential files keep the old token."""
        account = self._accounts[name]
        account.token = ""
        account.certificate = None
        account.serials.clear()

    def renew(self, name: str) -> None:
        """A new token, which exec plugin and token file give out from now on; the old one is refused."""
        account = self._accounts[name]
        account.token = f"{name}.{secrets.token_urlsafe(24)}"
        if account.files:
            self._write_files(account)

    def plugin_runs(self, name: str) -> int:
        """How often the user's exec plugin has run."""
        if (files := self._accounts[name].files) is None:
            return 0
        log = Path(f"{files.credential}.runs")
        return len(log.read_text().splitlines()) if log.exists() else 0

    def authenticate(self, authorization: str, certificate: Json | None) -> User:
        """Authorization header and verified client certificate (as ssl.getpeercert gives it) → user.

        Raises StatusError 401 for credentials that are not, or no longer, known.
        Without credentials it is the anonymous user, as on a server with anonymous authentication on.
        """
        if certificate:
            names = {key: value for part in certificate["subject"] for key, value in part}
            account = self._accounts.get(names.get("commonName", ""))
            if account is None or int(certificate["serialNumber"], 16) not in account.serials:
                raise unauthorized()
            return account.user
        if not authorization:
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            for account in self._accounts.values():
                if account.token and secrets.compare_digest(account.token.encode(), token.strip().encode()):
                    return account.user
        raise unauthorized()

    def kubeconfig(self, server: str, name: str, *, auth: Auth, context: str, namespace: str) -> Json:
        """A kubeconfig (v1 Config) for the user."""
        authority = _base64(self._authority.certificate_pem)
        cluster = {"server": server, "certificate-authority-data": authority}
        access = {"cluster": context, "user": name, "namespace": namespace}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{"name": context, "cluster": cluster}],
            "contexts": [{"name": context, "context": access}],
            "users": [{"name": name, "user": self._auth_info(name, auth)}],
        }

    def _auth_info(self, name: str, auth: Auth) -> Json:
        account = self._accounts[name]
        if auth == "token":
            return {"token": account.token}
        if auth == "token-file":
            return {"tokenFile": str(self._files(account).token)}
        if auth == "exec":
            files = self._files(account)
            plugin = {"apiVersion": EXEC_API, "command": str(files.plugin), "args": [str(files.credential)]}
            return {"exec": plugin | {"interactiveMode": "Never", "provideClusterInfo": False}}
        if auth == "certificate":
            if account.certificate is None:
                account.certificate = self._authority.client(name, account.user.groups)
                account.serials.add(account.certificate.serial)
            certificate, key = account.certificate.certificate_pem, account.certificate.key_pem
            return {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        return {}

    def _files(self, account: _Account) -> _Files:
        if account.files is None:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="kube-tunnel-sim-")  # mode 0700
            directory, name = Path(self._directory.name), account.user.name
            plugin = directory / "credential-plugin"
            plugin.write_text(_PLUGIN)
            plugin.chmod(0o700)
            account.files = _Files(plugin, directory / f"{name}.credential.json", directory / f"{name}.token")
            self._write_files(account)
        return account.files

    def _write_files(self, account: _Account) -> None:
        files = self._files(account)
        credential = {"apiVersion": EXEC_API, "kind": "ExecCredential", "status": {"token": account.token}}
        write_private(files.credential, json.dumps(credential))
        write_private(files.token, account.token)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
