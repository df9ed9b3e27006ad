"""`kube-tunnel services` against the simulated cluster: names, ports, addresses, and what it says without rights."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kubetunnel.cli.services import command
from kubetunnel.core.names import ServiceName
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.virtual_addresses import VirtualAddresses
from netsetup.layout import DEFAULT_RANGES
from tests.simulated import simulated

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore", DeprecationWarning)
    import kubetunnel.service_list  # noqa: F401 - the command imports it when it runs


@pytest.fixture(scope="module")
def kubeconfigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("sim")

    async def write(cluster: SimCluster) -> None:
        cluster.kubeconfig(directory / "admin")
        cluster.kubeconfig(directory / "limited", user="limited")

    with simulated(write):
        yield directory


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return CliRunner()


def listed(runner: CliRunner, *arguments: object) -> Result:
    return runner.invoke(command, [str(argument) for argument in arguments])


def test_a_table_of_all(runner: CliRunner, kubeconfigs: Path) -> None:
    result = listed(runner, "--kubeconfig", kubeconfigs / "admin")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NAME", "ADDRESS", "PORTS"]
    names = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert names == sorted(names, key=lambda name: name.split(".")[::-1])
    assert {"echo.demo", "echo.other", "kubernetes.default"} <= set(names)
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[1 : lines.index("")]}
    assert rows["external.demo"] == ["-", "ExternalName example.invalid"]
    assert rows["echo-sts.demo"] == ["-", "8080 (http), 9000 (tcp)"]
    assert "NAME.svc.cluster.local" in lines[-1]


def test_json_of_one_namespace(runner: CliRunner, kubeconfigs: Path) -> None:
    result = listed(runner, "--kubeconfig", kubeconfigs / "admin", "-namespace=other", "--json")
    (echo,) = json.loads(result.stdout)
    assert echo["names"] == ["echo.other", "echo", "echo.other.svc", "echo.other.svc.cluster.local"]
    assert echo["ports"] == [{"port": 80, "name": "http", "protocol": "TCP", "appProtocol": None}]
    assert (echo["type"], echo["address"], echo["note"]) == ("ClusterIP", None, "")


def test_a_namespace_with_none_is_told(runner: CliRunner, kubeconfigs: Path) -> None:
    result = listed(runner, "--kubeconfig", kubeconfigs / "admin", "--namespace", "dmo", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    told = "kube-tunnel services: Namespace dmo of context sim has no Services, or is not there. See: kubectl "
    assert result.stderr.startswith(told)
    assert result.stderr.endswith(" get namespaces\n")


async def test_addresses_that_were_assigned(runner: CliRunner, kubeconfigs: Path, tmp_path: Path) -> None:
    kept = VirtualAddresses(DEFAULT_RANGES, path=tmp_path / "kube-tunnel" / "virtual-addresses.json")
    address = await kept.address_of(str(ServiceName("pair", "demo", "cluster.local")))

    def ask() -> dict[str, str | None]:
        found = json.loads(listed(runner, "--kubeconfig", kubeconfigs / "admin", "--json").stdout)
        return {each["names"][0]: each["address"] for each in found}

    addresses = await asyncio.to_thread(ask)
    assert addresses["pair.demo"] == str(address)
    assert addresses["echo.demo"] is None


def test_other_zones_have_full_names_only(runner: CliRunner, kubeconfigs: Path, tmp_path: Path) -> None:
    (tmp_path / "kube-tunnel.yaml").write_text("zones: {prod.local: sim}\n")
    result = listed(runner, "--kubeconfig", kubeconfigs / "admin", "--namespace", "other", "--json")
    if result.exit_code:  # the context has another name
        pytest.fail(result.stderr)
    assert [each["names"] for each in json.loads(result.stdout)][1:] == [["echo.other.svc.prod.local"]]


def test_without_the_right_to_list_all(runner: CliRunner, kubeconfigs: Path) -> None:
    result = listed(runner, "--kubeconfig", kubeconfigs / "limited")
    assert result.exit_code == 0
    assert "echo.demo" in result.stdout
    assert "echo.other" not in result.stdout
    assert result.stderr.startswith("kube-tunnel services: only those of demo: ")
    assert "auth can-i list services" in result.stderr


def test_no_cluster(runner: CliRunner) -> None:
    result = listed(runner, "--kubeconfig", "/nonexistent/kubeconfig")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "/nonexistent/kubeconfig" in result.stderr
