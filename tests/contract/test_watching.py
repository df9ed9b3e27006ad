"""What is told of a tunnel in use: health by each kind of check, metrics, where a flow went, gRPC by field names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.conftest import ClusterUnderTest
from tests.contract.test_grpc import LIMIT_S, Echo, String, open_channel
from tests.inspect.conftest import Web
from tests.tunnel import curl

ECHO = "echo.demo.svc.cluster.local"
REFUSED = 9999  # a port of the Service on which no pod listens
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def web(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    options = [
        "--set", "kube_health_interval=2s",
        "--set", "kube_services=echo.demo:80 health=http:/healthz",
        "--set", "kube_services=echo.demo:9090 health=grpc",
    ]  # fmt: skip
    with Web(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig, options=options) as started:
        assert started.get(ECHO).status == 200
        assert started.get(f"{ECHO}:{REFUSED}").reason == "ConnectionRefused"
        with open_channel(started, f"{ECHO}:9090") as channel:
            assert Echo(channel).unary(String(value="by its name"), timeout=LIMIT_S).value == "by its name"
        yield started
        assert "Traceback" not in started.log, started.log


def until[T](ask: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while (found := ask()) is None:
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


def test_health_by_each_kind_of_check(web: Web) -> None:
    def checked() -> dict[int, set[tuple[str, str]]] | None:
        (service,) = curl(f"{web.url}/health/status").json["services"]
        found: dict[int, set[tuple[str, str]]] = {}
        for check in service["checked"]:
            found.setdefault(check["port"], set()).add((check["health"], check["detail"].partition(" of pod")[0]))
        whole = len(service["checked"]) == 6 and all(check["health"] != "unknown" for check in service["checked"])
        return found if whole and service["latency_ms"] is not None else None

    assert until(checked) == {
        8080: {("healthy", "HTTP status 200")},
        9090: {("healthy", "SERVING")},
        REFUSED: {("unhealthy", f"Nothing listens on port {REFUSED}")},
    }
    service = curl(f"{web.url}/api/v1/services/cluster.local/demo/echo").json
    assert service["health"] == "degraded"
    for pod in service["pods"]:
        assert pod["failing"] == f"port {REFUSED}: Nothing listens on port {REFUSED} of pod demo/{pod['pod']}."


def test_metrics(web: Web) -> None:
    families = {family.name: family for family in text_string_to_metric_families(curl(f"{web.url}/metrics").text)}

    def total(name: str, **labels: str) -> float:
        samples = families[name].samples
        return sum(s.value for s in samples if s.name.endswith("_total") and labels.items() <= s.labels.items())

    requests = "kube_tunnel_requests"
    assert total(requests, service="echo", protocol="http1", code="200") == 1
    assert total(requests, service="echo", protocol="http1", code="502") == 1
    assert total(requests, service="echo", protocol="grpc", code="0") == 1
    assert total("kube_tunnel_refusals", reason="ConnectionRefused") == 1
    assert total("kube_tunnel_stream_received_bytes", zone="cluster.local") > 0


def test_a_call_shows_names_of_fields_and_its_pod(web: Web) -> None:
    (flow,) = [each for each in web.flows() if each["request"]["path"] == "/echo.v1.Echo/Unary"]
    assert flow["request"]["host"] == ECHO
    assert ":9090" in flow["comment"]

    def named() -> Any:
        shown = web.content(flow, "response", "auto")
        return shown["text"] if "google.protobuf.StringValue" in shown["text"] else None

    assert "by its name" in until(named)
    view = web.content(flow, "response", "Kubernetes")["text"]
    assert f"service: {ECHO}:9090\n" in view
    assert f"pod: demo/{flow['comment'].partition(':')[0]}\n" in view
    until(lambda: True if "  app: echo\n" in web.content(flow, "response", "Kubernetes")["text"] else None)
    (service,) = web.table("kube.services")
    assert (service["service"], service["ready"]) == (ECHO, "2/2")
