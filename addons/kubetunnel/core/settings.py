"""What the user can choose. A frozen tree with documented defaults; the contract's section 8 names each setting."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster, as whom. None: what kubectl would take."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    zone: str = "cluster.local"  # kubelet's --cluster-domain default


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Another try of an upstream of which nothing was used yet."""

    max: int = 2
    delay_s: float = 0.1


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """HTTP between us and the pods."""

    force_http2: bool = False  # every request goes as HTTP/2
    disable_fallback: bool = False  # an HTTP/2 request goes as HTTP/2 or not at all
    response_header_timeout_s: float = 30.0
    grpc_timeout_s: float = 30.0  # where a call brings no grpc-timeout


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the user knows of a Service better than its object says.

    Attributes:
        service: `NAME.NAMESPACE`, with `*` and `?` for any characters.
        port: the Service port, None for all.
        app_protocol: in the place of the port's `appProtocol`: http, https, h2c, grpc, grpcs, ws, wss.
        passthrough: TLS is not terminated but passed on as it is.
        ca_file: PEM; the pod's certificate is verified against it, and for the Service's name.
        client_certificate: PEM file of a certificate and its key, shown to the pod.
    """

    service: str
    port: int | None = None
    app_protocol: str | None = None
    passthrough: bool = False
    ca_file: str | None = None
    client_certificate: str | None = None

    def fits(self, service: str, namespace: str, port: int) -> bool:
        return self.port in (None, port) and fnmatchcase(f"{service}.{namespace}", self.service)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    services: tuple[ServiceSettings, ...] = ()

    def of_service(self, service: str, namespace: str, port: int) -> ServiceSettings:
        """The first entry that fits, else one that says nothing."""
        fitting = (entry for entry in self.services if entry.fits(service, namespace, port))
        return next(fitting, ServiceSettings(f"{service}.{namespace}"))
