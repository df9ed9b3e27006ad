"""`kube-tunnel config`: what is in force, and who said so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetunnel.cli.config import command
from kubetunnel.core.settings import every_setting


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner(env={"XDG_CONFIG_HOME": str(tmp_path)})


def test_each_setting_with_its_source(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "kube-tunnel.yaml").write_text("retry: {delay: 1s}\nzones: {prod.local: production}\n")
    runner.env["KTUN_RETRY_MAX"] = "3"
    result = runner.invoke(command, [])
    assert result.exit_code == 0
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in result.output.splitlines())
    assert rows.keys() == {setting.path for setting in every_setting()}
    told = {path: re.split(r"  +", rows[path]) for path in rows}
    assert told["retry.max"] == ["3", "environment: KTUN_RETRY_MAX"]
    assert told["retry.delay"] == ["1s", "kube-tunnel.yaml: retry.delay"]
    assert told["zones"] == ["prod.local=production", "kube-tunnel.yaml: zones"]
    assert told["proxy.port"] == ["-", "default"]
    assert told["dns.tcp"] == ["true", "default"]
    as_json = {row["setting"]: row for row in json.loads(runner.invoke(command, ["--json"]).output)}
    assert as_json["retry.max"] == {"setting": "retry.max", "value": 3, "source": "environment: KTUN_RETRY_MAX"}


def test_what_is_wrong_is_told_at_once(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "kube-tunnel.yaml").write_text("retry: {max: 11, dealy: 1s}\n")
    runner.env["KTUN_MAX_IDLE"] = "-1"
    result = runner.invoke(command, [])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "kube-tunnel: environment: KTUN_MAX_IDLE: -1 is less than 0",
        "kube-tunnel: kube-tunnel.yaml: retry.max: 11 is more than 10",
        "kube-tunnel: kube-tunnel.yaml: retry.dealy: there is no such setting; there are retry.max, retry.delay",
    ]


def test_the_schema(runner: CliRunner) -> None:
    schema = json.loads(runner.invoke(command, ["--schema"]).output)
    assert schema["properties"]["pool"]["properties"]["max_idle"]["maximum"] == 100_000
