"""`kube-tunnel demo` is `kube-tunnel --demo`: flags and mitmproxy's options come through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetunnel.cli import main as cli
from kubetunnel.cli.demo import command


@pytest.mark.parametrize(
    "arguments", [(), ("-q", "--", "-w", "flows", "--help"), ("--max-retries", "0"), ("-port=9090", "--web")]
)
def test_what_reaches_mitmproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: Sequence[str]) -> None:
    started: list[list[str]] = []

    def instead(program: str, arguments: Sequence[str]) -> int:
        started.append([program, *arguments])
        return 0

    monkeypatch.setattr(cli, "run_mitmproxy", instead)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"XDG_CONFIG_HOME": str(tmp_path)})
    for command_, given in ((command, arguments), (cli.main, ("--demo", *arguments))):
        result = runner.invoke(command_, list(given))
        assert result.exit_code == 0, result.output
    by_word, by_flag = started
    assert by_word == by_flag
    assert "kube_demo=true" in by_word


def test_help() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "kube-tunnel --demo" in result.output
