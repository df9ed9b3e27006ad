"""The tunnel's own pages against their OpenAPI document, by a client that is made from it (schemathesis)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import ROOT, Tunnel, without_proxies

EXAMPLES = 20  # of each operation, beside the cases at the edges of its parameters
TIMEOUT_S = 100.0  # of some ten seconds on a machine at rest

needs_schemathesis = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not there (pip install --group dev)"
)


async def nothing(cluster: SimCluster) -> None:
    """The demo is there."""


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    directory = tmp_path_factory.mktemp("tunnel")
    with simulated(nothing) as cluster, Tunnel(directory, kubeconfig=cluster.kubeconfig(directory / "config")) as made:
        for service in ("echo", "pair", "unready"):
            made.get(f"{service}.demo")
        yield made
        assert "Traceback" not in made.log, made.log


def test_the_page_about_it_is_what_is_made_of_it() -> None:
    command = [sys.executable, ROOT / "scripts" / "api_docs.py"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (ROOT / "docs" / "api.md").read_text() == made, "make docs"


@needs_schemathesis
def test_the_answers_are_as_described(tunnel: Tunnel, tmp_path: Path) -> None:
    token = tunnel.wait_for(r"/dashboard#token=(\S+)")[1]
    command = [
        Path(sys.executable).parent / "schemathesis", "run", f"{tunnel.url}/api/v1/openapi.json",
        "--header", f"X-Kube-Tunnel-Token: {token}", "--header", f"Origin: {tunnel.url}",
        "--exclude-path", "/api/v1/events",  # it does not end; test_pages listens to it
        "--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--no-shrink",
        "--request-timeout", "20", "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path,
        env={**without_proxies(), "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "15 passed" in done.stdout, done.stdout  # of 16 operations: a run that tests nothing passes, too
