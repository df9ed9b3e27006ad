"""A mitmdump addon for the tests of SOCKS5 and raw TCP, with no cluster: names stand for listeners on loopback.

`RAW_NAMES` in the environment is JSON: name -> port, or -> the reason of the contract that it is refused for. What
becomes of TCP flows is logged as JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

from mitmproxy import ctx, tcp
from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import layer, layers, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from kubetunnel.core import errors
from kubetunnel.core.errors import KubeTunnelError, UpstreamReset
from kubetunnel.core.first_bytes import Protocol
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from kubetunnel.proxy.raw.layer import RawLayer
from kubetunnel.proxy.raw.relays import Relays
from kubetunnel.proxy.socks5 import Socks5Layer

logger = logging.getLogger(__name__)

NAMES: dict[str, int | str] = json.loads(os.environ["RAW_NAMES"])


class LoopbackNames:
    """Dials the listeners, and knows why not (`Failures`)."""

    def __init__(self) -> None:
        self.readers: dict[str, asyncio.StreamReader] = {}

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        assert data.server.address is not None
        port = NAMES.get(data.server.address[0], "NotAServiceName")
        if isinstance(port, int):
            data.server.address = ("127.0.0.1", port)
        else:
            data.server.error = port

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        self.readers[data.server.id] = _handler(data.client).transports[data.server].reader

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        host = (connection.address or ("",))[0]
        reason = NAMES.get(host, "NotAServiceName")
        error: type[KubeTunnelError] = getattr(errors, str(reason))
        return error(f"{host} is refused.")

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        reader = self.readers.get(connection.id)
        return UpstreamReset(str(reader.exception())) if reader and reader.exception() else None


class Door:
    """What the gate does, for SOCKS5 and raw TCP."""

    def __init__(self) -> None:
        self.names = LoopbackNames()
        silence_s = float(os.environ.get("RAW_SILENCE_S", "30"))
        self.relays = Relays(show_interval_s=0.05, half_closed_silence_s=silence_s, stalled_silence_s=silence_s)
        self.addons = [self.names, self.relays]

    def client_connected(self, client: Client) -> None:
        self.relays.attach(_handler(client))

    def next_layer(self, data: layer.NextLayer) -> None:
        if not isinstance(data, FirstBytesLayer):
            if len(data.context.layers) == 1 or data.context.server.address:
                data.layer = FirstBytesLayer(data.context)
            return
        match data.protocol:
            case Protocol.SOCKS5:
                data.layer = Socks5Layer(data.context, self.names, self.relays)
            case Protocol.RAW:
                data.layer = RawLayer(data.context, self.names, self.relays)
            case Protocol.HTTP1:
                known = data.context.server.address is not None
                data.layer = layers.HttpLayer(data.context, HTTPMode.transparent if known else HTTPMode.regular)
            case Protocol.TLS if "inner-tls" in NAMES:
                server_name = layers.ClientTLSLayer(data.context)
                server_name.child_layer = FirstBytesLayer(data.context)
                data.layer = server_name
            case Protocol.TLS:
                data.layer = RawLayer(data.context, self.names, self.relays)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        _log("start", flow)

    def update(self, flows: list[Any]) -> None:
        for flow in flows:
            if isinstance(flow, tcp.TCPFlow):
                _log("update", flow)

    def tcp_end(self, flow: tcp.TCPFlow) -> None:
        _log("end", flow)

    def tcp_error(self, flow: tcp.TCPFlow) -> None:
        _log("error", flow)


def _handler(client: Client) -> Any:
    return ctx.master.addons.get("proxyserver").connections[client.id]


def _log(event: str, flow: tcp.TCPFlow) -> None:
    facts = {
        "event": event,
        "client": flow.client_conn.peername[1] if flow.client_conn.peername else None,
        "comment": flow.comment,
        "error": flow.error.msg if flow.error else None,
        "kept": sum(len(message.content) for message in flow.messages),
        **flow.metadata.get("kube", {}),
    }
    logger.info("flow %s", json.dumps(facts))


addons = [Door()]
