"""What goes wrong on a port-forward, in the words of the contract.

A runtime tells why a stream failed as a line of text on the stream's error stream; there is no code to it. The texts
here are those of containerd, CRI-O and cri-dockerd (socat).
"""

from __future__ import annotations

import errno
import re

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, Timeout, UpstreamProtocol, UpstreamReset

_ERRNO: dict[type[KubeTunnelError], int] = {
    ConnectionRefused: errno.ECONNREFUSED,
    Timeout: errno.ETIMEDOUT,
    UpstreamProtocol: errno.EPROTO,
}
_POD_GONE = re.compile(
    r"not running|network namespace\b.*\bclosed|no such (container|pod|sandbox)|sandbox\b.*\bnot found|does not exist"
)
TEXT_CHARACTERS = 300  # of a runtime's or an API server's text in a detail; some repeat themselves for kilobytes


class DialTimeout(Timeout):
    """No port-forward to this pod in time. Another endpoint may do: its node may be another one."""


class PodReset(UpstreamReset):
    """The pod itself reset a connection: it is there, and says nothing against its next one."""


class StreamFailed(OSError):  # noqa: N818  (a name of the errors' tree)
    """A stream's failure as its protocol sees it in `connection_lost`: asyncio's users catch OSError.

    `error` is the refusal behind it.
    """

    def __init__(self, error: KubeTunnelError) -> None:
        super().__init__(_ERRNO.get(type(error), errno.ECONNRESET), str(error))
        self.error = error


def stream_error(text: str, target: PodPort) -> KubeTunnelError:
    """The refusal that a text on the error stream of a stream to `target` stands for."""
    words = text.casefold()
    quoted = " ".join(text.split())[:TEXT_CHARACTERS]
    show = f"kubectl -n {target.namespace} get pod {target.pod} -o wide"
    if pod_is_gone(text):
        return UpstreamReset(f"The pod of {target} runs no more: {quoted}.", command=show)
    # before "refused": of two dials, to 127.0.0.1 and to ::1, the reset one reached a listener
    if "connection reset" in words or "broken pipe" in words:
        return PodReset(f"The pod reset the connection to {target}.")
    if "connection refused" in words:
        return ConnectionRefused(f"Nothing listens on port {target.port} of pod {target.namespace}/{target.pod}.")
    if "timeout" in words or "timed out" in words:
        return Timeout(f"Port {target.port} of pod {target.namespace}/{target.pod} does not answer: {quoted}.")
    if "socat" in words or "nsenter" in words:
        return UpstreamProtocol(f"The node of {target} cannot forward ports: {quoted}.", command=show)
    if "failed to connect to localhost" in words:
        return ConnectionRefused(f"Pod port {target} cannot be connected to: {quoted}.")
    return UpstreamReset(f"The connection to {target} was cut: {quoted}.", command=show)


def pod_is_gone(text: str) -> bool:
    """Whether a text on an error stream says that the pod behind the upstream is dead, for all ports and for good."""
    words = text.casefold()
    return "failed to connect" not in words and _POD_GONE.search(words) is not None
