"""Checks the pods of the Services in use, through the forward, and remembers how they are.

Each Service has one check under way at most; its pods come one after the other. All are spread over the interval.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from weakref import WeakKeyDictionary

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.endpoints import Target
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, KubeTunnelError, Unauthenticated
from kubetunnel.core.health import Check, Health, HealthRecord, Outcome
from kubetunnel.core.names import ServiceName
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.spoken import Http
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.probes import Probed, probe
from kubetunnel.observe.sources import HealthPolicy
from kubetunnel.observe.traffic import ServiceKey, ServiceTraffic, Traffic
from kubetunnel.proxy.routing import Destination, Router

logger = logging.getLogger(__name__)

MAX_CHECKING = 16  # Services at a time
FIRST_DELAY_S = 1.0  # from the first use
_JITTER = 0.1

# what says nothing of a pod: they may all be well while the API server is away
_OF_THE_CLUSTER = (ClusterUnreachable, Forbidden, Unauthenticated)

type PodKey = tuple[str, PodPort]  # zone, port


class HealthChecks:
    """The health of pods.

    Args:
        policy: the settings as they are now.
        check_of: how a Service's port is checked.
        clock: seconds, monotonic, the same as of `traffic`.
    """

    def __init__(
        self,
        router: Router,
        traffic: Traffic,
        events: EventLog,
        policy: Callable[[], HealthPolicy],
        check_of: Callable[[ServiceKey, int], Check],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._router = router
        self._traffic = traffic
        self._events = events
        self._policy = policy
        self._check_of = check_of
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads checks, keeps no secret
        self._records: dict[ServiceKey, dict[PodKey, HealthRecord]] = {}
        self._of_pod: dict[PodKey, HealthRecord] = {}
        self._zones: WeakKeyDictionary[PodStreams, str] = WeakKeyDictionary()
        self._due_s: dict[ServiceKey, float] = {}
        self._checking: dict[ServiceKey, asyncio.Task[None]] = {}
        self.totals: dict[ServiceKey, tuple[int, int]] = {}

    def is_unhealthy(self, forwards: PodStreams, pod_port: PodPort) -> bool:
        """Whether new streams had better go to another pod of the cluster of these port-forwards."""
        record = self._of_pod.get((self._zones.get(forwards, ""), pod_port))
        return record is not None and record.state == "unhealthy" and not self._policy().skip

    def records(self, key: ServiceKey) -> dict[PodPort, HealthRecord]:
        """What is known of a Service's pods, by the ports that were checked."""
        return {pod_port: record for (_, pod_port), record in self._records.get(key, {}).items()}

    def of_pods(self, key: ServiceKey) -> dict[str, list[Health]]:
        """The health of the ports of a Service's pods, by the pods' names."""
        states: dict[str, list[Health]] = {}
        for (_, pod_port), record in self._records.get(key, {}).items():
            states.setdefault(pod_port.pod, []).append(record.state)
        return states

    def failing(self, key: ServiceKey) -> dict[str, str]:
        """What is wrong with a Service's unhealthy pods, by their names: of the port whose checks fail the longest."""
        found = [(p, r) for (_, p), r in self._records.get(key, {}).items() if r.state == "unhealthy"]
        found.sort(key=lambda each: -(each[1].since_s or 0.0))
        return {pod_port.pod: f"port {pod_port.port}: {record.detail}" for pod_port, record in found}

    def unhealthy_counts(self) -> Counter[ServiceKey]:
        """How many pods of each Service have a port that is unhealthy."""
        counts: Counter[ServiceKey] = Counter()
        for key in self._records:
            counts[key] = sum("unhealthy" in ports for ports in self.of_pods(key).values())
        return counts

    def look(self) -> None:
        """Begins the checks that are due, and forgets Services that nobody uses. To be called about once a second."""
        policy, now_s = self._policy(), self._clock()
        in_use = {
            service.key: service
            for service in self._traffic
            if service.ports and service.key.is_of_one and service.is_used(now_s, policy.idle_timeout_s)
        }
        if not policy.enabled:
            in_use = {}
        for key in self._due_s.keys() - in_use.keys():
            self._forget(key)
        for key in in_use:
            self._due_s.setdefault(key, now_s + FIRST_DELAY_S)
        for key, due_s in sorted(self._due_s.items(), key=itemgetter(1)):  # who has waited longest comes first
            if now_s < due_s or len(self._checking) >= MAX_CHECKING:
                break
            if key not in self._checking:
                spread = 1 + self._rng.uniform(-_JITTER, _JITTER)
                self._due_s[key] = now_s + policy.interval_s * spread
                self._begin(in_use[key])

    def hurry(self) -> None:
        """All checks are due."""
        self._due_s = dict.fromkeys(self._due_s, self._clock())

    async def aclose(self) -> None:
        """Ends the checks under way."""
        tasks = list(self._checking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, service: ServiceTraffic) -> None:
        key = service.key
        task = asyncio.get_running_loop().create_task(self._check_service(service), name=f"health of {key.service}")
        if not task.done():
            self._checking[key] = task
            task.add_done_callback(lambda _: self._checking.pop(key, None))

    def _forget(self, key: ServiceKey) -> None:
        self._due_s.pop(key, None)
        for pod_key in self._records.pop(key, {}):
            self._forget_pod(pod_key)

    def _forget_pod(self, pod_key: PodKey) -> None:
        """One Service has it no more; what another has found of it holds on."""
        others = (records[pod_key] for records in self._records.values() if pod_key in records)
        if (record := next(others, None)) is not None:
            self._of_pod[pod_key] = record
        else:
            self._of_pod.pop(pod_key, None)

    async def _check_service(self, service: ServiceTraffic) -> None:
        """One round. Supervision point: a defect costs one round of one Service."""
        key, checked = service.key, set()
        try:
            for port in sorted(service.ports):
                check = self._check_of(key, port)
                if check.kind == "none":
                    continue
                try:
                    checked |= await self._check_port(key, port, check)
                except _OF_THE_CLUSTER as e:
                    logger.debug("The pods of %s/%s cannot be checked: %s", key.namespace, key.service, e)
                    return  # nothing new is known of the pods
                except KubeTunnelError as e:
                    logger.debug("%s/%s has no pods to check: %s", key.namespace, key.service, e)
        except Exception:
            logger.exception("Checking the health of %s/%s failed.", key.namespace, key.service)
            return
        records = self._records.get(key, {})
        for pod_key in records.keys() - checked:
            del records[pod_key]
            self._forget_pod(pod_key)

    async def _check_port(self, key: ServiceKey, port: int, check: Check) -> set[PodKey]:
        name = ServiceName(key.service, key.namespace, key.zone)
        destination = await self._router.find(name, PortRequest(port, explicit=True, scheme=""))
        self._zones[destination.session.forwards] = key.zone
        checked = set()
        for target in destination.targets:
            pod_key = (key.zone, target.pod_port)
            checked.add(pod_key)
            outcome = await self._check_pod(destination, target, check)
            self._record(key, pod_key, outcome, destination.session.access)
        return checked

    async def _check_pod(self, destination: Destination, target: Target, check: Check) -> Outcome:
        timeout_s = self._policy().timeout_s
        http2 = Http.HTTP2 in (
            destination.spoken.http,
            self._router.negotiable_http_version(destination, client_http2=False),
        )
        probed = Probed(check, str(destination.name), tls=destination.spoken.tls, http2=http2)
        try:
            reader, writer = await destination.session.forwards.open_connection(target.pod_port, shared=True)
        except _OF_THE_CLUSTER:
            raise
        except KubeTunnelError as e:
            return Outcome(False, e.detail)
        try:
            return await probe(reader, writer, probed, timeout_s)
        finally:
            writer.close()

    def _record(self, key: ServiceKey, pod_key: PodKey, outcome: Outcome, access: ClusterAccess) -> None:
        if key not in self._due_s:
            return  # not in use any more
        records = self._records.setdefault(key, {})
        before = records.get(pod_key, HealthRecord())
        record = before.after(outcome, self._clock(), self._policy().max_failures)
        records[pod_key] = self._of_pod[pod_key] = record
        ok, failed = self.totals.get(key, (0, 0))
        self.totals[key] = (ok + outcome.ok, failed + (not outcome.ok))
        if record.state != before.state and (record.state == "unhealthy" or before.state == "unhealthy"):
            pod_port = pod_key[1]
            level = logging.WARNING if record.state == "unhealthy" else logging.INFO
            logger.log(level, "%s%s is %s: %s", pod_port, access.of_context, record.state, outcome.detail)
            self._events.add(
                "error" if record.state == "unhealthy" else "info",
                f"Port {pod_port.port} of {pod_port.pod} is {record.state}: {outcome.detail}",
                service=key,
                pod=pod_port.pod,
                command=access.kubectl("-n", pod_port.namespace, "describe", "pod", pod_port.pod),
            )
