"""Commands of mitmproxy and mitmweb: what is in use, and local forwards opened and closed while it runs.

Commands are synchronous: they tell what is known and begin what was asked for. Tables have a heading as their first
row; mitmproxy shows them as such, and mitmweb's API (`POST /commands/kube.services`) gives them as JSON.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from typing import Any

from mitmproxy import command, exceptions, types
from mitmproxy.utils import human

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.inspect import in_use
from kubetunnel.inspect.in_use import ServiceInUse
from kubetunnel.local_ports import LocalPort, LocalPorts
from kubetunnel.proxy.clusters import Clusters

logger = logging.getLogger(__name__)

type HealthOf = Callable[[str, str, str], str]

_SERVICES = ["service", "context", "ports", "ready", "streams", "pods"]
_FORWARDS = ["forward", "context", "state", "protocol", "streams", "sent", "received", "age", "last error"]
_HEALTH = ["what", "health", "detail"]


def _command[F: Callable[..., Any]](path: str) -> Callable[[F], F]:
    """mitmproxy's decorator, which has no types."""
    untyped: Any = command.command
    decorate: Callable[[F], F] = untyped(path)
    return decorate


class Commands:
    """An addon: `kube.…`.

    Args:
        health_of: a word on the health of a Service (its zone, Namespace and name); None: it is not measured.
    """

    name = "kubetunnel_commands"

    def __init__(self, clusters: Clusters, local_ports: LocalPorts, health_of: HealthOf | None = None) -> None:
        self._clusters = clusters
        self._local_ports = local_ports
        self._health_of = health_of

    @_command("kube.services")
    def services(self) -> types.Data:
        """The Services that were used lately: their ports, and the pods behind them."""
        return _table(_SERVICES, *map(_service_row, in_use.services(self._clusters)))

    @_command("kube.forwards")
    def forwards(self) -> types.Data:
        """The port-forwards to pods, and the local listeners, whoever asked for them."""
        rows = []
        for session, facts in in_use.forwards(self._clusters):
            rows.append(
                [
                    f"{facts.namespace}/{facts.pod}",
                    session.access.context,
                    facts.state,
                    facts.protocol,
                    str(facts.streams),
                    human.pretty_size(facts.bytes_sent),
                    human.pretty_size(facts.bytes_received),
                    _age(facts.since),
                    facts.last_error,
                ]
            )
        rows += [
            [each.entry, self._context(each), _state(each), "", "", "", "", "", each.failure]
            for each in self._local_ports.ports()
        ]
        return _table(_FORWARDS, *rows)

    @_command("kube.forward.open")
    def open(self, *words: str) -> str:
        """Opens a local listener as kubectl port-forward does: svc/api -n shop 5432; again, tells where it listens."""
        entry = _entry(words)
        known = [each for each in self._local_ports.ports() if each.entry == entry]
        if known and all(each.listener for each in known):
            return f"{entry}: {', '.join(map(_state, known))}"
        try:
            self._local_ports.ask(entry)
        except (ValueError, KubeTunnelError) as e:
            raise exceptions.CommandError(str(e).removeprefix("forwards: ")) from e
        if failures := dict.fromkeys(each.failure for each in known if each.failure):
            return f"{entry}: not open yet, and tried again now: {' '.join(failures)}"
        return f"{entry}: opening. The log and kube.forwards tell where it listens, or why it does not."

    @_command("kube.forward.close")
    def close(self, *words: str) -> str:
        """Closes a local listener (the words that opened it, or HOST:PORT), or the forward to a pod: NAMESPACE/POD."""
        wanted = _entry(words)
        local = [each for each in self._local_ports.ports() if wanted == each.entry or wanted in each.addresses]
        if local:
            asked = [each for each in local if each.asked_by == "user"]
            if not asked:
                raise exceptions.CommandError(f"The setting forwards has {local[0].entry!r}: take it out of there.")
            self._local_ports.withdraw(asked)
            return f"{asked[0].entry}: closed."
        for session, facts in in_use.forwards(self._clusters):
            if wanted == f"{facts.namespace}/{facts.pod}":
                logger.info("Forward to %s%s is closed by kube.forward.close.", wanted, session.access.of_context)
                session.forwards.drain(facts.namespace, facts.pod, "it was closed on request")
                return f"{wanted}: closed for new streams; {facts.streams} run to their end. The next request opens it."
        there = list(dict.fromkeys(each.entry for each in self._local_ports.ports()))
        there += [f"{facts.namespace}/{facts.pod}" for _, facts in in_use.forwards(self._clusters)]
        raise exceptions.CommandError(f"There is no forward {wanted!r}. There are: {', '.join(there) or 'none'}.")

    @_command("kube.health")
    def health(self) -> types.Data:
        """How the clusters, Services and forwards in use are."""
        rows = []
        for zone, session in self._clusters.sessions().items():
            access = session.access
            rows.append([f"cluster {zone}", "open", f"context {access.context}, {access.server}"])
        rows += [self._service_health(service) for service in in_use.services(self._clusters)]
        for session, facts in in_use.forwards(self._clusters):
            detail = facts.last_error or facts.reason
            what = f"forward {facts.namespace}/{facts.pod}{session.access.of_context}"
            rows.append([what, facts.state, detail])
        return _table(_HEALTH, *rows)

    def _context(self, port: LocalPort) -> str:
        session = self._clusters.sessions().get(port.zone or self._clusters.zones[0])
        return session.access.context if session is not None else ""

    def _service_health(self, used: ServiceInUse) -> list[str]:
        service = used.state.service
        if self._health_of is not None:
            word = self._health_of(used.zone, service.namespace, service.name)
        elif service.external_name:
            word = "not forwardable"
        else:
            word = "ready" if used.ready else "not ready"
        return [used.name, word, f"{used.ready} of {len(used.pods)} pods ready"]


def _service_row(used: ServiceInUse) -> list[str]:
    service, forwards = used.state.service, used.session.forwards
    streams = sum(forwards.open_streams(service.namespace, pod) for pod in used.pods)
    return [
        used.name,
        used.session.access.context,
        ", ".join(map(str, service.ports)),
        f"{used.ready}/{len(used.pods)}",
        str(streams),
        ", ".join(used.pods) or (f"CNAME {service.external_name}" if service.external_name else ""),
    ]


def _table(heading: list[str], *rows: list[str]) -> types.Data:
    return [heading, *rows]  # type: ignore[return-value]  # Data is a name for the annotation, no class to make


def _entry(words: tuple[str, ...]) -> str:
    """The words as one text, be they one argument or several."""
    if not words:
        raise exceptions.CommandError("Give a target and its ports: svc/api -n shop 5432")
    return " ".join(shlex.quote(word) for each in words for word in each.split())


def _state(port: LocalPort) -> str:
    if port.addresses:
        return f"listens on {', '.join(port.addresses)}"
    return "not open yet" if port.failure else "opening"


def _age(since: float) -> str:
    seconds = max(0, round(time.time() - since))
    return f"{seconds // 3600}h{seconds % 3600 // 60}m" if seconds >= 3600 else f"{seconds // 60}m{seconds % 60}s"
