"""`kube-tunnel netsetup up` takes the tunnel's settings for its defaults; `netsetup` alone takes options only."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetunnel.cli.main import main
from kubetunnel.cli.netsetup import command
from netsetup.cli import command as plain

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="redirection is Linux's"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed"),
]
FILE = """
proxy: {port: 9100}
dns: {port: 9101}
cluster: {zone: corp.example}
zones: {prod.example: production}
network:
  ip_ranges: [10.203.0.0/24]
  dns_interface: {name: k-dns}
"""


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    (tmp_path / "settings.yaml").write_text(FILE)
    environ = {"KTUN_CONFIG": str(tmp_path / "settings.yaml"), "KTUN_DNS_PORT": "9102", "SUDO_USER": None}
    return CliRunner(env=environ)


def test_settings_are_the_defaults(runner: CliRunner, tmp_path: Path) -> None:
    up = ("up", "--dry-run", "--state", str(tmp_path / "state.json"))
    done = runner.invoke(command, up)
    assert done.exit_code == 0, done.output
    assert "TCP to 10.203.0.0/24 goes to port 9100, 10.203.0.1 port 53 to port 9102" in done.output
    assert "+ link k-dns\n" in done.output
    # what is said here is stronger
    assert "goes to port 9200" in runner.invoke(command, [*up, "--port", "9200"]).output
    assert "goes to port 8080" in runner.invoke(plain, [*up, "--ip-ranges", "10.203.0.0/24"]).output


def test_a_mistake_in_the_settings_ends_up_and_not_down(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("proxy: {port: x}")
    refused = runner.invoke(command, ["up", "--dry-run"])
    assert (refused.exit_code, "proxy.port" in refused.output) == (2, True)
    looked = runner.invoke(command, ["down", "--dry-run", "--state", str(tmp_path / "state.json")])
    assert (looked.exit_code, looked.output) == (0, f"nothing: no {tmp_path / 'state.json'}\n")


def test_what_is_typed_without_root_is_what_to_type_with_it(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsetup.cli.is_root", lambda: False)
    words = ["netsetup", "down", "--state", str(tmp_path / "state.json")]
    monkeypatch.setattr(sys, "argv", ["kube-tunnel", *words])
    told = runner.invoke(main, words).output.partition("See: ")[2]
    assert told.startswith("sudo --preserve-env=KTUN_CONFIG,KTUN_DNS_PORT")
    assert told.endswith(f" -I -m kubetunnel {' '.join(words)}\n")
    monkeypatch.setattr(sys, "argv", words)
    told = runner.invoke(plain, words[1:]).output
    assert told.endswith(f"See: sudo {sys.executable} -I -m netsetup {' '.join(words[1:])}\n")
