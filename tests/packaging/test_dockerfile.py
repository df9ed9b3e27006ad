"""The Dockerfile without Docker: its sources exist, its commands parse, its health check tells well from ill."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kubetunnel.cli import main as cli
from tests.tunnel import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M), re.M)


def of(keyword: str) -> list[str]:
    return [arguments for name, arguments in INSTRUCTIONS if name == keyword]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    sources = [word for line in of("COPY") if not line.startswith("--from") for word in line.split()[:-1]]
    assert {"addons", "netsetup", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatchcase(source, pattern) for pattern in kept), source
    # what the build backend reads of the tree
    assert {"README.md", "LICENSE"} <= set(sources)


def test_it_is_not_root_and_has_no_secret() -> None:
    assert of("USER") == ["65532:65532"]
    assert INSTRUCTIONS.index(("USER", "65532:65532")) < INSTRUCTIONS.index(("ENTRYPOINT", of("ENTRYPOINT")[0]))
    assert not re.search(r"(?i)(password|token|secret)\s*=", DOCKERFILE)


class Started(Exception):  # noqa: N818 - no error
    """mitmproxy would run now."""


@pytest.mark.parametrize("of_deployment", [False, True])
def test_its_command_line_parses(of_deployment: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[str] = json.loads(of("CMD")[0])
    if of_deployment:
        deployment = yaml.safe_load((ROOT / "deploy" / "base" / "deployment.yaml").read_text())
        given = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    started: list[Sequence[str]] = []

    def instead(program: str, arguments: Sequence[str]) -> int:
        started.append(arguments)
        raise Started

    assert json.loads(of("ENTRYPOINT")[0]) == ["kube-tunnel"]
    monkeypatch.setattr(cli, "run_mitmproxy", instead)
    monkeypatch.chdir(tmp_path)
    result = CliRunner(env={"HOME": str(tmp_path), "KUBECONFIG": "/some/kubeconfig"}).invoke(cli.main, given)
    assert isinstance(result.exception, Started), result.output
    assert started[0][-1] == "--listen-host=0.0.0.0"
    assert "8080" in " ".join(started[0])


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check(status: int, healthy: bool) -> None:
    command = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    with answering(status) as port:
        code = command[2].replace(":8080/", f":{port}/")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert (done.returncode == 0) is healthy
