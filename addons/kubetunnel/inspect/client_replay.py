"""Requests that mitmproxy sends again (mitmweb's Replay, `--client-replay`) reach the cluster, too.

mitmproxy's player is no client connection: its own handler dials the flow's host by TCP, and nobody knows a Service's
name there. Which handler it takes cannot be told to it, so ours takes the place of its class. What is no name of the
cluster's is replayed as ever.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mitmproxy import http
from mitmproxy.addons import clientplayback
from mitmproxy.options import Options
from mitmproxy.proxy import server
from mitmproxy.proxy.layers.http import HTTPMode

from kubetunnel.proxy.http.layer import KubeHttpLayer
from kubetunnel.proxy.http.policy import ExchangePolicy, HttpPolicy
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

_Player = clientplayback.ReplayHandler


class ClientReplay:
    """An addon: while it is there, replays go through it."""

    name = "kubetunnel_client_replay"

    def __init__(self, router: Router, upstreams: Upstreams) -> None:
        self._router = router
        self._upstreams = upstreams
        self._handler: Any = partial(_handler, router, upstreams)

    def load(self, loader: Any) -> None:
        clientplayback.ReplayHandler = self._handler  # type: ignore[misc]

    def done(self) -> None:
        if clientplayback.ReplayHandler is self._handler:  # another one has come, when a script is reloaded
            clientplayback.ReplayHandler = _Player  # type: ignore[misc]


class PodReplayHandler(_Player):
    """Sends one request again, to a pod."""

    def __init__(self, router: Router, upstreams: Upstreams, flow: http.HTTPFlow, options: Options) -> None:
        super().__init__(flow, options)
        flow.request.stream = False  # its body is here, however it came
        stock = self.layer
        context = stock.context
        context.layers.remove(stock)
        context.client.proxy_mode = flow.client_conn.proxy_mode  # copied as a recording has it, `regular`
        settings = router.settings
        exchange = ExchangePolicy(
            response_header_timeout_s=settings.http.response_header_timeout_s,
            grpc_timeout_s=settings.grpc.timeout_s,
            retry_max=settings.retry.max,
        )
        policy = HttpPolicy(exchange, idle_timeout_s=settings.pool.idle_timeout_s)
        self.layer = KubeHttpLayer(
            context,
            HTTPMode.transparent,
            upstreams,
            lambda: policy,
            lanes=upstreams.lanes,
        )
        self.layer.connections[context.client] = stock.connections[context.client]
        self.transports[context.client] = server.ConnectionIO()
        upstreams.attach(self)  # type: ignore[arg-type]  # has all that it needs of a handler
        del self.transports[context.client]  # the player waits for the ends of all that are in it


def _handler(router: Router, upstreams: Upstreams, flow: http.HTTPFlow, options: Options) -> Any:
    is_ours = isinstance(flow.client_conn.proxy_mode, KubeMode) or router.owns(flow.request.host)
    return PodReplayHandler(router, upstreams, flow, options) if is_ours else _Player(flow, options)
