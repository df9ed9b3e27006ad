"""The commands of the pages that are not simply run: why, and what is done instead or looked at.

All others are typed as they stand and have to end with status 0 (curl: an answer below 400).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import yaml

from tests.tunnel import ROOT


@dataclass(frozen=True)
class Ends:
    """It ends: with this status, and says this. `alone`: the reader has stopped the tunnel before."""

    says: str
    status: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Runs:
    """It runs until it is stopped; what tells that it works.

    Args:
        beside: the tunnel goes on meanwhile.
        start: what is started in its place.
    """

    try_this: str
    says: str
    ready: str = r"listening at"
    beside: bool = False
    start: str | None = None


@dataclass(frozen=True)
class Instead:
    """It cannot be run here, for this reason; this is, and has to say that."""

    reason: str
    run: str
    says: str


def _gateway() -> str:
    deployment = yaml.safe_load((ROOT / "deploy" / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return shlex.join(["kube-tunnel", *container["args"]])


API = "curl -x http://127.0.0.1:8080 http://api.shop/hostname"
API_BY_NAME = "curl http://api.shop.svc.cluster.local/hostname"
FROM_API = r"^api-\w+"
LOOPBACK = 'address=$(dig @127.0.0.1 -p 5353 +short api.shop.svc.cluster.local) && echo "$address" && '
LOOPBACK += "curl http://$address:10080/hostname"
WITH_PASSWORD = "curl -x http://dev:secret@172.17.0.1:8080 http://api.shop/hostname"
REFUSED = "! curl -o /dev/null -x http://172.17.0.1:8080 http://api.shop/hostname 2>/dev/null"
ADDRESS = r"(?m)^10\.[89]\.\d+\.\d+$"  # of the first two ranges' either
PSQL_ON = "psql -h 127.0.0.1 -p 15432 -U shop -c 'select 1'"
ONE_ROW = r"\(1 row\)"
IN_DEPLOY = "the simulated cluster takes no objects; tests/packaging/test_deploy.py holds the manifests together"
IN_SCRIPTS = "tests/packaging/test_scripts.py runs it"
TAKES_LONG = "it installs from the network, which tests/packaging/test_wheel.py does once"

# regular expressions for whole commands; the first that fits
SPECIAL: dict[str, Ends | Runs | Instead] = {
    # what ends, and more than its status is known
    r"curl .* http://unready\.demo/": Ends("NoReadyEndpoints", status=22),
    r"curl .*(echo\.demo|api\.shop)\S*/hostname": Ends(r"^(echo|api)-\w+"),
    r"curl .*/health/status": Ends(r'"echo\.demo|echo'),
    r"dig @10\.8\.0\.1 .*": Ends(ADDRESS),
    r"dig @127\.0\.0\.1 .*": Ends(r"(?m)^(127\.64|10\.[89])\.\d+\.\d+$"),
    r"ip addr .*": Ends(r"kube-dns0[\s\S]*kube-proxy0"),
    r"grpcurl .* list|kube-tunnel run -- grpcurl .* list": Ends(r"echo\.v1\.Echo"),
    r"(kube-tunnel run --isolate -- )?psql .*": Ends(ONE_ROW),
    r"redis-cli .* ping": Ends("PONG"),
    r"docker run .*|chromium .*": Ends('"pod"|api-'),
    r"kube-tunnel services": Ends(r"(?m)^api\.shop "),
    r"kube-tunnel doctor": Ends("cluster", alone=True),
    r"kube-tunnel --version": Ends(r"kube-tunnel, version \d"),
    r"kube-tunnel ca": Ends("mitmproxy-ca-cert"),
    r"kube-tunnel config": Ends("retry.max"),
    r"kube-tunnel run --context production -- python3 .*": Ends(r"(?m)^OK$"),
    r"(sudo )?kube-tunnel netsetup (up|down|up --dry-run)": Ends("", alone=True),
    # what runs until it is stopped
    r"kube-tunnel demo": Runs("curl -x http://127.0.0.1:8080 http://echo.demo/hostname", r"^echo-\w+"),
    r"kube-tunnel": Runs(API, FROM_API),
    r"kube-tunnel --web": Runs(f"{API} && true <>/dev/tcp/127.0.0.1/8081", FROM_API),
    r"(mitmdump|mitmweb) -s .*": Runs(API, FROM_API),
    r"sudo (KTUN_USE_VIRTUAL=true .* )?kube-tunnel( --virtual| -port=8080 -virtual .*)?": Runs(API_BY_NAME, FROM_API),
    r"kube-tunnel -config config\.yaml -verbose": Runs(API, FROM_API),
    r"kube-tunnel --loopback": Runs(LOOPBACK, r"^127\.64\.\d+\.\d+\napi-"),
    r"kube-tunnel -- --listen-host 172\.17\.0\.1 .*": Runs(f"{WITH_PASSWORD} && {REFUSED}", FROM_API),
    r"kube-tunnel --set kube_zones=.*": Runs(
        "curl -x http://127.0.0.1:8080 http://api.shop.svc.prod.local/hostname", FROM_API
    ),
    r"kube-tunnel --set kube_services=.*": Runs(
        "curl -k -x http://127.0.0.1:8080 https://secure.shop.svc.cluster.local/hostname", "^secure-0"
    ),
    r"kube-tunnel --port 9090 -- -w flows": Runs(
        "curl -x http://127.0.0.1:9090 http://api.shop/hostname && test -e flows", FROM_API
    ),
    r"kube-tunnel forward svc/db .*": Runs(PSQL_ON, ONE_ROW, ready="Forwarding from", beside=True),
    r"kube-tunnel forward deploy/api .*": Runs(
        "curl http://127.0.0.1:18080/hostname", FROM_API, ready="(Forwarding from[^\n]*\n){2}", beside=True
    ),
    # the Deployment's own command line, with the Secrets that the page has made
    r"kubectl apply -k deploy/overlays/some-namespaces": Runs(
        "curl http://172.17.0.1:8080/health", '"status": "ok"', start=_gateway()
    ),
    # what is not run
    r"resolvectl status .*": Instead(
        "systemd-resolved runs in tests/netsetup/test_systemd_resolved.py",
        "ip -brief address show kube-dns0",
        r"10\.8\.0\.1/",
    ),
    r"scripts/perf-test\.sh": Instead(IN_SCRIPTS, "scripts/perf-test.sh --dry-run", "curl"),
    r"(sudo )?scripts/health-demo\.sh": Instead(IN_SCRIPTS, "scripts/health-demo.sh --dry-run", "curl"),
    r"sudo scripts/health-demo\.sh --virtual-interface --vi-ip 10\.9\.0\.5": Instead(
        IN_SCRIPTS, "scripts/health-demo.sh --virtual-interface --vi-ip 10.9.0.5 --dry-run", "--virtual-ip 10.9.0.5"
    ),
    r"sudo scripts/test-virtual-interface\.sh quick": Instead(
        IN_SCRIPTS, "scripts/test-virtual-interface.sh quick --dry-run", "unshare"
    ),
    r"sudo scripts/test-virtual-interface\.sh comprehensive": Instead(
        IN_SCRIPTS, "scripts/test-virtual-interface.sh comprehensive --dry-run", "unshare"
    ),
    r"make run": Instead(TAKES_LONG, "make -n run", r"-m kubetunnel"),
    # deploy/, certs/, monitoring/
    r"docker build -t \S+ \. && docker push \S+": Instead(
        "there is no engine; tests/packaging/test_dockerfile.py reads the Dockerfile", "grep -c ^FROM Dockerfile", "2"
    ),
    r"docker compose -f monitoring/compose\.yaml up -d": Instead(
        "there is no engine; tests/observe/test_metrics.py holds dashboards and metrics together",
        "cd monitoring && grep -o '\\./[^:]*' compose.yaml | xargs ls -d",
        r"\./prometheus\.yml",
    ),
    r"open http://127\.0\.0\.1:3000": Instead(
        "Grafana's page", "grep GF_SERVER_HTTP_PORT monitoring/compose.yaml", '"3000"'
    ),
    r"kubectl apply -f deploy/base/namespace\.yaml": Instead(
        IN_DEPLOY, "grep name: deploy/base/namespace.yaml", "name: kube-tunnel"
    ),
    r"kubectl label namespace ci kube-tunnel/client=true": Instead(
        IN_DEPLOY, "grep kube-tunnel/client deploy/base/networkpolicy.yaml", 'kube-tunnel/client: "true"'
    ),
    r"python3 -m venv ~/kube-tunnel": Instead(
        TAKES_LONG, "python3 -m venv --without-pip ~/kube-tunnel && ls ~/kube-tunnel/bin", "python3"
    ),
    r"~/kube-tunnel/bin/pip install \.": Instead(
        TAKES_LONG,
        f"cd {ROOT} && python3 -m pip install --dry-run --no-deps --no-index --no-build-isolation .",
        "Would install kube-tunnel",
    ),
}
