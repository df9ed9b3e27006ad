"""What a client can be told when its request fails: one class for each reason of the contract.

    KubeTunnelError
    ├── NotAServiceName       the name is none of ours
    ├── ServiceNotFound       no such Service (or Pod of a headless one)
    ├── NamespaceNotFound     no such Namespace
    ├── PortNotExposed        the Service has no such port
    ├── NoReadyEndpoints      the Service has no endpoint that is ready
    │   └── PodGone           the one that was chosen is there no more
    ├── NotForwardable        ExternalName, or an endpoint without a Pod
    ├── Forbidden             a missing right (verb and resource are named)
    ├── Unauthenticated       credentials expired, refused or missing
    ├── ClusterUnreachable    no kubeconfig, a broken one, or no API server there
    ├── ConnectionRefused     the pod's port does not accept
    ├── UpstreamReset         the connection to the pod ended in the middle
    ├── UpstreamProtocol      the pod or the port-forward spoke nonsense
    └── Timeout               connect, response headers, or a gRPC deadline

Status codes are not known here: `proxy/refusals.py` maps reasons to HTTP, gRPC and SOCKS5.
"""

from __future__ import annotations

from typing import ClassVar


class KubeTunnelError(Exception):
    """A refusal.

    Args:
        detail: what was wanted and what was found, one or two sentences for the person at the terminal.
        command: a command that shows (or mends) it, e.g. `kubectl -n shop get svc`.

    `title` says in a few words what kind of failure it is; `reason` is its name in the contract.
    """

    title: ClassVar[str] = "The request could not be forwarded"

    def __init__(self, detail: str, *, command: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.command = command

    @property
    def reason(self) -> str:
        """The reason of the contract (`X-Kube-Tunnel-Error`)."""
        # a subclass that only adds facts (KubeconfigError) keeps the reason of its parent
        return next(c.__name__ for c in type(self).__mro__ if KubeTunnelError in c.__bases__)

    def aim(self, kubectl: str) -> None:
        """Has a kubectl command that names no kubeconfig and no context name those of the cluster that this is about.

        Args:
            kubectl: the beginning of such a command, as `ClusterAccess.kubectl()` has it.
        """
        plain = "kubectl"
        if self.command and self.command.startswith(f"{plain} ") and not self.command.startswith(f"{kubectl} "):
            self.command = kubectl + self.command.removeprefix(plain)

    def __str__(self) -> str:
        return f"{self.detail} See: {self.command}" if self.command else self.detail


class NotAServiceName(KubeTunnelError):
    """The name is not one of a cluster's zone (Kubernetes DNS specification)."""

    title = "Not the name of a Service"


class ServiceNotFound(KubeTunnelError):
    """The Namespace has no such Service, or the headless Service no such Pod."""

    title = "No such Service"


class NamespaceNotFound(KubeTunnelError):
    """The cluster has no such Namespace."""

    title = "No such Namespace"


class PortNotExposed(KubeTunnelError):
    """The Service does not have the port that was asked for; the detail lists those it has."""

    title = "The Service has no such port"


class NoReadyEndpoints(KubeTunnelError):
    """No endpoint of the Service is ready; the detail says how many are not."""

    title = "No endpoint is ready"


class PodGone(NoReadyEndpoints):
    """The endpoint's pod is there no more: what was known of the Service is old, and another endpoint may do."""


class NotForwardable(KubeTunnelError):
    """ExternalName, or an endpoint that is no Pod: there is nothing to open a port-forward to."""

    title = "Cannot be forwarded to"


class OutsideName(NotForwardable):
    """An ExternalName that the tunnel may dial itself (`external_names: direct`). Who does not do that refuses it.

    Args:
        address: the name that the Service stands for, and the port.
        tls: whether that port speaks TLS; None: as its client does.
    """

    def __init__(
        self, detail: str, *, command: str | None = None, address: tuple[str, int] = ("", 0), tls: bool | None = None
    ) -> None:
        super().__init__(detail, command=command)
        self.address = address
        self.tls = tls


class Forbidden(KubeTunnelError):
    """The user lacks a right; the detail names verb and resource, the command is `kubectl auth can-i …`."""

    title = "A right is missing"


class Unauthenticated(KubeTunnelError):
    """The API server took no credentials of ours, or there are none."""

    title = "Not authenticated"


class ClusterUnreachable(KubeTunnelError):
    """There is no API server to talk to."""

    title = "The cluster cannot be reached"


class KubeconfigError(ClusterUnreachable):
    """There is no kubeconfig, or it is broken; the detail names file and key."""

    title = "The kubeconfig cannot be used"


class ConnectionRefused(KubeTunnelError):
    """The pod's port does not accept connections."""

    title = "The pod refused the connection"


class UpstreamReset(KubeTunnelError):
    """The connection to the pod ended before the exchange was complete."""

    title = "The connection to the pod was cut"


class UpstreamProtocol(KubeTunnelError):
    """The pod, or the API server's port-forward, broke its protocol."""

    title = "The pod broke its protocol"


class Timeout(KubeTunnelError):
    """A connect, the response headers or a gRPC deadline took too long."""

    title = "Timed out"
