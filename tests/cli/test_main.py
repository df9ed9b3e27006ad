"""The command `kube-tunnel`: flags as Go and as click write them, mistakes told at once, and what reaches mitmproxy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kubetunnel.cli import main as cli
from kubetunnel.cli.setting_flags import as_click_has_them, flag_options
from tests.tunnel import ADDON


class Started(Exception):  # noqa: N818 - no error
    """mitmproxy would run now, with these arguments."""

    def __init__(self, program: str, arguments: Sequence[str]) -> None:
        super().__init__(program, arguments)
        self.program, self.arguments = program, list(arguments)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    def instead(program: str, arguments: Sequence[str]) -> int:
        raise Started(program, arguments)

    monkeypatch.setattr(cli, "run_mitmproxy", instead)
    monkeypatch.chdir(tmp_path)
    return CliRunner(env={"KUBECONFIG": "/some/kubeconfig", "XDG_CONFIG_HOME": str(tmp_path)})


def started(runner: CliRunner, *arguments: str) -> Started:
    error = runner.invoke(cli.main, arguments).exception
    assert isinstance(error, Started), error
    return error


def test_without_anything_it_is_mitmdump_with_the_addon(runner: CliRunner) -> None:
    run = started(runner)
    assert (run.program, run.arguments) == ("mitmdump", ["-s", str(ADDON)])


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (("-port=9090",), ("--set", "kube_proxy_port=9090")),
        (("--port", "9090"), ("--set", "kube_proxy_port=9090")),
        (("-p9090",), ("--set", "kube_proxy_port=9090")),
        (("-context=prod", "-verbose"), ("--set", "kube_context=prod", "--set", "kube_log_level=debug")),
        (("--max-retries", "0"), ("--set", "kube_retry_max=0")),
        (("-demo",), ("--set", "kube_demo=true")),
        (("-demo=false",), ("--set", "kube_demo=false")),
        (("--no-demo",), ("--set", "kube_demo=false")),
        (("--set", "a=1", "--set", "b=2"), ("--set", "a=1", "--set", "b=2")),
        (("-q", "--", "-w", "ca"), ("--set", "kube_log_level=quiet", "-w", "ca")),
    ],
)
def test_what_reaches_mitmproxy(runner: CliRunner, arguments: tuple[str, ...], passed: tuple[str, ...]) -> None:
    assert started(runner, *arguments).arguments == ["-s", str(ADDON), *passed]


def test_what_is_not_ours_to_read_is_left_as_it_is() -> None:
    words = ["-port", "80", "-dns=false", "--context", "run", "run", "--", "prog", "-dns=false", "--demo=x"]
    assert as_click_has_them(words, flag_options()) == ["-port", "80", "--no-dns", *words[3:]]


@pytest.mark.parametrize("given", ["INFO", "info"])
def test_levels_are_written_as_others_do(runner: CliRunner, given: str) -> None:
    runner.env["LOG_LEVEL"] = given
    assert started(runner)


def test_the_cluster_is_that_of_the_settings(runner: CliRunner, tmp_path: Path) -> None:
    runner.env.update({"KUBECONFIG": "", "HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": ""})
    (tmp_path / "kube-tunnel.yaml").write_text("cluster: {kubeconfig: /srv/staging}")
    assert "kube_demo=true" not in started(runner).arguments


def test_the_other_faces_of_mitmproxy(runner: CliRunner) -> None:
    assert started(runner, "--web").program == "mitmweb"
    assert started(runner, "--tui").program == "mitmproxy"


def test_the_demo_where_there_is_no_cluster(runner: CliRunner, tmp_path: Path) -> None:
    runner.env.update({"KUBECONFIG": "", "HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": ""})
    assert started(runner).arguments[:2] == ["--set", "kube_demo=true"]
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert "kube_demo=true" not in started(runner).arguments


def test_the_demo_where_sudo_has_kept_the_kubeconfig(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubetunnel.cli.virtual.run_with_network", lambda _settings, _port, run: run())
    runner.env.update({"KUBECONFIG": None, "HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": ""})
    assert "sudo --preserve-env=KUBECONFIG" in runner.invoke(cli.main, ["--virtual"]).output
    assert "preserve-env" not in runner.invoke(cli.main, []).output


def test_no_demo_in_the_place_of_a_context_that_was_asked_for(runner: CliRunner, tmp_path: Path) -> None:
    runner.env |= {"KUBECONFIG": "", "HOME": str(tmp_path)}
    assert "kube_demo=true" not in started(runner, "--context=prod").arguments


def test_the_terminals_mitmproxy_says_that_it_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_mitmproxy("mitmproxy", []) == 1
    assert capsys.readouterr().err.startswith("kube-tunnel: --tui needs a terminal")


def test_all_mistakes_are_told_at_once(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "kube-tunnel.yaml").write_text("retry: {max: 11}")
    runner.env["KTUN_GRPC_TIMEOUT"] = "0s"
    result = runner.invoke(cli.main, ["--max-retries=x"])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "kube-tunnel: flag: --max-retries: 'x' is not a whole number",
        "kube-tunnel: environment: KTUN_GRPC_TIMEOUT: 0s is less than 1ms",
        "kube-tunnel: kube-tunnel.yaml: retry.max: 11 is more than 10",
    ]


def test_the_file_of_an_option_is_read_in_the_place_of_the_usual_one(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "kube-tunnel.yaml").write_text("retry: {max: 11}")
    (tmp_path / "other.yaml").write_text("retry: {delay: soon}")
    result = runner.invoke(cli.main, ["--set", "kube_config=other.yaml"])
    assert result.exit_code == 2
    assert result.output.startswith("kube-tunnel: other.yaml: retry.delay: 'soon'")
    assert "retry.max" not in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--config", "/nope"), "kube-tunnel: flag: --config: '/nope' is no file"),
        (("-demo=maybe",), "'maybe' is neither true nor false"),
        (("--prot", "80"), r"No such option '--prot'.*--port"),
        (("forwrad",), "No such command 'forwrad'"),
        (("--set", "kube_retry_max=x"), "kube-tunnel: flag: --set kube_retry_max: 'x' is not a whole number"),
        (("--set", "kube_forwards=svc/api"), "kube-tunnel: flag: --set kube_forwards: "),
        (("--set", "kube_config=/nope"), "kube-tunnel: flag: --set kube_config: '/nope' is no file"),
        (("--set", "kube_nope=1"), "kube-tunnel: flag: --set kube_nope: there is no such option; there are kube_"),
        (("-port=99999",), "99999 is more than 65535"),
        (("--set", "anticache"), "kube-tunnel: flag: --set: 'anticache' is not NAME=VALUE"),
        (("--context", "prod", "services"), "--context before services is not for it; its own"),
        (("-config=x.yaml", "config"), "--config before config is not for it"),
        (("-v", "demo"), "--verbose before demo is not for it"),
    ],
)
def test_a_mistake_says_what_is_allowed(runner: CliRunner, arguments: tuple[str, ...], told: str) -> None:
    result = runner.invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert re.search(told, result.output, re.DOTALL), result.output


def test_every_subcommand_is_there_and_says_what_it_does(runner: CliRunner) -> None:
    context = cli.main.make_context("kube-tunnel", ["addon-path"], resilient_parsing=True)
    listed = runner.invoke(cli.main, ["--help"]).output
    for name in cli.main.list_commands(context):
        result = runner.invoke(cli.main, [name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: kube-tunnel {name} ")
        assert re.search(rf"^  {name}  +\S", listed, re.MULTILINE)


@pytest.mark.parametrize("name", ["config", "doctor", "forward", "run", "services", "units"])
def test_flags_of_commands_have_one_dash_or_two(name: str) -> None:
    """Else click reads `-namespace shop` as `-n amespace`, and `shop` as something else."""
    command = cli.main.get_command(cli.main.make_context("kube-tunnel", [name], resilient_parsing=True), name)
    assert command is not None
    flags = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    assert {flag for flag in flags if flag.startswith("--") and flag[1:] not in flags} == set()


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "kubetunnel", "addon-path"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{ADDON}\n"


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("kubetunnel.cli.main", {"aiohttp", "asyncio", "cryptography", "mitmproxy", "msgspec"}),  # kube-tunnel --help
        ("kubetunnel.app", {"aiohttp", "grpc", "kubernetes", "pyroute2"}),  # until there is a cluster to ask
        ("kubetunnel.observe.listener_health", {"mitmproxy"}),  # kube-tunnel forward
    ],
)
def test_a_start_imports_only_what_it_needs(module: str, late: set[str]) -> None:
    """Each of these takes a tenth of a second and more; a start is not to wait for it."""
    program = f"import {module}, sys, json; print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"
    environment = {**os.environ, "PYTHONPATH": str(ADDON.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert late & set(json.loads(done.stdout)) == set()
