"""The scripts that people run: their help, their dry run, their mistakes, and what they print of a real run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.netsetup.private_network import why_not
from tests.tunnel import ROOT, without_proxies

SCRIPTS = ROOT / "scripts"
NAMES = ("perf-test.sh", "health-demo.sh", "test-virtual-interface.sh")
TIMEOUT_S = 110


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / name), *arguments], capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**without_proxies(), **environment},
    )  # fmt: skip


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    files = [path.name for path in SCRIPTS.glob("*.sh")]
    done = subprocess.run(["shellcheck", "-x", *files], capture_output=True, text=True, cwd=SCRIPTS, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_has_every_flag(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    flags = set(re.findall(r"^    (?:-h \| )?(--[a-z-]+)", (SCRIPTS / name).read_text(), re.MULTILINE))
    assert {"--help", "--dry-run"} <= flags
    assert flags <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("perf-test.sh", (), "echo.demo.svc.cluster.local"),
        ("perf-test.sh", ("--service", "api.shop:81", "--", "--context", "staging"), "--context staging"),
        ("health-demo.sh", (), "unready.demo.svc.cluster.local"),
        ("health-demo.sh", ("--virtual-interface", "--vi-ip", "10.8.0.9"), "--virtual-ip 10.8.0.9"),
        ("test-virtual-interface.sh", ("quick",), "unshare"),
    ],
)
def test_a_dry_run_runs_nothing(name: str, arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    witness = tmp_path / "kube-tunnel"
    witness.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    witness.chmod(0o755)
    done = run(name, "--dry-run", *arguments, KUBE_TUNNEL=str(witness))
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("perf-test.sh", ("--requests", "many")),
        ("perf-test.sh", ("--requests",)),
        ("perf-test.sh", ("--service", "localhost:8080")),
        ("perf-test.sh", ("--service", "kube-tunnel.internal", "--path", "/health")),
        ("health-demo.sh", ("--vi-ip", "10.8.0.9")),
        ("test-virtual-interface.sh", ()),
        ("test-virtual-interface.sh", ("slowly",)),
    ],
)
def test_mistakes(name: str, arguments: tuple[str, ...]) -> None:
    done = run(name, *arguments, KUBE_TUNNEL="/bin/false")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: ")


def test_perf_test_measures_requests_that_pods_answer(tmp_path: Path) -> None:
    done = run("perf-test.sh", "--requests", "8", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(.*?) +(\d+) requests/s +p50 +([\d.]+) +p90 +([\d.]+) +p99 +([\d.]+) ms$", done.stdout, re.M)
    assert len(rows) == 4, done.stdout
    for _, _, *percentiles in rows:
        numbers = [float(text) for text in percentiles]
        assert 0 < numbers[0] <= numbers[1] <= numbers[2]
    assert re.search(r"one large answer +\d+ MB/s \(104 MB\)", done.stdout)


def test_perf_test_counts_no_refusal() -> None:
    done = run("perf-test.sh", "--requests", "8", "--path", "/status?code=404")
    assert done.returncode == 1
    assert "with HTTP 404" in done.stderr
    assert "requests/s" not in done.stdout


def test_health_demo_shows_each_case() -> None:
    done = run("health-demo.sh")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^echo-\S+\nHTTP 200$", done.stdout, re.MULTILINE)
    for reason in ("NoReadyEndpoints", "ConnectionRefused", "ServiceNotFound"):
        assert f'"reason": "{reason}"' in done.stdout
    _, _, checked = done.stdout.partition("/health/status\n")
    services = {each["service"]: each for each in json.loads(checked)["services"]}
    found = {(each["port"], each["health"]) for each in services["echo"]["checked"] if each["checks"]}
    assert {(8080, "healthy"), (9999, "unhealthy")} <= found
    assert services["unready"]["ready"] == 0


def test_virtual_interface_quick() -> None:
    if reason := why_not():
        pytest.skip(reason)
    for program in ("dig", "curl", "pkill"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    done = run("test-virtual-interface.sh", "quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("4 passed, 0 failed\n")
