"""core/endpoints.py: the contract's sections 2.3 and 2.4."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.catalog import Endpoint, EndpointPort, EndpointSlice, PodPort, Service, ServicePort, ServiceState
from kubetunnel.core.endpoints import Target, choose_target, targets
from kubetunnel.core.errors import KubeTunnelError, NoReadyEndpoints, NotForwardable, PortNotExposed, ServiceNotFound
from kubetunnel.core.ports import PortRequest, choose_port

HTTP = ServicePort(80, "http", target_port="web")
ADMIN = ServicePort(81, "admin", target_port=9000)
SERVICE = Service("shop", "api", (HTTP, ADMIN), cluster_ip="10.96.0.1", selector={"app": "api"})
HEADLESS = replace(SERVICE, name="db", cluster_ip="None", selector={"app": "db"})
PORTS = (EndpointPort(9000, "admin"), EndpointPort(8080, "http"))
READY = Endpoint("10.0.0.1", pod="api-1", hostname="api-1")
NOT_READY = Endpoint("10.0.0.2", pod="api-2", hostname="api-2", ready=False, serving=False)
TERMINATING = Endpoint("10.0.0.3", pod="api-3", hostname="api-3", ready=False, terminating=True)
NO_POD = Endpoint("192.0.2.1")


def state(
    *endpoints: Endpoint,
    service: Service = SERVICE,
    ports: tuple[EndpointPort, ...] = PORTS,
    more: tuple[EndpointSlice, ...] = (),
) -> ServiceState:
    return ServiceState(service, (EndpointSlice(f"{service.name}-abc", endpoints, ports), *more))


def pods(found: tuple[Target, ...]) -> list[str]:
    return [str(target.pod_port) for target in found]


@pytest.mark.parametrize(("port", "number"), [(HTTP, 8080), (ADMIN, 9000), (80, 8080), (81, 9000)])
def test_the_slices_own_number_is_the_pods_port(port: ServicePort | int, number: int) -> None:
    (target,) = targets(state(READY), port)
    assert target.pod_port == PodPort("shop", "api-1", number, "10.0.0.1")
    assert target.endpoint == READY
    assert target.service_port in SERVICE.ports


def test_pods_of_one_named_port_may_listen_on_different_numbers() -> None:
    canary = EndpointSlice("api-def", (replace(READY, pod="canary"),), (EndpointPort(8888, "http"),))
    assert pods(targets(state(READY, more=(canary,)), HTTP)) == ["shop/api-1:8080", "shop/canary:8888"]


def test_a_port_of_the_same_name_and_another_protocol_is_another() -> None:
    ports = (EndpointPort(5353, "http", "UDP"), EndpointPort(8080, "http"))
    assert pods(targets(state(READY, ports=ports), HTTP)) == ["shop/api-1:8080"]


def test_a_single_port_needs_no_name() -> None:
    service = replace(SERVICE, ports=(ServicePort(80),))
    assert pods(targets(state(READY, service=service, ports=(EndpointPort(8080),)), 80)) == ["shop/api-1:8080"]


def test_only_ready_endpoints_are_targets() -> None:
    # publishNotReadyAddresses and an API server of its own mind: ready and terminating at once
    leaving = replace(READY, pod="api-4", ready=True, terminating=True)
    assert pods(targets(state(TERMINATING, READY, NOT_READY, leaving), HTTP)) == ["shop/api-1:8080"]


def test_publish_not_ready_addresses_counts() -> None:
    service = replace(SERVICE, publish_not_ready_addresses=True)
    found = targets(state(TERMINATING, READY, NOT_READY, service=service), HTTP)
    assert pods(found) == ["shop/api-1:8080", "shop/api-2:8080"]


def test_a_dual_stack_pod_is_one_target_and_one_not_ready_endpoint() -> None:
    second = EndpointSlice("api-v6", (replace(READY, address="fd00::1"),), PORTS, "IPv6")
    (target,) = targets(ServiceState(SERVICE, (second, *state(READY).slices)), HTTP)
    assert target.pod_port.address == "10.0.0.1"
    not_ready = EndpointSlice("api-v6", (replace(NOT_READY, address="fd00::2"),), PORTS, "IPv6")
    with pytest.raises(NoReadyEndpoints, match=r"1 endpoint, none of them ready: 1 not ready, 0 terminating \(api-2\)"):
        targets(state(NOT_READY, more=(not_ready,)), HTTP)


def test_an_endpoint_in_two_slices_at_a_time_is_one_target() -> None:
    assert len(targets(state(READY, more=(EndpointSlice("api-def", (READY,), PORTS),)), HTTP)) == 1


def test_a_pod_that_came_back_under_its_name_is_ready_though_the_old_one_still_ends() -> None:
    old = replace(TERMINATING, pod="api-1", hostname="api-1")
    assert pods(targets(state(old, READY), HTTP, "api-1")) == ["shop/api-1:8080"]


def test_an_endpoint_without_a_pod_is_left_out_where_there_is_another() -> None:
    assert pods(targets(state(NO_POD, READY), HTTP)) == ["shop/api-1:8080"]
    with pytest.raises(NotForwardable, match=r"no Pods \(192\.0\.2\.1") as caught:
        targets(state(NO_POD, NOT_READY), HTTP)
    assert caught.value.command is not None
    assert "get endpointslices -l kubernetes.io/service-name=api" in caught.value.command


def test_none_ready_says_how_many_and_shows_the_pods() -> None:
    with pytest.raises(NoReadyEndpoints) as caught:
        targets(state(NOT_READY, replace(NOT_READY, pod="api-9"), TERMINATING), HTTP)
    assert "3 endpoints, none of them ready: 2 not ready, 1 terminating (api-2, api-3, api-9)" in caught.value.detail
    assert caught.value.command == "kubectl -n shop get pods -l app=api"


@pytest.mark.parametrize("service", [SERVICE, HEADLESS])
@pytest.mark.parametrize("slices", [(), (EndpointSlice("api-abc"),)])
def test_no_endpoint_at_all_says_so(service: Service, slices: tuple[EndpointSlice, ...]) -> None:
    with pytest.raises(NoReadyEndpoints, match="has no endpoints, 0 not ready: its selector matches no Pod"):
        targets(ServiceState(service, slices), HTTP)
    with pytest.raises(NoReadyEndpoints, match="it has no selector") as caught:
        targets(ServiceState(replace(service, selector={}), slices), HTTP)
    assert caught.value.command == f"kubectl -n shop get endpointslices -l kubernetes.io/service-name={service.name}"


def test_a_named_target_port_that_no_ready_pod_has_is_told_from_unreadiness() -> None:
    with pytest.raises(NoReadyEndpoints) as caught:
        targets(state(READY, ports=(EndpointPort(9000, "admin"),)), HTTP)
    assert "1 endpoint ready, none of them with the port 80 (http) (targetPort web)" in caught.value.detail
    assert "9000 (admin)" in caught.value.detail
    with pytest.raises(NoReadyEndpoints, match="2 endpoints ready, none of them with the port 80"):
        targets(state(READY, NO_POD, ports=()), HTTP)


def test_a_number_that_is_not_exposed_is_refused() -> None:
    with pytest.raises(PortNotExposed, match=r"80 \(http\), 81 \(admin\)"):
        targets(state(READY), 8080)
    gone = ServicePort(8080, "old")
    with pytest.raises(PortNotExposed):
        targets(state(READY), gone)


def test_what_is_not_tcp_cannot_be_forwarded_to() -> None:
    dns = ServicePort(53, "dns", "UDP")
    with pytest.raises(NotForwardable, match="TCP alone"):
        targets(state(READY, service=replace(SERVICE, ports=(dns,))), dns)


def test_an_external_name_cannot_be_forwarded_to() -> None:
    external = Service("shop", "mail", type="ExternalName", external_name="mail.example.invalid")
    with pytest.raises(NotForwardable, match="ExternalName"):
        targets(ServiceState(external), 25)


def test_any_port_of_a_headless_service_goes_and_a_listed_one_goes_to_its_target() -> None:
    both = state(READY, replace(READY, pod="api-2"), service=HEADLESS)
    assert pods(targets(both, 80)) == ["shop/api-1:8080", "shop/api-2:8080"]
    assert pods(targets(both, 7777)) == ["shop/api-1:7777", "shop/api-2:7777"]
    choice = choose_port(HEADLESS, PortRequest(7777, explicit=True, scheme=""))
    assert pods(targets(both, choice.port)) == ["shop/api-1:7777", "shop/api-2:7777"]


def test_an_unlisted_port_is_not_taken_for_the_one_without_a_name() -> None:
    service = replace(HEADLESS, ports=(ServicePort(80),))
    choice = choose_port(service, PortRequest(7777, explicit=True, scheme=""))
    found = targets(state(READY, service=service, ports=(EndpointPort(8080),)), choice.port)
    assert pods(found) == ["shop/api-1:7777"]


def test_a_headless_port_that_no_slice_lists_goes_to_its_number() -> None:
    assert pods(targets(state(READY, service=HEADLESS, ports=()), HTTP)) == ["shop/api-1:80"]


def test_a_hostname_selects_one_pod_on_any_port() -> None:
    both = state(READY, replace(READY, address="10.0.0.5", pod="api-2", hostname="api-2"), service=HEADLESS)
    assert pods(targets(both, 80, "api-2")) == ["shop/api-2:8080"]
    assert pods(targets(both, 7777, "API-2")) == ["shop/api-2:7777"]
    assert pods(targets(replace(both, service=SERVICE), 7777, "api-2")) == ["shop/api-2:7777"]


def test_an_endpoint_without_a_hostname_goes_by_its_address() -> None:
    unnamed = [replace(READY, hostname=""), replace(READY, pod="api-6", hostname="", address="fd00::1:2")]
    assert pods(targets(state(*unnamed, service=HEADLESS), 80, "10-0-0-1")) == ["shop/api-1:8080"]
    assert pods(targets(state(*unnamed, service=HEADLESS), 80, "fd00--1-2")) == ["shop/api-6:8080"]
    with pytest.raises(ServiceNotFound):
        targets(state(READY, service=HEADLESS), 80, "10-0-0-1")


def test_an_unknown_hostname_names_those_there_are() -> None:
    many = [replace(READY, pod=f"db-{i}", hostname=f"db-{i}") for i in range(12)]
    with pytest.raises(
        ServiceNotFound, match=r"no Pod with the hostname db-x: it has db-0, db-1, .* and 2 more"
    ) as caught:
        targets(state(*many, service=HEADLESS), 80, "db-x")
    assert caught.value.command == "kubectl -n shop get pods -l app=db"
    with pytest.raises(ServiceNotFound, match="it has no endpoints"):
        targets(ServiceState(HEADLESS), 80, "db-0")


def test_a_pod_by_name_that_is_not_ready_is_there_all_the_same() -> None:
    with pytest.raises(NoReadyEndpoints, match=r"1 not ready, 0 terminating \(api-2\)"):
        targets(state(READY, NOT_READY, service=HEADLESS), 80, "api-2")


def test_a_pod_by_address_is_a_target_on_any_port() -> None:
    target = Target.of_pod("shop", READY, 7777)
    assert target.pod_port == PodPort("shop", "api-1", 7777, "10.0.0.1")
    with pytest.raises(NotForwardable, match=r"192\.0\.2\.1"):
        Target.of_pod("shop", NO_POD, 80)


addresses = st.sampled_from([f"10.0.0.{i}" for i in range(6)])
endpoints = st.builds(
    Endpoint,
    address=addresses,
    pod=st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d"])),
    hostname=st.sampled_from(["", "a", "b"]),
    ready=st.booleans(),
    terminating=st.booleans(),
)
endpoint_ports = st.builds(
    EndpointPort,
    port=st.sampled_from([8080, 9000]),
    name=st.sampled_from(["", "http", "admin"]),
    protocol=st.sampled_from(["TCP", "UDP"]),
)
slices = st.builds(
    EndpointSlice,
    name=st.sampled_from(["x", "y"]),
    endpoints=st.lists(endpoints, max_size=4).map(tuple),
    ports=st.lists(endpoint_ports, max_size=3).map(tuple),
    address_type=st.sampled_from(["IPv4", "IPv6"]),
)
states = st.builds(
    ServiceState,
    service=st.builds(
        replace, st.sampled_from([SERVICE, HEADLESS]), publish_not_ready_addresses=st.booleans(), selector=st.just({})
    ),
    slices=st.lists(slices, max_size=3).map(tuple),
)


@given(states, st.sampled_from([HTTP, ADMIN, 80, 7777]), st.sampled_from([None, "a", "10-0-0-1"]))
def test_targets_are_ready_pods_of_the_service_each_once(
    found_in: ServiceState, port: ServicePort | int, hostname: str | None
) -> None:
    try:
        found = targets(found_in, port, hostname)
    except KubeTunnelError as e:
        assert e.detail.isprintable()
        assert e.command
        return
    assert found
    assert len({(target.pod_port.pod, target.pod_port.port) for target in found}) == len(found)
    for target in found:
        assert any(target.endpoint in each.endpoints for each in found_in.slices)
        assert target.endpoint.ready or found_in.service.publish_not_ready_addresses
        assert not target.endpoint.terminating
        assert target.endpoint.pod == target.pod_port.pod
        if port == 7777:
            assert target.pod_port.port == 7777
        elif not (found_in.service.headless or hostname):
            assert any(
                (each.port, each.name, each.protocol) == (target.pod_port.port, target.service_port.name, "TCP")
                for slice_ in found_in.slices
                if target.endpoint in slice_.endpoints
                for each in slice_.ports
            )


def some_targets(count: int) -> tuple[Target, ...]:
    return tuple(
        Target(PodPort("shop", f"api-{i}", 8080), Endpoint(f"10.0.0.{i}", pod=f"api-{i}"), HTTP) for i in range(count)
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers())
def test_no_chosen_target_has_more_open_streams_than_another(streams: list[int], seed: int) -> None:
    candidates = some_targets(len(streams))
    load = dict(zip(candidates, streams, strict=True))
    assert load[choose_target(candidates, load.__getitem__, random.Random(seed))] == min(streams)


def test_ties_are_broken_at_random_and_evenly() -> None:
    candidates = some_targets(4)
    rng = random.Random(1)
    load = dict(zip(candidates, [0, 0, 0, 1], strict=True))
    chosen = Counter(choose_target(candidates, load.__getitem__, rng) for _ in range(3000))
    assert set(chosen) == set(candidates[:3])
    assert min(chosen.values()) > 900


@given(st.text(), st.integers(1, 8), st.data())
def test_a_client_keeps_its_pod_while_others_go(client: str, count: int, data: st.DataObject) -> None:
    candidates = some_targets(count)
    chosen = choose_target(candidates, lambda _: 0, random.Random(1), client)
    others = data.draw(st.sets(st.sampled_from(candidates)))
    left = data.draw(st.permutations(sorted(others | {chosen}, key=lambda target: target.pod_port.pod)))
    busiest = {chosen: 99}
    assert choose_target(left, lambda target: busiest.get(target, 0), random.Random(2), client) == chosen


def test_a_client_keeps_its_pod_on_every_port_and_clients_are_spread() -> None:
    candidates = some_targets(4)
    other_port = [replace(each, pod_port=replace(each.pod_port, port=9000)) for each in candidates]
    chosen: Counter[str] = Counter()
    for i in range(1000):
        client = f"10.1.{i // 250}.{i % 250}"
        pod = choose_target(candidates, lambda _: 0, random.Random(i), client).pod_port.pod
        assert choose_target(other_port, lambda _: 0, random.Random(i), client).pod_port.pod == pod
        chosen[pod] += 1
    assert len(chosen) == len(candidates)
    assert min(chosen.values()) > 200
