"""Opens a TCP connection through the kubeconfig's proxy-url: http (CONNECT), socks5, socks5h and socks4.

python-socks speaks them; an https:// proxy would need TLS inside TLS, which it does not offer for plain sockets.
"""

from __future__ import annotations

import socket

from python_socks import ProxyError, ProxyTimeoutError
from python_socks.async_.asyncio import Proxy


async def open_through_proxy(proxy_url: str, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to `host`:`port`. The caller bounds the time.

    Args:
        proxy_url: checked when the kubeconfig was read.

    Raises:
        OSError: the proxy is not there, or refuses.
    """
    # the proxy resolves the name, as it does for kubectl: it may not be known on this side
    proxy = Proxy.from_url(proxy_url.replace("socks5h://", "socks5://", 1), rdns=True)
    try:
        return await proxy.connect(host, port)
    except ProxyTimeoutError as error:
        raise TimeoutError from error
    except ProxyError as error:
        raise OSError(f"its proxy refused, {error}") from error
