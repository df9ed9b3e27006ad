"""The completion scripts in the shells that they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubetunnel.cli.completion import SHELLS, command

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_for_this_command(shell: str) -> None:
    result = CliRunner().invoke(command, [shell])
    assert result.exit_code == 0, result.output
    assert f"_KUBE_TUNNEL_COMPLETE={shell}_complete" in result.stdout


def test_another_shell_is_refused() -> None:
    result = CliRunner().invoke(command, ["tcsh"])
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.output


@pytest.mark.parametrize(
    ("words", "expected"), [("forw", {"forward"}), ("--contex", {"--context"}), ("forward --add", {"--address"})]
)
def test_bash_completes(words: str, expected: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = CliRunner().invoke(command, ["bash"]).stdout
    line = ["kube-tunnel", *words.split()]
    program = (
        f'PATH="{BIN}:$PATH"\n{script}\nCOMP_WORDS=({" ".join(line)})\nCOMP_CWORD={len(line) - 1}\n'
        '_kube_tunnel_completion kube-tunnel\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert expected <= set(done.stdout.split()), done
