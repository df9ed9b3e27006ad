"""The metrics: documented, named as is the custom, bounded, and all that the monitoring files ask for exists."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kubetunnel.core.catalog import Service, ServiceState
from kubetunnel.core.settings import Settings
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.forward_totals import ForwardTotals
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.known_services import KnownServices
from kubetunnel.observe.metrics import METRICS, Metrics
from kubetunnel.observe.sources import HealthPolicy
from kubetunnel.observe.traffic import Done, ServiceKey, Traffic
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from netsetup.dns_responder import DnsFacts

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
NAME = re.compile(r"\bkube_tunnel_\w+")
EXPOSED = {name for metric in METRICS for name in metric.exposed}
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Names:
    """A DNS server's facts."""

    dns_address = ("127.0.0.1", 5353)

    def dns_facts(self) -> DnsFacts:
        return DnsFacts({("A", "NOERROR"): 3}, 1, 2, 0, 0)

    def dns_queries(self) -> tuple[()]:
        return ()

    def assigned(self, name: str) -> str | None:
        return None


@pytest.fixture
def known() -> KnownServices:
    return KnownServices(EventLog())


@pytest.fixture
def metrics(known: KnownServices) -> Metrics:
    settings = Settings()
    clusters = Clusters(settings)
    events, traffic = EventLog(), Traffic()
    forwards = ForwardTotals(events)
    checks = HealthChecks(Router(settings, clusters), traffic, events, HealthPolicy, lambda key, port: _no_check())
    key = ServiceKey("cluster.local", "shop", 'a"pi\n\\')  # no Service is named so; a label may hold anything
    service = traffic.of(key)
    traffic.add(service, Done("http1", "200", False, 0.02, 0.01, 10, 2000), 0.0)
    traffic.add(service, Done("grpc", "14", True, 70.0, 0.01), 0.0)
    traffic.refuse("Timeout")
    service.setups.add(0.003)
    checks.totals[key] = (3, 1)
    return Metrics(traffic, forwards, known, checks, Names(), lambda: {"cluster.local": 2})


def parsed(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def _no_check() -> Any:
    raise AssertionError("nothing is checked here")


def test_every_metric_is_documented_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    documented = {(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    there = {
        (metric.exposed[0] if metric.kind == "counter" else metric.name, metric.kind, metric.labels, metric.help)
        for metric in METRICS
    }
    assert documented == there


def test_the_exposition_has_all_metrics_and_only_these(metrics: Metrics) -> None:
    text, content_type = asyncio.run(metrics.expose(""))
    assert content_type.startswith("text/plain")
    families = parsed(text)
    assert set(families) == {metric.name for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name]
        assert family.type == metric.kind
        for sample in family.samples:
            assert sample.name in metric.exposed
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_values(metrics: Metrics) -> None:
    families = parsed(asyncio.run(metrics.expose(""))[0])

    def value(family: str, name: str, **labels: str) -> float:
        (found,) = [
            sample.value
            for sample in families[family].samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return found

    durations = "kube_tunnel_request_duration_seconds"
    assert value("kube_tunnel_requests", "kube_tunnel_requests_total", protocol="http1", code="200") == 1
    assert value(durations, f"{durations}_bucket", protocol="http1", le="0.01") == 0
    assert value(durations, f"{durations}_bucket", protocol="http1", le="0.025") == 1
    assert value(durations, f"{durations}_bucket", protocol="grpc", le="60.0") == 0
    assert value(durations, f"{durations}_bucket", protocol="grpc", le="+Inf") == 1
    assert value(durations, f"{durations}_count", protocol="grpc") == 1
    assert value("kube_tunnel_watch_restarts", "kube_tunnel_watch_restarts_total", zone="cluster.local") == 2
    assert value("kube_tunnel_dns_answers", "kube_tunnel_dns_answers_total", type="A", code="NOERROR") == 3
    assert metrics.totals()["requests"] == {"200": 1.0, "14": 1.0}


def test_an_alias_is_not_told_to_be_without_endpoints(metrics: Metrics, known: KnownServices) -> None:
    """Or the alert for Services that are would be of it, too."""
    told: list[Callable[..., None]] = []

    def subscribe(changed: Callable[..., None]) -> Callable[[], None]:
        told.append(changed)
        return told.clear

    discovery = SimpleNamespace(subscribe=subscribe, watched=dict, read_at=lambda namespace, name: time.time())
    session: Any = SimpleNamespace(discovery=discovery)
    known.follow({"cluster.local": session})
    for service in (Service("shop", "empty"), Service("shop", "alias", type="ExternalName", external_name="a.example")):
        told[0](service.namespace, service.name, ServiceState(service, ()))
    samples = parsed(asyncio.run(metrics.expose(""))[0])["kube_tunnel_endpoints"].samples
    assert {sample.labels["service"] for sample in samples} == {"empty"}


def test_openmetrics_too(metrics: Metrics) -> None:
    text, content_type = asyncio.run(metrics.expose(OPENMETRICS))
    assert content_type.startswith("application/openmetrics-text")
    families = parse_openmetrics(text.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == {metric.name for metric in METRICS}


def promtool(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not there (Debian: prometheus)")
    return subprocess.run([program, *arguments], input=stdin, capture_output=True, timeout=30)


def test_promtool_finds_nothing_in_the_exposition(metrics: Metrics) -> None:
    done = promtool("check", "metrics", stdin=asyncio.run(metrics.expose(""))[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_takes_rules_and_configuration() -> None:
    done = promtool("check", "config", str(MONITORING / "prometheus.yml"))
    assert done.returncode == 0, done.stderr
    done = promtool("check", "rules", "--lint-fatal", str(MONITORING / "alerts.yml"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("protocol", "code", "alerts"),
    [("http1", "503", True), ("http1", "404", False), ("http1", "cut", True), ("tcp", "error", True)]
    + [("grpc", str(code), code in (2, 4, 12, 13, 14, 15)) for code in range(17)],
)
def test_the_alert_knows_the_failures_of_each_protocol(tmp_path: Path, protocol: str, code: str, alerts: bool) -> None:
    labels = {"zone": "cluster.local", "namespace": "shop", "service": "api"}
    series = ",".join(f'{name}="{value}"' for name, value in {**labels, "protocol": protocol, "code": code}.items())
    summary = "api in shop fails 100% of its requests."
    fired = {"exp_labels": {**labels, "severity": "warning"}, "exp_annotations": {"summary": summary}}
    case = {
        "interval": "1m",
        "input_series": [{"series": f"kube_tunnel_requests_total{{{series}}}", "values": "0+60x20"}],
        "alert_rule_test": [
            {"eval_time": "15m", "alertname": "KubeTunnelServiceFails", "exp_alerts": [fired] if alerts else []}
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yml")], "tests": [case]}))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of dashboards and rules, and where it is."""
    for path in sorted((MONITORING / "grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{path.name}: ${variable['name']}", variable["query"]["query"]
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alerts.yml: {rule['alert']}", rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda text: text[:40])
def test_every_query_asks_for_what_there_is(where: str, expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names or expression.startswith("up{"), where
    assert names <= EXPOSED, where
    labels = {label for metric in METRICS if names & set(metric.exposed) for label in metric.labels} | {"le"}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels, where
    if names:
        for matcher in re.findall(r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|=|!~)", matcher)) <= labels, where


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = []
    for number, (where, expression) in enumerate(expressions()):
        found = re.fullmatch(r"label_values\((.*), \w+\)", expression)
        query = (found[1] if found else expression).replace("$__rate_interval", "1m").replace("$__range", "1h")
        rules.append({"record": f"query:{number}", "expr": re.sub(r"\$\w+", "x", query), "labels": {"of": where}})
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{len(rules)} rules found" in (done.stderr + done.stdout).decode()


def test_every_metric_is_in_a_dashboard_or_a_rule() -> None:
    asked = {name for _, expression in expressions() for name in NAME.findall(expression)}
    assert [metric.name for metric in METRICS if not asked & set(metric.exposed)] == []


def test_panels_can_be_read_by_grafana() -> None:
    for path in sorted((MONITORING / "grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        cells = [
            (panel["gridPos"]["y"] + y, panel["gridPos"]["x"] + x)
            for panel in dashboard["panels"]
            for y in range(panel["gridPos"]["h"])
            for x in range(panel["gridPos"]["w"])
        ]
        assert len(set(cells)) == len(cells), "panels overlap"
        assert max(x for _, x in cells) < 24
