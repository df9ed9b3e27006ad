"""Which of a Service's ports a request goes to (the contract's section 2.2).

`appProtocol` values: IANA service names and KEP-3726's `kubernetes.io/h2c`, `/ws`, `/wss`. Port names: Istio's
convention `<protocol>[-<suffix>]`, which most charts follow, and what others write (`metrics-http`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.errors import NotForwardable, PortNotExposed

# what fits a scheme, the best first: a port for https says so, web and grpc are found with and without TLS
_FITTING = {"http": ("http", "web", "grpc"), "https": ("https", "web", "grpc")}
_WORDS = frozenset(word for words in _FITTING.values() for word in words)
_SYNONYMS = {"h2c": "http", "grpc-web": "http", "http2": "http", "ws": "http", "wss": "https", "grpcs": "https"}


@dataclass(frozen=True, slots=True)
class PortRequest:
    """The port that a client wants: `number`, which is only the scheme's default unless `explicit`.

    `scheme` is `http`, `https`, or empty for raw TCP.
    """

    number: int
    explicit: bool
    scheme: str


@dataclass(frozen=True, slots=True)
class PortChoice:
    """The port that was chosen. `fallback` says why it is another than asked for, for the log; else it is empty."""

    port: ServicePort
    fallback: str = ""


def choose_port(service: Service, request: PortRequest, *, hostname: str | None = None) -> PortChoice:
    """The Service port for a request.

    Args:
        hostname: the Pod asked for by name. Of a Pod, and of a headless Service, any port goes: one that the Service
            does not list is returned as a ServicePort of that number.

    Raises:
        PortNotExposed: the Service has no such TCP port; the detail lists those it has.
        NotForwardable: it is an ExternalName.
    """
    refuse_external_name(service)
    asked = tcp_port(service, request.number)
    if asked:
        return PortChoice(asked)
    if not request.explicit:
        fitting = _fitting_port(service, request.scheme)
        if fitting:
            return fitting
    if service.headless or hostname is not None:
        return PortChoice(ServicePort(port=request.number, target_port=request.number))
    raise port_not_exposed(service, request.number)


def tcp_port(service: Service, number: int) -> ServicePort | None:
    """The Service's TCP port of that number: the same number may be a UDP port as well."""
    return next((port for port in service.ports if port.port == number and port.protocol == "TCP"), None)


def port_not_exposed(service: Service, number: int) -> PortNotExposed:
    """The refusal of a port number, with what the Service has instead."""
    others = [port.protocol for port in service.ports if port.port == number]
    only = f" Port {number} is {' and '.join(others)}, and a port-forward carries TCP alone." if others else ""
    return PortNotExposed(
        f"Service {service.namespace}/{service.name} has no TCP port {number}.{only} It has {_listed(service)}.",
        command=_show(service),
    )


def refuse_external_name(service: Service) -> None:
    """Raises NotForwardable for an ExternalName."""
    if service.type == "ExternalName":
        raise NotForwardable(
            f"Service {service.namespace}/{service.name} is an ExternalName for {service.external_name}: there is "
            "no Pod behind it to open a port-forward to.",
            command=_show(service),
        )


def _fitting_port(service: Service, scheme: str) -> PortChoice | None:
    """Where a request goes that named no port: one that fits its scheme, else the only one."""
    tcp = [port for port in service.ports if port.protocol == "TCP"]
    for word in _FITTING.get(scheme, ()):
        fitting = [port for port in tcp if _word(port) == word]
        if fitting:
            # `http` rather than `http-metrics`, and that rather than `metrics-http`
            best = min(fitting, key=lambda port: (port.name != word, not port.name.startswith(word)))
            return PortChoice(best, f"no port was asked for, and {best} fits {scheme}")
    if len(tcp) == 1:
        return PortChoice(tcp[0], f"no port was asked for, and {tcp[0]} is the only one")
    return None


def _word(port: ServicePort) -> str:
    """The protocol that a port says it speaks, "" for none that is known here; `appProtocol` counts before the name."""
    said = [(port.app_protocol or "").lower().removeprefix("kubernetes.io/"), *port.name.split("-")]
    words = (_SYNONYMS.get(word, word) for word in said)
    return next((word for word in words if word in _WORDS), "")


def _listed(service: Service) -> str:
    return ", ".join(map(str, service.ports)) or "no ports"


def _show(service: Service) -> str:
    return f"kubectl -n {service.namespace} get service {service.name}"
