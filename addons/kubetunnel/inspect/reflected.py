"""The descriptors of gRPC calls that went through: the user's files first, then what the pods told.

A pod is asked in the background, by a stream of its own, once for each gRPC service and version of its pods, and only
while somebody looks at flows. No call waits for it, but one that is about to be cut for its silence.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitmproxy import http

from kubetunnel.core.errors import KubeTunnelError, Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.inspect.grpc_descriptors import DescriptorPool, DescriptorsError, GrpcMethod, read_descriptors
from kubetunnel.inspect.grpc_messages import has_protobuf_messages
from kubetunnel.inspect.grpc_reflection import NoReflectionError, fetch_file_descriptors
from kubetunnel.inspect.pod_details import PodLookups
from kubetunnel.proxy.http.events import OverdueCall
from kubetunnel.proxy.upstreams import Opened, Upstreams

logger = logging.getLogger(__name__)

CONCURRENT_QUESTIONS = 2
MAX_WAITING = 16  # questions that wait for their turn; more are asked at a later call
MEMORY_ENTRIES = 256
MEMORY_VERSIONS = 3  # of one Service: before, during and after a rollout
RETRY_S = 60.0  # after a failure that may be over by then
REFUSAL_MEMORY_S = 600.0
OPEN_TIMEOUT_S = 10.0
OVERDUE_PATIENCE_S = 2.0  # of a call that is about to be cut

type Key = tuple[str, str, int, str]  # context, Service, port, gRPC service


@dataclass(frozen=True, slots=True)
class _Told:
    """What pods of one version told, or why they did not."""

    pool: DescriptorPool | None
    why: str
    until: float


class Descriptors:
    """An addon, and what the content view asks.

    Args:
        is_watched: whether anybody looks at flows.
        reflection: whether pods are asked.
    """

    name = "kubetunnel_descriptors"

    def __init__(
        self, upstreams: Upstreams, pods: PodLookups, is_watched: Callable[[], bool], *, reflection: bool = True
    ) -> None:
        self.reflection = reflection
        self._upstreams = upstreams
        self._pods = pods
        self._is_watched = is_watched
        self._files: tuple[DescriptorPool, ...] = ()
        self._told: OrderedDict[Key, dict[str, _Told]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_QUESTIONS)

    def read(self, paths: Sequence[str]) -> list[str]:
        """Takes these FileDescriptorSets in the place of the former ones. Returns what is wrong with them."""
        pools, mistakes = [], []
        for path in paths:
            try:
                pools.append(read_descriptors(Path(path).expanduser()))
            except DescriptorsError as e:
                mistakes.append(str(e))
        self._files = tuple(pools)
        return mistakes

    def method(self, flow: http.HTTPFlow) -> GrpcMethod | None:
        """The types of a call's messages, as far as they are known by now."""
        for pool in (*self._files, *(told.pool for told in self._told_for(flow) if told.pool)):
            try:
                if found := pool.method(flow.request.path.partition("?")[0]):
                    return found
            except DescriptorsError as e:
                logger.debug("%s: %s", flow.request.path, e)
        return None

    def why_unknown(self, flow: http.HTTPFlow) -> str:
        """A sentence for people, where `method` finds nothing."""
        key, service = _key(flow), _grpc_service(flow)
        for told in self._told_for(flow):
            if told.why:
                return f"The descriptors of {service} are not known. {told.why} They can be given: grpc.descriptors."
            return f"{service} has no method {flow.request.path}."
        if key in self._asking:
            return f"The descriptors of {service} are being asked for."
        asked = "" if self.reflection else " Pods are not asked for them: grpc.reflection is off."
        return f"The descriptors of {service} are not known.{asked} They can be given: grpc.descriptors."

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if not (
            flow.live
            and self.reflection
            and has_protobuf_messages(flow.request.headers.get("content-type", ""))
            and self._is_watched()
        ):
            return
        self._begin(flow)

    async def kube_call_overdue(self, call: OverdueCall) -> None:
        """The hook of `KubeCallOverdueHook`: the pod is asked for the method, whether somebody looks or not."""
        method = self.method(call.flow)
        if method is None and self.reflection and (task := self._begin(call.flow)):
            await asyncio.wait([task], timeout=OVERDUE_PATIENCE_S)
            method = self.method(call.flow)
        call.is_stream = method is not None and method.server_streams
        if call.is_stream:
            logger.debug("%s is a stream, which may be silent for as long as it likes.", call.flow.request.path)

    def _begin(self, flow: http.HTTPFlow) -> asyncio.Task[None] | None:
        """Asks the pod of this flow, in the background. None where that makes no sense now."""
        opened = self._upstreams.opened(flow.server_conn) if flow.server_conn else None
        key = _key(flow)
        if opened is None or key in self._asking or len(self._asking) >= MAX_WAITING:
            return self._asking.get(key)
        known, version = self._told.get(key, {}), _version(flow)
        told = known.get(version) if version else next(iter(known.values()), None)
        if told is not None and told.until > time.monotonic():
            return None
        task = asyncio.get_running_loop().create_task(self._ask(key, opened), name=f"descriptors of {key[3]}")
        self._asking[key] = task
        task.add_done_callback(lambda done: self._asked(key, done))
        return task

    async def aclose(self) -> None:
        """Ends the questions."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: Key, opened: Opened) -> None:
        service, port, grpc_service = key[1:]
        async with self._slots:
            details = await self._pods.details(opened.destination.session, opened.target.pod_port)
            pool: DescriptorPool | None = None
            why, memory_s = "", float("inf")
            try:
                pool = DescriptorPool(await _fetch(opened, grpc_service))
            except (KubeTunnelError, DescriptorsError) as e:
                settled = isinstance(e, NoReflectionError | DescriptorsError)
                why, memory_s = str(e), REFUSAL_MEMORY_S if settled else RETRY_S
        if why:
            logger.info(
                "gRPC bodies of %s are shown without names of fields. %s:%d: %s", grpc_service, service, port, why
            )
        else:
            logger.info(
                "gRPC bodies of %s are shown with names: %s:%d told its descriptors.", grpc_service, service, port
            )
        self._remember(key, details.version, _Told(pool, why, time.monotonic() + memory_s))

    def _remember(self, key: Key, version: str, told: _Told) -> None:
        versions = self._told.setdefault(key, {})
        versions[version] = told
        if len(versions) > MEMORY_VERSIONS:
            del versions[next(iter(versions))]
        self._told.move_to_end(key)
        if len(self._told) > MEMORY_ENTRIES:
            self._told.popitem(last=False)

    def _told_for(self, flow: http.HTTPFlow) -> list[_Told]:
        """What the pods of this flow's version told, then the others, the latest first."""
        versions = self._told.get(_key(flow), {})
        own = versions.get(_version(flow) or "")
        return [*([own] if own else []), *(told for told in reversed(versions.values()) if told is not own)]

    def _asked(self, key: Key, task: asyncio.Task[None]) -> None:
        """Supervision point: nobody waits for the task."""
        self._asking.pop(key, None)
        if not task.cancelled() and (error := task.exception()):
            logger.error("Asking for the descriptors of %s failed.", key[3], exc_info=error)


async def _fetch(opened: Opened, grpc_service: str) -> list[bytes]:
    destination, target = opened.destination, opened.target
    name, tls = str(destination.name), destination.spoken.tls
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            reader, writer = await destination.session.forwards.open_connection(target.pod_port)
            try:
                if tls:
                    await writer.start_tls(_tls_context(opened), server_hostname=name)
                return await fetch_file_descriptors(
                    reader, writer, grpc_service,
                    scheme="https" if tls else "http", authority=f"{name}:{destination.port}",
                )  # fmt: skip
            finally:
                writer.close()
    except TimeoutError as e:
        raise Timeout("The pod could not be asked for its descriptors in time.") from e
    except ssl.SSLError as e:
        raise UpstreamProtocol(f"TLS with the pod failed: {e}.") from e
    except OSError as e:
        raise UpstreamReset(f"The connection to the pod was cut: {e}.") from e


def _tls_context(opened: Opened) -> ssl.SSLContext:
    """As `PodTls`: verified only where the user gave a CA file."""
    settings = opened.destination.settings
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.client_certificate:
            context.load_cert_chain(settings.client_certificate)
    except OSError as e:
        raise UpstreamProtocol(f"The certificates of the settings cannot be used: {e}.") from e
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not settings.ca_file:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _version(flow: http.HTTPFlow) -> str | None:
    """Of the pods; None where it is not known (yet)."""
    version = (flow.metadata.get("kube") or {}).get("version")
    return str(version) if version else None


def _grpc_service(flow: http.HTTPFlow) -> str:
    return flow.request.path.removeprefix("/").partition("/")[0]


def _key(flow: http.HTTPFlow) -> Key:
    kube: dict[str, Any] = flow.metadata.get("kube") or {}
    service = str(kube.get("service", flow.request.host))
    return str(kube.get("context", "")), service, int(kube.get("port", flow.request.port)), _grpc_service(flow)
