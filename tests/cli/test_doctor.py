"""`kube-tunnel doctor` as a person or a script meets it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import Tunnel, without_proxies

DOCTOR = "from kubetunnel.cli.doctor import command; command(prog_name='kube-tunnel doctor')"


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("kube") / "kubeconfig"

    async def prepare(cluster: SimCluster) -> None:
        cluster.kubeconfig(path)

    with simulated(prepare):
        yield path


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


def doctor(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    ports = [f"--{name}={free_port()}" for name in ("port", "dns-port") if f"--{name}" not in arguments]
    command = [sys.executable, "-c", DOCTOR, "--confdir", str(tmp_path), *ports, *arguments]
    env = without_proxies() | {"KUBECONFIG": "", "HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": ""} | environ
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    document = json.loads(done.stdout)
    assert document["ok"] is (done.returncode == 0)
    return {check["check"]: check for check in document["checks"]}


def test_all_is_well(kubeconfig: Path, tmp_path: Path) -> None:
    done = doctor(tmp_path, KUBECONFIG=str(kubeconfig))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "\x1b" not in done.stdout
    for line in done.stdout.splitlines():
        assert re.match(r"(ok|warn|fail|skip) {2,4}\S| {20,}-> \S", line), line
    assert re.search(r"^ok +API server +https://127\.0\.0\.1:\d+ is Kubernetes v", done.stdout, re.MULTILINE)


def test_without_a_cluster(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    assert done.returncode == 1
    assert checks(done)["kubeconfig"]["level"] == "fail"
    assert "--demo" in checks(done)["kubeconfig"]["mend"]


def test_the_simulated_cluster(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--demo", "--json")
    found = checks(done)
    assert (done.returncode, found["kubeconfig"]["level"], found["API server"]["level"]) == (0, "ok", "ok"), done
    assert found["kubeconfig"]["found"].startswith("context sim, ")


def test_a_context_that_is_not_there(kubeconfig: Path, tmp_path: Path) -> None:
    done = doctor(tmp_path, "--kubeconfig", str(kubeconfig), "--context", "nope")
    assert done.returncode == 1
    told = r"^fail +kubeconfig .*there is no context .nope.*\n +-> kubectl --kubeconfig \S+ config get-contexts"
    assert re.search(told, done.stdout, re.MULTILINE)


def test_a_tunnel_of_ours_and_a_proxy_variable(kubeconfig: Path, tmp_path: Path) -> None:
    with Tunnel(tmp_path, kubeconfig=kubeconfig) as tunnel:
        port = str(tunnel.port)
        done = doctor(
            tmp_path, "--json", "--kubeconfig", str(kubeconfig), "--port", port, HTTPS_PROXY="http://me:pw@corp:3128"
        )
    found = checks(done)
    assert (done.returncode, found["tunnel's port"]["level"]) == (0, "ok")
    assert found["tunnel's port"]["found"] == f"a tunnel of ours runs at 127.0.0.1:{port}"
    assert found["CA"]["level"] == "ok"
    assert found["proxy variables"]["level"] == "warn"
    assert "pw" not in done.stdout


def test_a_taken_port(kubeconfig: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = doctor(tmp_path, "--json", "--kubeconfig", str(kubeconfig), "--port", port)
    found = checks(done)["tunnel's port"]
    assert (done.returncode, found["level"]) == (1, "fail")
    assert found["found"].startswith(f"127.0.0.1:{port} is taken by ")


def test_a_mistake(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--port", "70000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--port" in done.stderr


def test_the_settings_decide(kubeconfig: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"""
proxy: {{port: 18080}}
dns: {{port: 15353}}
cluster: {{kubeconfig: {kubeconfig}, zone: corp.example}}
zones: {{prod.example: production}}
network: {{ip_ranges: [10.77.0.0/24]}}
"""
    )
    command = [sys.executable, "-c", DOCTOR, "--json", "--config", str(file), "--confdir", str(tmp_path)]
    env = without_proxies() | {"KUBECONFIG": "", "HOME": str(tmp_path), "KTUN_DNS_PORT": "15354"}
    found = json.loads(subprocess.run(command, capture_output=True, timeout=30, env=env, check=False).stdout)["checks"]
    told = "\n".join(f"{check['check']}: {check['found']}" for check in found)
    for text in ("tunnel's port: 127.0.0.1:18080", "DNS port: 127.0.0.1:15354", "virtual IP ranges: 10.77.0.0/24"):
        assert text in told
    assert sum(check["check"] == "DNS path" for check in found) == 2
