"""The YAML of the pages: settings that the program takes, and the README's Role, with which everything works."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kubetunnel.cli.config import command
from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.rbac import Rule
from tests.readme.blocks import Block
from tests.readme.test_pages import BLOCKS
from tests.simulated import simulated
from tests.tunnel import Tunnel

YAML = [block for block in BLOCKS if block.language == "yaml"]
SETTINGS = [block for block in YAML if "apiVersion" not in block.text]
ROLES = [block for block in YAML if "kind: Role" in block.text]


def test_each_is_looked_at() -> None:
    assert SETTINGS
    assert len(ROLES) == 1
    assert len(SETTINGS) + len(ROLES) == len(YAML)


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: f"{block.page}:{block.line}")
def test_settings_are_taken(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kube-tunnel.yaml"
    file.write_text(block.text)
    (tmp_path / "shop-ca.pem").write_text(CertificateAuthority("shop-ca").certificate_pem)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["--config", str(file)])
    assert result.exit_code == 0, result.output
    section = next(iter(yaml.safe_load(block.text)))
    assert [line for line in result.output.splitlines() if line.startswith(section) and str(file) in line], (
        result.output
    )


def test_the_role_is_enough(tmp_path: Path) -> None:
    """One who has these rights alone reaches a Service, a pod by its name and one by its address."""
    role = yaml.safe_load(ROLES[0].text)
    kubeconfig = tmp_path / "kubeconfig"
    addresses: list[str] = []

    async def prepare(cluster: SimCluster) -> None:
        rules = [Rule(rule["verbs"], rule["resources"], namespaces=["demo"]) for rule in role["rules"]]
        cluster.user("reader", rules)
        cluster.kubeconfig(kubeconfig, user="reader")
        addresses.extend(pod.address for pod in cluster.pods("demo", app="echo-sts"))

    with simulated(prepare), Tunnel(tmp_path, kubeconfig=kubeconfig) as tunnel:
        by_address = f"{addresses[0].replace('.', '-')}.demo.pod.cluster.local:8080"
        for host in ("echo.demo", "echo-sts-0.echo-sts.demo.svc.cluster.local:8080", by_address):
            answer = tunnel.get(host)
            assert answer.status == 200, (host, answer.text)
            assert answer.text.startswith("echo-")
        assert tunnel.get("echo.other").reason == "Forbidden"
