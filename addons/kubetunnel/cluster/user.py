"""Who a kubeconfig says we are: the fields of its `user`, read and checked, nothing run yet.

Source: the kubeconfig v1 API (AuthInfo, ExecConfig); the Kubernetes page "User impersonation".
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from kubetunnel.cluster.entry import Entry, Pem

_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A credential plugin to run (ExecConfig). `at` is its place in the kubeconfig."""

    command: str
    args: tuple[str, ...] = field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    api_version: str = "client.authentication.k8s.io/v1"
    install_hint: str = ""
    provide_cluster_info: bool = False
    needs_terminal: bool = False
    at: str = ""

    @property
    def name(self) -> str:
        return os.path.basename(self.command)  # noqa: PTH119 - a command, not a path of ours


@dataclass(frozen=True, slots=True)
class OidcProvider:
    """The `oidc` auth-provider: an id token, and what is needed to get the next one."""

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    id_token: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    ca: Pem | None = None
    file: Path = Path()
    user: str = ""  # the entry's name: the new tokens are written back to `file` under it, as kubectl does


@dataclass(frozen=True, slots=True)
class User:
    """The fields of a kubeconfig's `user`."""

    name: str = ""
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    basic: tuple[str, str] | None = field(default=None, repr=False)
    certificate: Pem | None = None
    key: Pem | None = None
    exec_plugin: ExecPlugin | None = None
    oidc: OidcProvider | None = None
    impersonate: tuple[tuple[str, str], ...] = ()  # headers
    at: str = ""

    @property
    def anonymous(self) -> bool:
        return not (self.token or self.token_file or self.basic or self.certificate or self.exec_plugin or self.oidc)


def read_user(name: str, entry: Entry | None) -> User:
    """Read a `user` entry; None (a context without a user) gives an anonymous one.

    Raises:
        KubeconfigError: naming file and key.
    """
    if entry is None:
        return User()
    certificate, key = entry.pem("client-certificate"), entry.pem("client-key")
    if (certificate is None) != (key is None):
        missing = "client-certificate" if certificate is None else "client-key"
        raise entry.wrong(missing, "is missing: a client certificate needs both certificate and key")
    username = entry.text("username")
    return User(
        name=name,
        token=entry.header("token"),
        token_file=entry.path("tokenFile"),
        basic=(username, entry.text("password")) if username else None,
        certificate=certificate,
        key=key,
        exec_plugin=_read_exec(entry.entry("exec")) if entry.value.get("exec") is not None else None,
        oidc=_read_auth_provider(name, entry) if entry.value.get("auth-provider") is not None else None,
        impersonate=_read_impersonation(entry),
        at=f"{entry.file}: {entry.key}",
    )


def _read_exec(entry: Entry) -> ExecPlugin:
    command = entry.text("command")
    if not command:
        raise entry.wrong("command", "is missing")
    if os.sep in command:
        command = str(entry.file.parent / command)  # client-go: a command with a slash counts from the kubeconfig
    api_version = entry.text("apiVersion")
    if api_version not in _EXEC_VERSIONS:
        raise entry.wrong("apiVersion", f"is {api_version!r}, and must be {' or '.join(_EXEC_VERSIONS)}")
    mode = entry.text("interactiveMode")
    if mode not in ("", "Never", "IfAvailable", "Always"):
        raise entry.wrong("interactiveMode", f"is {mode!r}, and must be Never, IfAvailable or Always")
    return ExecPlugin(
        command=command,
        args=entry.texts("args"),
        env=tuple(_read_variable(item) for item in entry.entries("env")),
        api_version=api_version,
        install_hint=entry.text("installHint").strip(),
        provide_cluster_info=entry.flag("provideClusterInfo"),
        needs_terminal=mode == "Always",
        at=f"{entry.file}: {entry.key}",
    )


def _read_variable(entry: Entry) -> tuple[str, str]:
    name = entry.text("name")
    if not name or "=" in name:
        raise entry.wrong("name", f"is {name!r}, which is no environment variable's name")
    return name, entry.text("value")


def _read_auth_provider(name: str, entry: Entry) -> OidcProvider:
    provider = entry.entry("auth-provider")
    kind = provider.text("name")
    if kind != "oidc":
        raise provider.wrong("name", f"is {kind!r}: kubectl 1.26 dropped all but oidc; use the vendor's exec plugin")
    config = provider.entry("config")
    for key in ("idp-issuer-url", "client-id"):
        if not config.text(key):
            raise config.wrong(key, "is missing")
    return OidcProvider(
        issuer=config.text("idp-issuer-url").rstrip("/"),
        client_id=config.text("client-id"),
        client_secret=config.text("client-secret"),
        id_token=config.header("id-token"),
        refresh_token=config.text("refresh-token").strip(),
        ca=config.pem("idp-certificate-authority"),
        file=entry.file,
        user=name,
    )


def _read_impersonation(entry: Entry) -> tuple[tuple[str, str], ...]:
    headers = [("Impersonate-User", entry.header("as"))] if entry.header("as") else []
    headers += [("Impersonate-Group", group) for group in entry.texts("as-groups")]
    if uid := entry.header("as-uid"):
        headers.append(("Impersonate-Uid", uid))
    extra = entry.entry("as-user-extra")
    for key in extra.value:
        # the key travels in a header's name: what may not stand there is percent-encoded (user impersonation page)
        headers += [(f"Impersonate-Extra-{quote(key, safe='')}", value) for value in extra.texts(key)]
    if headers and not entry.header("as"):
        raise entry.wrong("as", "is missing: groups, uid and extra can be impersonated only with a user")
    if not all(value.isprintable() for _, value in headers):
        raise entry.wrong("as-groups or as-user-extra", "has a control character in it, which no HTTP header can carry")
    return tuple(headers)
