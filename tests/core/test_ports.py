"""core/ports.py: the contract's section 2.2, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.errors import NotForwardable, PortNotExposed
from kubetunnel.core.ports import PortRequest, choose_port

HTTP = ServicePort(80, "http")
HTTPS = ServicePort(443, "https")


def service(*ports: ServicePort, cluster_ip: str = "10.96.0.1") -> Service:
    return Service("shop", "api", ports, cluster_ip=cluster_ip)


def default(scheme: str) -> PortRequest:
    return PortRequest({"http": 80, "https": 443, "": 80}[scheme], explicit=False, scheme=scheme)


def asked(number: int, scheme: str = "http") -> PortRequest:
    return PortRequest(number, explicit=True, scheme=scheme)


@pytest.mark.parametrize("request_", [default("http"), asked(80), asked(80, ""), asked(80, "https")])
def test_a_port_that_the_service_has_is_taken_as_it_is(request_: PortRequest) -> None:
    choice = choose_port(service(HTTPS, HTTP), request_)
    assert choice.port == HTTP
    assert not choice.fallback


@pytest.mark.parametrize(
    ("scheme", "ports", "expected"),
    [
        ("http", [ServicePort(8080, "http"), ServicePort(9090, "grpc")], 8080),
        ("http", [ServicePort(9090, "grpc"), ServicePort(8080, "http")], 8080),
        ("http", [ServicePort(9090, "metrics"), ServicePort(8080, "web")], 8080),
        ("http", [ServicePort(9090, "metrics"), ServicePort(8080, "http-web")], 8080),
        ("http", [ServicePort(9090, "http-metrics"), ServicePort(8080, "http")], 8080),
        ("http", [ServicePort(9090, "metrics-http"), ServicePort(8080, "http-web")], 8080),
        ("http", [ServicePort(9090, "web"), ServicePort(8080, "http-api")], 8080),
        ("http", [ServicePort(9090, "tcp"), ServicePort(8080, "grpc-api")], 8080),
        ("http", [ServicePort(9090, "tcp"), ServicePort(8080, "api-http")], 8080),
        ("http", [ServicePort(9090, "tcp"), ServicePort(8080, "http2")], 8080),
        ("http", [ServicePort(8443, "https"), ServicePort(8080, "http")], 8080),
        ("http", [ServicePort(8443, "https-admin"), ServicePort(8080, "web-ui")], 8080),
        ("http", [ServicePort(9443, "webhook"), ServicePort(8080, "web")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "b", app_protocol="http")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "b", app_protocol="HTTP")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "b", app_protocol="kubernetes.io/h2c")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "b", app_protocol="kubernetes.io/ws")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "b", app_protocol="grpc")], 8080),
        ("http", [ServicePort(9090, "web"), ServicePort(8080, "b", app_protocol="grpc-web")], 8080),
        ("http", [ServicePort(9090, "http", app_protocol="https"), ServicePort(8080, "b", app_protocol="http")], 8080),
        ("http", [ServicePort(9090, "a"), ServicePort(8080, "http", app_protocol="example.com/own")], 8080),
        ("https", [ServicePort(8080, "http"), ServicePort(8443, "https")], 8443),
        ("https", [ServicePort(8080, "http"), ServicePort(8443, "https-admin")], 8443),
        ("https", [ServicePort(8080, "a"), ServicePort(8443, "b", app_protocol="https")], 8443),
        ("https", [ServicePort(8080, "a"), ServicePort(8443, "b", app_protocol="kubernetes.io/wss")], 8443),
        ("https", [ServicePort(8080, "http"), ServicePort(9443, "grpc")], 9443),
        ("https", [ServicePort(8080, "grpc"), ServicePort(9443, "grpcs")], 9443),
        ("http", [ServicePort(5432, "postgres")], 5432),
        ("https", [ServicePort(8080, "http")], 8080),
        ("", [ServicePort(5432)], 5432),
        ("http", [ServicePort(53, "dns", "UDP"), ServicePort(9153, "metrics")], 9153),
        ("http", [ServicePort(8080, "http", "UDP"), ServicePort(8081, "web")], 8081),
    ],
)
def test_only_the_schemes_default_falls_back(scheme: str, ports: list[ServicePort], expected: int) -> None:
    choice = choose_port(service(*ports), default(scheme))
    assert choice.port.port == expected
    assert str(choice.port) in choice.fallback
    with pytest.raises(PortNotExposed):
        choose_port(service(*ports), asked(default(scheme).number, scheme))


@pytest.mark.parametrize(
    ("scheme", "ports"),
    [
        ("http", [ServicePort(5432, "postgres"), ServicePort(9187, "metrics")]),
        ("http", [ServicePort(8443, "https"), ServicePort(9187, "metrics")]),
        ("https", [ServicePort(8080, "http"), ServicePort(9187, "metrics")]),
        ("", [ServicePort(8080, "http"), ServicePort(8443, "https")]),
        ("http", []),
        ("http", [ServicePort(53, "dns", "UDP")]),
    ],
)
def test_where_nothing_fits_the_ports_are_listed(scheme: str, ports: list[ServicePort]) -> None:
    with pytest.raises(PortNotExposed) as caught:
        choose_port(service(*ports), default(scheme))
    for port in ports:
        assert str(port) in caught.value.detail


def test_the_refusal_of_a_number_lists_numbers_and_names_and_the_command() -> None:
    with pytest.raises(PortNotExposed) as caught:
        choose_port(service(HTTP, HTTPS, ServicePort(53, "dns", "UDP")), asked(81))
    assert "Service shop/api has no TCP port 81." in caught.value.detail
    assert "80 (http), 443 (https), 53/UDP (dns)" in caught.value.detail
    assert caught.value.command == "kubectl -n shop get service api"


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_a_port_of_another_protocol_is_not_for_tcp(protocol: str) -> None:
    dns = service(ServicePort(53, "dns", protocol), ServicePort(9153, "metrics"))
    with pytest.raises(PortNotExposed, match=f"Port 53 is {protocol}"):
        choose_port(dns, asked(53))
    both = service(ServicePort(53, "dns", protocol), ServicePort(53, "dns-tcp"))
    assert choose_port(both, asked(53)).port.name == "dns-tcp"


def test_of_a_headless_service_any_port_goes() -> None:
    headless = service(ServicePort(5432, "postgres"), ServicePort(9187, "metrics"), cluster_ip="None")
    assert choose_port(headless, asked(5432)).port == ServicePort(5432, "postgres")
    assert choose_port(headless, asked(8008)).port == ServicePort(8008, target_port=8008)
    assert choose_port(headless, default("http")).port.port == 80
    assert choose_port(service(cluster_ip="None"), asked(8008)).port.port == 8008


def test_a_headless_service_is_asked_first_what_fits_the_scheme() -> None:
    headless = service(ServicePort(8080, "http"), ServicePort(9000, "tcp"), cluster_ip="None")
    choice = choose_port(headless, default("http"))
    assert (choice.port.port, bool(choice.fallback)) == (8080, True)


def test_of_a_pod_by_name_any_port_goes() -> None:
    with pytest.raises(PortNotExposed):
        choose_port(service(HTTP), asked(8008))
    assert choose_port(service(HTTP), asked(8008), hostname="db-0").port.port == 8008
    assert choose_port(service(HTTP), asked(80), hostname="db-0").port == HTTP


def test_an_external_name_cannot_be_forwarded_to() -> None:
    external = Service("shop", "mail", (HTTP,), type="ExternalName", external_name="mail.example.invalid")
    with pytest.raises(NotForwardable, match=r"ExternalName for mail\.example\.invalid") as caught:
        choose_port(external, asked(80))
    assert caught.value.command == "kubectl -n shop get service mail"


names = st.one_of(st.sampled_from(["", "http", "https", "web", "grpc", "http-web", "metrics"]), st.text(max_size=8))
ports = st.builds(
    ServicePort,
    port=st.sampled_from([80, 443, 8080, 9090]),
    name=names,
    protocol=st.sampled_from(["TCP", "UDP", "SCTP"]),
    app_protocol=st.one_of(st.none(), names),
)
requests = st.builds(
    PortRequest, st.sampled_from([80, 443, 8080, 81]), st.booleans(), st.sampled_from(["http", "https", ""])
)


@given(st.lists(ports, max_size=4), requests)
def test_what_is_chosen_is_a_tcp_port_of_the_service_and_never_another_than_asked_for(
    listed: list[ServicePort], request_: PortRequest
) -> None:
    try:
        choice = choose_port(service(*listed), request_)
    except PortNotExposed:
        assert not any(port.port == request_.number and port.protocol == "TCP" for port in listed)
        assert request_.explicit or len([port for port in listed if port.protocol == "TCP"]) != 1
    else:
        assert choice.port in listed
        assert choice.port.protocol == "TCP"
        assert bool(choice.fallback) == (choice.port.port != request_.number)
        assert not (request_.explicit and choice.fallback)


@given(st.lists(ports, max_size=4), requests)
def test_a_headless_service_refuses_no_port(listed: list[ServicePort], request_: PortRequest) -> None:
    choice = choose_port(service(*listed, cluster_ip="None"), request_)
    assert choice.port.protocol == "TCP"
    assert choice.port.port == request_.number or choice.fallback
