"""Opens a TCP connection through the kubeconfig's proxy-url: http (CONNECT), socks5, socks5h and socks4.

python-socks speaks them; an https:// proxy would need TLS inside TLS, which it does not offer for plain sockets.
"""

from __future__ import annotations

import socket

from python_socks import ProxyError, ProxyTimeoutError
from python_socks.async_.asyncio import Proxy

from kubetunnel.core.errors import KubeconfigError

SCHEMES = ("http", "socks5", "socks5h", "socks4")


async def open_through_proxy(proxy_url: str, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to `host`:`port`. The caller bounds the time.

    Raises:
        KubeconfigError: the URL is none that works here.
        OSError: the proxy is not there, or refuses.
    """
    scheme, _, rest = proxy_url.partition("://")
    if scheme not in SCHEMES or not rest:
        raise KubeconfigError(
            f"proxy-url of the kubeconfig has the scheme {scheme!r}, and must be one of {', '.join(SCHEMES)}."
        )
    try:
        # the proxy resolves the name, as it does for kubectl: it may not be known on this side
        proxy = Proxy.from_url(f"{scheme.removesuffix('h') if scheme == 'socks5h' else scheme}://{rest}", rdns=True)
    except ValueError as error:
        raise KubeconfigError("proxy-url of the kubeconfig is not scheme://[user:password@]host:port.") from error
    try:
        return await proxy.connect(host, port)
    except ProxyTimeoutError as error:
        raise TimeoutError from error
    except ProxyError as error:
        raise OSError(f"its proxy refused, {error}") from error
