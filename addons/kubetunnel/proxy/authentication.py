"""mitmproxy's `proxyauth` in the mode `kube`, for a tunnel that others than its own user can reach.

mitmproxy takes our mode for a web server: it would ask for `Authorization` with a 401, and keep from the Service what
the client meant for it. Here it is `Proxy-Authorization` and 407 (RFC 9110 11.7) for every form of request, since with
a Host header alone, too, the tunnel is a proxy; SOCKS5 asks by RFC 1929 (`socks5.py`). And nothing is dialled for a
connection that has not shown credentials, whichever way it found around these.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from mitmproxy import ctx, http
from mitmproxy.addons.proxyauth import ProxyAuth, parse_http_basic_auth
from mitmproxy.connection import Client
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.refusals import credentials_wanted

HEADER = "Proxy-Authorization"
_MEMORY_ENTRIES = 256


class Authentication:
    """Has mitmproxy's addon `proxyauth` decide on requests in our mode as on those of a proxy."""

    name = "kubetunnel_authentication"

    def __init__(self) -> None:
        self._addon: ProxyAuth | None = None
        self._stock: Callable[[http.HTTPFlow], bool] | None = None
        self._shown: WeakSet[Client] = WeakSet()
        self._key = os.urandom(16)
        self._valid: dict[bytes, str] = {}
        self._valid_for: object = None

    def load(self, _: Any) -> None:
        addon = ctx.master.addons.get("proxyauth")
        if addon is not None:
            self._addon, self._stock = addon, addon.authenticate_http
            addon.authenticate_http = self._authenticate

    def done(self) -> None:
        if self._addon is not None and self._stock is not None:
            self._addon.authenticate_http = self._stock  # type: ignore[method-assign, assignment]

    def server_connect(self, data: ServerConnectionHookData) -> None:
        addon = self._addon
        if addon is None or addon.validator is None or not isinstance(data.client.proxy_mode, KubeMode):
            return
        if data.client not in self._shown and data.client not in addon.authenticated:
            data.server.error = "this proxy asks for credentials, and the client has shown none"

    def permits(self, request: http.Request) -> bool:
        """Whether a request for the tunnel's own pages has what `proxyauth` asks for, if it asks for anything.

        It is made to a web server, so it is `Authorization`, and the answer to one that is not permitted a 401.
        """
        if self._addon is None or self._addon.validator is None:
            return True
        return self._user(request.headers.get("Authorization", "")) is not None

    def _authenticate(self, flow: http.HTTPFlow) -> bool:
        """In the place of `ProxyAuth.authenticate_http`: sets the response where the credentials are not valid."""
        if self._stock is not None and not isinstance(flow.client_conn.proxy_mode, KubeMode):
            return self._stock(flow)
        user = self._user(flow.request.headers.get(HEADER, ""))
        if user is None:
            flow.response = credentials_wanted(flow.request)
            return False
        del flow.request.headers[HEADER]
        flow.metadata["proxyauth"] = user, ""  # it is saved with the flow, so no password
        self._shown.add(flow.client_conn)
        return True

    def _user(self, header: str) -> str | None:
        """Whose credentials these are; None where they are not valid.

        What was valid once is remembered: bcrypt takes milliseconds by design, and every request shows its credentials.
        """
        if self._addon is None or self._addon.validator is None:
            return None
        validator = self._addon.validator
        if validator is not self._valid_for or len(self._valid) >= _MEMORY_ENTRIES:
            self._valid, self._valid_for = {}, validator
        digest = hashlib.blake2b(header.encode(errors="surrogateescape"), key=self._key).digest()
        if digest in self._valid:
            return self._valid[digest]
        try:
            _, user, password = parse_http_basic_auth(header)
        except ValueError:
            return None
        if not validator(user, password):
            return None
        self._valid[digest] = user
        return user
