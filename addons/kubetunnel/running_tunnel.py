"""Whether a tunnel of ours answers on a port: what the port itself says, no file that could be a lie after a crash."""

from __future__ import annotations

import http.client

# no Service's in any cluster (RFC 2606 2): the tunnel refuses it by itself, and says who refuses
_NOBODY = "kube-tunnel.invalid"
_SIGN = "X-Kube-Tunnel-Error"
ANSWER_TIMEOUT_S = 2.0


def tunnel_answers(host: str, port: int, *, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Asks the port. Blocks for up to `timeout_s` an attempt at connecting and reading.

    A mitmproxy in another mode with our addon is not meant: it takes no SOCKS5 and no short names.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/", headers={"Host": _NOBODY})
        return connection.getresponse().headers.get(_SIGN) is not None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
