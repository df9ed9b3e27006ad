"""Which of the three port-forward protocols the API server (and what stands before it) lets through to a pod.

No pod is dialled: an upgraded connection is opened and given up, without a stream (v4.channel dials its port's node).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import PodObject
from kubetunnel.cluster.resource import PODS, Query
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import Forbidden, UpstreamProtocol
from kubetunnel.doctor.verdict import Verdict, fail, ok, skip, warn
from kubetunnel.forward.channel_upstream import ChannelUpstream
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.negotiation import CHANNEL, SPDY, TUNNEL, Meaning, judge
from kubetunnel.forward.spdy_upstream import SpdyUpstream
from kubetunnel.forward.upgrade import Offer, Refusal, UpgradeConnection, spdy_offer, websocket_offer
from kubetunnel.forward.upstream import Upstream
from kubetunnel.forward.websocket import WebSocketFrames

CHECK = "port-forward protocols"
OFFER_TIMEOUT_S = 4.0
_NO_PORT = 1  # of a pod that declares none; that it refuses does not matter

_NAMES = {TUNNEL: "SPDY in WebSocket", SPDY: "SPDY/3.1", CHANNEL: "WebSocket v4"}
_numbers = itertools.count(1)

type Answers = Mapping[str, Meaning | None]  # by protocol; None: it was taken


def judge_protocols(answers: Answers, pod: str) -> Verdict:
    """What the server said to each protocol."""
    taken = [_NAMES[protocol] for protocol, refused in answers.items() if refused is None]
    refused = [f"{_NAMES[protocol]}: {why.value}" for protocol, why in answers.items() if why is not None]
    said = f"{', '.join(taken)} taken" + (f"; {'; '.join(refused)}" if refused else "") + f" (pod {pod})"
    if answers.get(TUNNEL, Meaning.FORBIDDEN) is None or answers.get(SPDY, Meaning.FORBIDDEN) is None:
        return ok(CHECK, said)
    namespace = pod.partition("/")[0]
    if taken:
        # each stream costs a connection then
        return warn(
            CHECK, f"{said}: works, but slowly", "a proxy before the API server that lets SPDY or KEP-4006 pass"
        )
    meanings = set(answers.values())
    if Meaning.FORBIDDEN in meanings:
        command = f"kubectl -n {namespace} auth can-i create pods --subresource=portforward"
        return fail(CHECK, f"none is taken (pod {pod}): {'; '.join(refused)}", command)
    return fail(
        CHECK,
        f"none is taken (pod {pod}): {'; '.join(refused)}",
        f"kubectl -v=8 -n {namespace} port-forward pod/{pod.partition('/')[2]} :80",
    )


async def check_protocols(access: ClusterAccess) -> Verdict:
    """Offers each protocol for a running pod of the context's namespace.

    Raises:
        ClusterUnreachable, Unauthenticated, Timeout, UpstreamProtocol
    """
    pod = await _running_pod(access)
    if isinstance(pod, Verdict):
        return pod
    target = PodPort(access.namespace, pod.metadata.name, _declared_port(pod))
    async with asyncio.TaskGroup() as group:
        tasks = {way: group.create_task(_offer(access, target, way)) for way in (TUNNEL, SPDY, CHANNEL)}
    return judge_protocols({way: task.result() for way, task in tasks.items()}, f"{target.namespace}/{target.pod}")


async def _running_pod(access: ClusterAccess) -> PodObject | Verdict:
    api = ApiServer(access)
    try:
        listing = await api.list_objects(Query(PODS, PodObject, access.namespace))
    except Forbidden:
        return skip(CHECK, f"no pod to try it with: pods of namespace {access.namespace} may not be listed")
    finally:
        await api.aclose()
    for pod in listing.items if listing else ():
        if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
            return pod
    return skip(
        CHECK, f"no pod to try it with: none runs in namespace {access.namespace}", "kube-tunnel doctor -n NAMESPACE"
    )


def _declared_port(pod: PodObject) -> int:
    for container in pod.spec.containers or ():
        for port in container.ports or ():
            if port.protocol == "TCP":
                return port.container_port
    return _NO_PORT


async def _offer(access: ClusterAccess, target: PodPort, protocol: str) -> Meaning | None:
    namespace, pod = quote(target.namespace, safe=""), quote(target.pod, safe="")
    path = f"{access.path_prefix.rstrip('/')}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
    offer = spdy_offer(path) if protocol == SPDY else websocket_offer(path, target.port, (protocol,))
    credentials = [("Host", urlsplit(access.server).netloc), *(await access.headers()).items()]
    _, connection = await access.connect(UpgradeConnection)
    try:
        async with asyncio.timeout(OFFER_TIMEOUT_S):
            answer = await _answer(connection, offer, credentials, target)
    except TimeoutError:
        return Meaning.NODE_UNREACHABLE  # the API server answers by itself, and waits for the node's kubelet alone
    except UpstreamProtocol:
        return Meaning.UNKNOWN_PROTOCOL  # it took another one than was offered
    finally:
        connection.abort()
    return answer


async def _answer(
    connection: UpgradeConnection, offer: Offer, headers: list[tuple[str, str]], target: PodPort
) -> Meaning | None:
    answer = await connection.request(offer, headers, _maker(target))
    if isinstance(answer, Refusal):
        return judge(answer).meaning
    answer.abort("it was to be opened, not used")
    await answer.closed
    return None


def _maker(target: PodPort) -> Callable[[str], Upstream]:
    def make(protocol: str) -> Upstream:
        facts = UpstreamFacts(next(_numbers), target.namespace, target.pod, protocol, time.time())
        if protocol == TUNNEL:
            return SpdyUpstream(facts, _Nobody(), WebSocketFrames())
        if protocol == CHANNEL:
            return ChannelUpstream(facts, _Nobody(), WebSocketFrames(), target.port)
        if protocol.upper() == SPDY:
            return SpdyUpstream(facts, _Nobody())
        raise UpstreamProtocol(f"The API server answered a port-forward with the protocol {protocol!r}.")

    return make


class _Nobody:
    """The owner of an upstream that is given up at once."""

    def stream_ended(self, upstream: Upstream) -> None: ...
    def upstream_changed(self, upstream: Upstream) -> None: ...
    def upstream_silent(self, upstream: Upstream) -> None: ...
    def upstream_lost(self, upstream: Upstream, reason: str) -> None: ...
