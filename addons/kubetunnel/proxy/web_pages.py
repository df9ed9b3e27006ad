"""Requests of web pages that may be a stranger's, refused before anything else is told to them (`core/rebinding.py`).

What reads the answer may be the attacker: it is told neither the Service's name nor what to do, the log is.
"""

from __future__ import annotations

import logging
import shlex
from weakref import WeakSet

from mitmproxy import http
from mitmproxy.connection import Client

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import MAX_NAME_CHARS, zone_is_valid
from kubetunnel.core.rebinding import foreign_host
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.refusals import refusal
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.virtual_destinations import VirtualDestinations

logger = logging.getLogger(__name__)

REFUSED = "Web pages may not ask by this name. The tunnel's log says more."
MAX_TOLD = 256  # hosts; a page may have any number of them


class WebPages:
    """Tells the pages of strangers by their Host, where no proxy request says what is wanted."""

    def __init__(self, router: Router, virtual: VirtualDestinations) -> None:
        self._router = router
        self._virtual = virtual
        self._proxy_requests: WeakSet[http.Request] = WeakSet()
        self._named_by_sni: WeakSet[Client] = WeakSet()
        self._refused: WeakSet[http.HTTPFlow] = WeakSet()
        self._told: set[str] = set()

    def note_form(self, request: http.Request) -> None:
        """Remembers a request in absolute-form (RFC 9112 section 3.2.2); later it looks like any other."""
        if request.host and not request.is_http2:
            self._proxy_requests.add(request)

    def note_sni(self, client: Client) -> None:
        """The destination of this connection is from its SNI, and no CONNECT or SOCKS5 asked for it."""
        self._named_by_sni.add(client)

    def check(self, flow: http.HTTPFlow) -> None:
        """Raises NotAServiceName for a request of a page that may be a stranger's."""
        if not self._is_checked(flow):
            return
        request, settings = flow.request, self._router.settings
        zones = (settings.cluster.zone, *(other.zone for other in settings.zones))
        asked = request.host_header or request.authority
        host = foreign_host(asked, request.headers.keys(), zones=zones, own=settings.http.hosts)
        if host is None:
            return
        self._refused.add(flow)
        self._tell(host, flow)
        raise NotAServiceName(REFUSED)

    def refuse_again(self, flow: http.HTTPFlow) -> None:
        """Puts a recorded answer aside: `server_replay` has one for refused requests, too."""
        if flow in self._refused and flow.is_replay:
            flow.is_replay = None
            flow.response = refusal(NotAServiceName(REFUSED), flow.request)

    def _is_checked(self, flow: http.HTTPFlow) -> bool:
        client = flow.client_conn
        if not isinstance(client.proxy_mode, KubeMode):
            return False  # of these only full names come to us
        if self._virtual.is_certain(client) or client in self._named_by_sni:
            return True
        return flow.server_conn.address is None and flow.request not in self._proxy_requests

    def _tell(self, host: str, flow: http.HTTPFlow) -> None:
        if host in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(host)
        address = flow.server_conn.address
        command = f", kube-tunnel --set kube_hosts={shlex.quote(host)}" if zone_is_valid(host) else ""
        logger.warning(
            "A web page of %s asks for %s and is refused: that is what an attack by DNS rebinding looks like. "
            "Pages may ask by the full name, SERVICE.NAMESPACE.svc.%s; if that host is yours, say so: http.hosts%s",
            ascii(host[:MAX_NAME_CHARS]),
            address[0] if address else "a Service",
            self._router.settings.cluster.zone,
            command,
        )
