"""Runs a credential plugin: the ExecCredential contract of client.authentication.k8s.io/v1 and v1beta1.

Source: the Kubernetes page "client-go credential plugins". Never through a shell, never with our standard input, and
bounded in time: a plugin that waits for a login in a browser must not hold a request for ever.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from kubetunnel.cluster.entry import Pem
from kubetunnel.cluster.kubeconfig import Cluster
from kubetunnel.cluster.user import ExecPlugin
from kubetunnel.core.errors import Unauthenticated

MAX_OUTPUT_BYTES = 1 << 20  # a token and a certificate with its chain are some 20 KiB
KILL_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Credential:
    """What authenticates us: an Authorization value, or a client certificate with its key, or both."""

    authorization: str = field(default="", repr=False)
    certificate: Pem | None = None
    key: Pem | None = None
    expires: datetime | None = None


class _Status(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: _Status | None = None


async def run_exec_plugin(plugin: ExecPlugin, cluster: Cluster, *, timeout_s: float) -> Credential:
    """Run the plugin once, for at most `timeout_s`.

    Raises:
        Unauthenticated: with the plugin's name, and the first line of its standard error where it failed.
    """
    if plugin.needs_terminal:
        raise Unauthenticated(f"The credential plugin {plugin.name} needs a terminal (interactiveMode: Always).")
    try:
        async with asyncio.timeout(timeout_s):
            code, output, complaint = await _run(plugin, cluster)
    except TimeoutError as error:
        raise Unauthenticated(f"The credential plugin {plugin.name} did not end within {timeout_s:g} s.") from error
    except FileNotFoundError as error:
        hint = f" {plugin.install_hint.splitlines()[0]}" if plugin.install_hint else ""
        raise Unauthenticated(
            f"The credential plugin {plugin.command} is not installed ({plugin.at}).{hint}"
        ) from error
    except OSError as error:
        raise Unauthenticated(f"The credential plugin {plugin.command} cannot be run: {error.strerror}.") from error
    if len(output) > MAX_OUTPUT_BYTES:
        raise Unauthenticated(
            f"The credential plugin {plugin.name} printed no ExecCredential: more than {MAX_OUTPUT_BYTES >> 20} MiB."
        )
    if code != 0:
        said = f": {complaint.rstrip('.')}" if complaint else ", and said nothing"
        raise Unauthenticated(f"The credential plugin {plugin.name} failed with exit code {code}{said}.")
    return _read_credential(plugin, output)


async def _run(plugin: ExecPlugin, cluster: Cluster) -> tuple[int, bytes, str]:
    """Exit code, standard output, and the first line of standard error."""
    process = await asyncio.create_subprocess_exec(
        plugin.command,
        *plugin.args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": json.dumps(_exec_info(plugin, cluster))},
        start_new_session=True,  # no controlling terminal to ask at; Ctrl-C is ours, not the plugin's
    )
    try:
        output, complaint = await asyncio.gather(_read(process, process.stdout), _read(process, process.stderr))
        code = await process.wait()
    finally:
        if process.returncode is None:
            await _end(process)
    line = next((line.strip() for line in complaint.decode(errors="replace").splitlines() if line.strip()), "")
    return code, output, line[:300]


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None) -> bytes:
    """To its end; a process that prints more than MAX_OUTPUT_BYTES is killed, and only that it did so is kept."""
    assert stream is not None  # noqa: S101 - a pipe was asked for
    kept = b""
    while piece := await stream.read(MAX_OUTPUT_BYTES):
        if len(kept) <= MAX_OUTPUT_BYTES:
            kept += piece
            if len(kept) > MAX_OUTPUT_BYTES:
                _kill(process)
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    _kill(process)
    with contextlib.suppress(TimeoutError):  # who left the session may keep the pipes open
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await (
                process.communicate()
            )  # before Python 3.13.1 `wait` ends only when the pipes have been read to their end


def _kill(process: asyncio.subprocess.Process) -> None:
    """The whole session: a wrapper script's child would keep the pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _exec_info(plugin: ExecPlugin, cluster: Cluster) -> Mapping[str, object]:
    spec: dict[str, object] = {"interactive": False}
    if plugin.provide_cluster_info:
        info: dict[str, object] = {"server": cluster.server}
        if cluster.tls_server_name:
            info["tls-server-name"] = cluster.tls_server_name
        if cluster.insecure:
            info["insecure-skip-tls-verify"] = True
        if cluster.ca:
            info["certificate-authority-data"] = base64.b64encode(cluster.ca.data).decode()
        if cluster.proxy_url:
            info["proxy-url"] = cluster.proxy_url
        if cluster.exec_config is not None:
            info["config"] = cluster.exec_config
        spec["cluster"] = info
    return {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}


def _read_credential(plugin: ExecPlugin, output: bytes) -> Credential:
    try:
        answer = msgspec.json.decode(output, type=_ExecCredential)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # the decoder's message names a path and a type, never a value; the output itself may hold a secret
        raise Unauthenticated(f"The credential plugin {plugin.name} printed no ExecCredential: {error}.") from error
    if answer.kind != "ExecCredential" or answer.api_version != plugin.api_version:
        raise Unauthenticated(
            f"The credential plugin {plugin.name} answered {answer.api_version[:80]} {answer.kind[:80]}, "
            f"and {plugin.api_version} ExecCredential was asked for ({plugin.at}.apiVersion)."
        )
    status = answer.status or _Status()
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise Unauthenticated(
            f"The credential plugin {plugin.name} gave a client certificate or a key without the other."
        )
    if not status.token and not status.client_certificate_data:
        raise Unauthenticated(f"The credential plugin {plugin.name} gave neither a token nor a client certificate.")
    if not status.token.strip().isprintable():
        raise Unauthenticated(f"The credential plugin {plugin.name} gave a token with a control character in it.")
    origin = f"the credential plugin {plugin.name}"
    expires = status.expiration_timestamp
    return Credential(
        authorization=f"Bearer {status.token.strip()}" if status.token else "",
        certificate=Pem(status.client_certificate_data.encode(), origin) if status.client_certificate_data else None,
        key=Pem(status.client_key_data.encode(), origin) if status.client_key_data else None,
        expires=expires.replace(tzinfo=UTC) if expires and expires.tzinfo is None else expires,
    )
