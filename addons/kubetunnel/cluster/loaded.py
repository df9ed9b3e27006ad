"""A kubeconfig made ready for use: its fixed credential, its TLS context, and the state of the files it came from."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from kubetunnel.cluster.credentials import fixed_credential
from kubetunnel.cluster.exec_plugin import Credential
from kubetunnel.cluster.kubeconfig import Kubeconfig
from kubetunnel.cluster.tls import client_context
from kubetunnel.core.errors import KubeTunnelError, Unauthenticated

type Stamp = tuple[tuple[Path, tuple[int, int, int] | None], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `ready` makes of a kubeconfig. `credential` is what stands in the files; a plugin's comes on top."""

    config: Kubeconfig
    stamp: Stamp
    credential: Credential
    refusal: KubeTunnelError | None  # why there is no fixed credential, told when one is needed
    tls: ssl.SSLContext | None  # None for an http:// server


def ready(config: Kubeconfig) -> Loaded:
    """Read the token file, build the TLS context. Blocks (files); run it in a thread.

    Raises:
        KubeconfigError: certificate authority, client certificate or key cannot be used.
    """
    stamp = stamp_of(config.files)
    credential, refusal = Credential(), None
    try:
        credential = fixed_credential(config.user)
    except Unauthenticated as error:
        refusal = error
    if config.user.anonymous:
        who = (
            f"user {config.user.name!r} of context {config.context} has"
            if config.user.name
            else (f"context {config.context} names no user, and so has")
        )
        where = f" ({config.user.at})" if config.user.at else ""
        refusal = Unauthenticated(f"{who[0].upper()}{who[1:]} no credentials{where}.")
    return Loaded(config, stamp, credential, refusal, tls_context(config, credential))


def tls_context(config: Kubeconfig, credential: Credential) -> ssl.SSLContext | None:
    cluster = config.cluster
    if not cluster.server.startswith("https://"):
        return None
    return client_context(cluster.ca, insecure=cluster.insecure, certificate=credential.certificate, key=credential.key)


def stamp_of(files: tuple[Path, ...]) -> Stamp:
    return tuple((path, _signature(path)) for path in files)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
