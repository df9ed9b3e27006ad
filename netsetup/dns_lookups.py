"""The cluster asked on behalf of questions: not longer than a resolver waits, and not again for what was just said.

RFC 2308 5 and 7 (negative answers are kept, failures only shortly), RFC 9520 (failures are kept a second at least).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from kubetunnel.core.catalog import ServiceState
from kubetunnel.core.errors import (
    ClusterUnreachable,
    KubeTunnelError,
    NamespaceNotFound,
    ServiceNotFound,
    Timeout,
    Unauthenticated,
)
from kubetunnel.core.names import PodAddressName, ServiceName
from netsetup.answers import Addressed, Names
from netsetup.dns_records import Address
from netsetup.shared_calls import SharedCalls

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
FAILURE_MEMORY_S = 1.0
CALL_TIMEOUT_S = 30.0  # a lookup goes on after its callers' patience has ended: who asks again profits
MAX_REMEMBERED = 4096
_OF_THE_WHOLE_CLUSTER = (ClusterUnreachable, Timeout, Unauthenticated)


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such thing, and until then it is not looked for again."""

    error: KubeTunnelError
    until_s: float

    @property
    def is_namespace(self) -> bool:
        """Whether it is the whole Namespace that does not exist."""
        return isinstance(self.error, NamespaceNotFound)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: KubeTunnelError
    until_s: float


type _Found = ServiceState | Address


class Lookups:
    """What there is in the cluster.

    Args:
        patience_s: how long the cluster may take.
        negative_ttl_s: how long it is remembered that something does not exist.
    """

    def __init__(self, names: Names, *, patience_s: float = PATIENCE_S, negative_ttl_s: float = 5.0) -> None:
        self._names = names
        self._patience_s = patience_s
        self._negative_ttl_s = negative_ttl_s
        self._calls: SharedCalls[ServiceName | PodAddressName, _Found] = SharedCalls()
        self._remembered: dict[ServiceName | PodAddressName, Missing | _Failure] = {}
        self._failing: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()

    async def service(self, name: ServiceName) -> ServiceState | Missing:
        """The Service, or that there is none.

        Raises:
            KubeTunnelError: that cannot be found out now.
        """
        found = await self._look_up(name)
        if isinstance(found, ServiceState | Missing):
            return found
        raise TypeError(f"{name} is no Service")

    async def pod_address(self, name: PodAddressName) -> Address | Missing:
        """The virtual IP of a Pod that exists. Raises as `service`."""
        found = await self._look_up(name)
        if isinstance(found, ServiceState):
            raise TypeError(f"{name} is no Pod")
        return found

    async def addresses(self, names: tuple[Addressed, ...], state: ServiceState) -> dict[Addressed, Address]:
        """The virtual IPs of a Service, or of those of its endpoints that get one. Raises as `service`."""
        try:
            async with asyncio.timeout(self._patience_s):
                # at once: they are then kept at once, too
                asked = (self._names.address_of(name, state) for name in names)
                answers = await asyncio.gather(*asked, return_exceptions=True)
        except TimeoutError as error:
            raise Timeout(f"No virtual IP for {names[0]} within {self._patience_s:g} s.") from error
        found: dict[Addressed, Address] = {}
        failed: list[KubeTunnelError] = []
        for name, answer in zip(names, answers, strict=True):
            if not isinstance(answer, BaseException):
                found[name] = answer
                continue
            if not isinstance(answer, KubeTunnelError):
                raise answer
            failed.append(answer)
        if failed:
            self._tell(names[0], failed[0], "is answered in part" if found else "is answered with SERVFAIL")
            if not found:
                raise failed[0]
        return found

    async def aclose(self) -> None:
        """Give up all that is under way."""
        await self._calls.aclose()

    async def _look_up(self, name: ServiceName | PodAddressName) -> _Found | Missing:
        remembered = self._remembered.get(name)
        if remembered is None or self._now() >= remembered.until_s:
            try:
                async with asyncio.timeout(self._patience_s):
                    found = await self._calls.run(name, lambda: self._ask(name))
            except (ServiceNotFound, NamespaceNotFound) as error:
                remembered = Missing(error, self._now() + self._negative_ttl_s)
            except TimeoutError:
                late = Timeout(f"The cluster has not answered after {self._patience_s:g} s; it is still being asked.")
                remembered = _Failure(late, self._now() + FAILURE_MEMORY_S)
            except KubeTunnelError as error:
                remembered = _Failure(error, self._now() + FAILURE_MEMORY_S)
            else:
                self._remembered.pop(name, None)
                self._recovered(name.zone)
                return found
            self._remember(name, remembered)
            if isinstance(remembered, _Failure):
                self._tell(name, remembered.error)
            else:
                self._recovered(name.zone)
        if isinstance(remembered, _Failure):
            raise remembered.error.with_traceback(None)  # raised again and again: it would grow
        return remembered

    async def _ask(self, name: ServiceName | PodAddressName) -> _Found:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            if isinstance(name, ServiceName):
                return await self._names.service(name)
            await self._names.pod(name)
            return await self._names.address_of(name, None)

    def _remember(self, name: ServiceName | PodAddressName, what: Missing | _Failure) -> None:
        self._remembered.pop(name, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[name] = what

    def _tell(self, name: Addressed, error: KubeTunnelError, how: str = "is answered with SERVFAIL") -> None:
        """One line when a cluster begins to fail, and one for each Namespace and other reason there is."""
        if isinstance(error, _OF_THE_WHOLE_CLUSTER):
            if self._failing.get(name.zone) != error.reason:
                self._failing[name.zone] = error.reason
                logger.warning("DNS: names in %s are answered with SERVFAIL: %s", name.zone, error)
            return
        told = (f"{name.namespace}.{name.zone}", error.reason)
        if told not in self._told and len(self._told) < MAX_REMEMBERED:
            self._told.add(told)
            logger.warning("DNS: %s %s: %s", name, how, error)

    def _recovered(self, zone: str) -> None:
        if self._failing.pop(zone, None):
            logger.info("DNS: names in %s are answered again", zone)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
