"""Whether a tunnel of ours answers on a port: what the port itself says, no file that could be a lie after a crash."""

from __future__ import annotations

import http.client

# the tunnel's own: no page is there, and it says who refuses. Not a Service's, which it would ask the cluster for, and
# count as a refused request
_OWN_NAME = "localhost"
_SIGN = "X-Kube-Tunnel-Error"
ANSWER_TIMEOUT_S = 2.0


def tunnel_answers(host: str, port: int, *, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Asks the port. Blocks for up to `timeout_s` an attempt at connecting and reading.

    A mitmproxy in another mode with our addon is not meant: it takes no SOCKS5 and no short names.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/", headers={"Host": _OWN_NAME})
        return connection.getresponse().headers.get(_SIGN) is not None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
