"""The systemd units: what is printed, and what systemd itself says of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetunnel.cli.units import UNITS, command
from netsetup.cli import command as netsetup
from tests.netsetup.private_network import machine, why_not
from tests.netsetup.test_up_down_resolvers import resolved_with_stub


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_both_or_one() -> None:
    both = printed()
    assert both == printed("proxy") + "\n" + printed("netsetup")
    assert both.count("[Install]") == 2
    assert not re.search(r"@[a-z-]+@", both), "a mark was left"


def test_what_they_start_exists(tmp_path: Path) -> None:
    starts = re.findall(r"^Exec(?:Start|Stop)=(.*)$", printed("--user", "dev", "--port", "9090"), re.MULTILINE)
    assert len(starts) == 3
    tunnel, up, down = map(shlex.split, starts)
    assert shutil.which(tunnel[0])
    assert tunnel[1:] == ["--port", "9090"]
    for words in (up, down):
        assert words[:4] == [sys.executable, "-I", "-m", "netsetup"]
        subprocess.run([*words[:5], "--help"], check=True, capture_output=True, timeout=30, cwd=tmp_path)
    assert up[4:] == ["up", "--user", "dev", "--port", "9090"]
    context = netsetup.make_context("netsetup", ["up", "--help"], resilient_parsing=True)
    known = {flag for parameter in netsetup.commands["up"].params for flag in parameter.opts}
    assert context is not None
    assert {"--user", "--port"} <= known


def test_words_are_quoted_as_systemd_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", '/opt/my "tools"/100%/python')
    assert 'ExecStop="/opt/my \\"tools\\"/100%%/python" -I -m netsetup down' in printed("netsetup")


@pytest.mark.parametrize("kind", UNITS)
def test_systemd_takes_them(kind: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNITS[kind]
    unit.write_text(printed(kind))
    arguments = ["systemd-analyze", "verify", "--man=no", *(["--user"] if kind == "proxy" else []), str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, env=environment)
    about_ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not about_ours, "its exit status is 0 for keys that it does not know"
    assert done.returncode == 0, done.stderr


def test_its_rights_are_enough(tmp_path: Path) -> None:
    """`up` and `down` with the capabilities of the unit and no more, on a machine of the test's own."""
    if reason := why_not() or ("" if shutil.which("setpriv") else "setpriv is not installed"):
        pytest.skip(reason)
    unit = printed("netsetup", "--user", "root")
    names = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)[0].split()
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])
    limited = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
    up, down = (shlex.split(line) for line in re.findall(r"^Exec(?:Start|Stop)=(.*)$", unit, re.MULTILINE))
    with machine(tmp_path) as own:
        before = own.facts()
        own.run("mkdir", "/var/lib/kube-tunnel")  # StateDirectory=
        own.run(*limited, *up)
        assert "kube-dns0" in own.run("ip", "-brief", "link").stdout
        own.run(*limited, *down)
        own.run("rm", "-rf", "/var/lib/kube-tunnel")
        assert own.facts() == before


def test_what_it_may_write_is_enough(tmp_path: Path) -> None:
    """A resolv.conf that leads past systemd-resolved: the link itself is replaced."""
    if reason := why_not():
        pytest.skip(reason)
    unit = printed("netsetup", "--user", "root")
    paths = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)[0].split()
    up, down = (shlex.split(line) for line in re.findall(r"^Exec(?:Start|Stop)=(.*)$", unit, re.MULTILINE))
    with machine(tmp_path) as own:
        resolved_with_stub(own)
        (own.etc / "resolv.conf").unlink()
        (own.etc / "resolv.conf").symlink_to("../run/systemd/resolve/resolv.conf")
        before = own.facts()
        # ProtectSystem=strict, of which /etc is the part that counts here
        own.run("mount", "-o", "remount,bind,ro", "/etc")
        writable = (
            'for path; do [ ! -e "$path" ] || { mount --bind "$path" "$path"; mount -o remount,bind,rw "$path"; }; done'
        )
        own.run("sh", "-ec", writable, "sh", *(path.removeprefix("-") for path in paths))
        own.run(*up)
        assert (own.etc / "resolv.conf").readlink() == Path("../run/systemd/resolve/stub-resolv.conf")
        own.run(*down)
        assert own.facts() == before


def test_only_netsetup_has_a_right_of_root() -> None:
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_DAC_READ_SEARCH\n" in printed("netsetup")
    for kind in UNITS:
        assert "NoNewPrivileges=yes\n" in printed(kind)
        assert "ProtectSystem=strict\n" in printed(kind)
