"""All the checks, side by side, each with an end to its time. What one finds, or that it breaks, hides no other."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kubetunnel.cluster.access import ClusterAccess, load_access
from kubetunnel.cluster.kubeconfig import Kubeconfig, read_kubeconfig
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.settings import Settings
from kubetunnel.doctor.api_request import ask
from kubetunnel.doctor.cluster import (
    Choice,
    judge_api_server,
    judge_api_server_error,
    judge_clock,
    judge_identity,
    judge_kubeconfig,
    judge_kubeconfig_error,
    username,
)
from kubetunnel.doctor.dns_path import check_dns_path, check_tunnel_name
from kubetunnel.doctor.network import check_network, set_up
from kubetunnel.doctor.ports import (
    check_dns_port,
    check_tunnel_port,
    find_tunnel,
    free_default_port,
    judge_redirection,
    listens_at,
)
from kubetunnel.doctor.protocols import CHECK as PROTOCOLS
from kubetunnel.doctor.protocols import check_protocols
from kubetunnel.doctor.rights import REVIEWS, RIGHTS, SLICES_API, Asked, Right, judge_rights
from kubetunnel.doctor.surroundings import installed, judge_proxies, judge_versions
from kubetunnel.doctor.trust import check_trust
from kubetunnel.doctor.verdict import Level, Verdict, fail
from kubetunnel.redirection import Redirection, dns_port
from netsetup.state import State

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 8.0  # of a group of checks; each of their waits is shorter
CONNECT_TIMEOUT_S = 5.0  # enough for a slow link, and a person is waiting
PLUGIN_PATIENCE_S = 6.0  # a login may need a moment, and nobody's request waits here
CONCURRENT_REVIEWS = 4
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be examined: this machine, for a tunnel with these settings."""

    choice: Choice = field(default_factory=Choice)
    settings: Settings = field(default_factory=Settings)
    confdir: Path = Path("~/.mitmproxy")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def zones(self) -> tuple[str, ...]:
        return (self.settings.cluster.zone, *(other.zone for other in self.settings.zones))


async def examine(subject: Subject) -> list[Verdict]:
    """Every verdict, in the order in which a person would mend."""
    machine = set_up()
    groups = {
        "versions": _versions(),
        "kubeconfig": _cluster(subject.choice),
        "ports": asyncio.to_thread(_ports, subject, machine),
        "DNS path": asyncio.to_thread(_dns_paths, subject, machine),
        "interfaces": asyncio.to_thread(check_network, subject.settings.network),
        "CA": asyncio.to_thread(check_trust, subject.confdir, datetime.now(UTC), subject.environ),
        "proxy variables": _proxies(subject, machine),
    }
    found = await asyncio.gather(*(supervised(name, check) for name, check in groups.items()))
    return [verdict for verdicts in found for verdict in verdicts]


async def supervised(
    name: str, check: Coroutine[None, None, list[Verdict]], *, timeout_s: float = 2 * CHECK_TIMEOUT_S
) -> list[Verdict]:
    """Supervision point: a check that breaks is a line of its own, and never the end of the others."""
    try:
        async with asyncio.timeout(timeout_s):
            return await check
    except TimeoutError:
        return [fail(name, f"not done after {timeout_s:g} s", "kube-tunnel doctor --json")]
    except ExceptionGroup as e:
        return [_broken(name, e.exceptions[0])]  # the first is the cause, as a rule, and one is enough to mend
    except Exception as e:  # noqa: BLE001 - as said above
        return [_broken(name, e)]


def _broken(name: str, error: Exception) -> Verdict:
    if isinstance(error, KubeTunnelError):
        return fail(name, error.detail, error.command or "kubectl cluster-info")
    logger.debug("The check %s broke", name, exc_info=error)
    return fail(name, f"the check itself broke: {type(error).__name__}: {error}", "kube-tunnel --version    (tell us)")


async def _versions() -> list[Verdict]:
    return [judge_versions(sys.version_info[:3], installed("mitmproxy"))]


async def _proxies(subject: Subject, machine: State | None) -> list[Verdict]:
    port = await asyncio.to_thread(_port, subject, machine)
    return [judge_proxies(subject.environ, subject.zones[0], port)]


def _port(subject: Subject, machine: State | None) -> int:
    """The tunnel's, as it would choose it; or that of one that runs, where the settings say none."""
    redirected = machine.proxy_port if machine is not None and machine.redirected else None
    asked = subject.settings.proxy.port or redirected
    return asked or find_tunnel(None, None) or free_default_port()


def _ports(subject: Subject, machine: State | None) -> list[Verdict]:
    dns = subject.settings.dns
    listens = (dns.ip, dns_port(subject.settings, machine)) if dns.enabled else None
    verdicts = [check_tunnel_port(_port(subject, machine))]
    verdicts += [check_dns_port(*listens, subject.zones[0])] if listens and listens[1] else []
    if machine is not None:
        redirection = Redirection.of(machine, ports=not subject.settings.network.loopback)
        found = find_tunnel(subject.settings.proxy.port, redirection.proxy_port)
        verdicts.append(judge_redirection(redirection, listens_at(redirection.host, found) if found else None, listens))
    return verdicts


def _dns_paths(subject: Subject, machine: State | None) -> list[Verdict]:
    server = subject.settings.dns.ip, dns_port(subject.settings, machine)
    verdicts = [check_dns_path(zone, server, machine) for zone in subject.zones]
    is_well = all(verdict.level is Level.OK for verdict in verdicts)
    return [*verdicts, check_tunnel_name()] if is_well else verdicts


async def _cluster(choice: Choice) -> list[Verdict]:
    try:
        config = await asyncio.to_thread(_read, choice)
        access = await load_access(
            kubeconfig=choice.kubeconfig,
            context=choice.context,
            namespace=choice.namespace,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            plugin_patience_s=PLUGIN_PATIENCE_S,
        )
    except KubeTunnelError as e:
        return [judge_kubeconfig_error(e)]
    try:
        verdicts = judge_kubeconfig(config, _modes(config))
        return verdicts + await _api_server(access, config)
    finally:
        await access.aclose()


def _read(choice: Choice) -> Kubeconfig:
    return read_kubeconfig(kubeconfig=choice.kubeconfig, context=choice.context, namespace=choice.namespace)


def _modes(config: Kubeconfig) -> dict[Path, int]:
    """Of those files that are there."""
    return {path: stat.S_IMODE(path.stat().st_mode) for path in config.files if path.is_file()}


async def _api_server(access: ClusterAccess, config: Kubeconfig) -> list[Verdict]:
    try:
        version = await ask(access, "/version")
    except KubeTunnelError as e:
        return [judge_api_server_error(e)]
    verdicts = [judge_api_server(access.server, version), judge_clock(version)]
    parts: dict[str, Callable[[], Coroutine[None, None, list[Verdict]]]] = {
        "rights": lambda: _rights(access, config),
        PROTOCOLS: lambda: _protocols(access),
    }
    found = await asyncio.gather(*(supervised(name, part(), timeout_s=CHECK_TIMEOUT_S) for name, part in parts.items()))
    return [*verdicts, *(verdict for part in found for verdict in part)]


async def _protocols(access: ClusterAccess) -> list[Verdict]:
    return [await check_protocols(access)]


async def _rights(access: ClusterAccess, config: Kubeconfig) -> list[Verdict]:
    whoami = await ask(access, WHOAMI, post={"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    first = await ask(access, REVIEWS, post=RIGHTS[0].review(access.namespace))
    identity = judge_identity(config.user.name or "nobody", whoami, first)
    if first.status != 201:
        return [identity]
    slots = asyncio.Semaphore(CONCURRENT_REVIEWS)
    granted: dict[Right, bool] = {}

    async def review(right: Right) -> None:
        async with slots:
            answer = await ask(access, REVIEWS, post=right.review(access.namespace))
        if answer.status == 201:
            granted[right] = bool((answer.json().get("status") or {}).get("allowed"))

    async with asyncio.TaskGroup() as group:
        for right in RIGHTS:
            group.create_task(review(right))
        slices = group.create_task(ask(access, SLICES_API))
    user = username(whoami) or config.user.name
    return [identity, *judge_rights(Asked(access.namespace, granted, slices.result().status != 404, user))]
