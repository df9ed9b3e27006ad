"""What Services of the type ExternalName stand for, and mitmproxy dials itself (`external_names: direct`)."""

from __future__ import annotations

from copy import copy
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Address, Client, Connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from kubetunnel.core.errors import OutsideName, UpstreamReset


class OutsideNames:
    """Which of them each client asked for by a Service's name, and the connections that go there."""

    def __init__(self) -> None:
        self._of_client: WeakKeyDictionary[Client, dict[tuple[str, int], OutsideName]] = WeakKeyDictionary()
        self._dialled: WeakKeyDictionary[Connection, OutsideName] = WeakKeyDictionary()

    def let(self, client: Client, name: OutsideName) -> None:
        """This client asked for a Service that stands for it."""
        # a copy has no traceback, whose frames would lead back to the client
        self._of_client.setdefault(client, {})[name.address] = copy(name)

    def to(self, client: Client, address: Address | None) -> OutsideName | None:
        """What `let` was told of this address."""
        return self._of_client.get(client, {}).get((address[0], address[1])) if address else None

    async def dial(
        self, handler: ProxyConnectionHandler, command: commands.OpenConnection, outside: OutsideName
    ) -> None:
        """Has mitmproxy connect there, and verify the certificate."""
        connection = command.connection
        connection.address, connection.sni = outside.address, outside.address[0]
        self._dialled[connection] = copy(outside)
        await ProxyConnectionHandler.open_connection(handler, command)

    def open_error(self, connection: Connection) -> UpstreamReset | None:
        """Why this connection did not open; None where it did, or goes elsewhere."""
        dialled = self._dialled.get(connection)
        if dialled is None or not connection.error:
            return None
        where = f"{dialled.address[0]}:{dialled.address[1]}"
        return UpstreamReset(
            f"{where} is not reached from here: {connection.error.rstrip('.')}.", command=dialled.command
        )


def send_outside(flow: http.HTTPFlow, outside: OutsideName) -> None:
    """Has the request go there."""
    tls = flow.client_conn.tls if outside.tls is None else outside.tls
    flow.request.data.host, flow.request.data.port = outside.address
    flow.request.data.scheme = b"https" if tls else b"http"
