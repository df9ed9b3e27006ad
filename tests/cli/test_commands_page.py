"""docs/commands.md is what the commands say of themselves, and has all of them."""

from __future__ import annotations

import re
import subprocess
import sys

from click.testing import CliRunner

from kubetunnel.cli.main import main
from kubetunnel.core.settings import every_setting
from tests.tunnel import ROOT

PAGE = ROOT / "docs" / "commands.md"


def test_the_page_is_what_is_made_of_the_commands() -> None:
    command = [sys.executable, ROOT / "scripts" / "command_docs.py"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert PAGE.read_text() == made, "run: make docs"


def test_every_command_flag_and_variable_is_there() -> None:
    page = PAGE.read_text()
    context = main.make_context("kube-tunnel", ["addon-path"], resilient_parsing=True)
    for name in main.list_commands(context):
        assert f"\n## kube-tunnel {name}\n" in page
    for setting in every_setting():
        assert setting.flag is None or re.search(rf"[ ,]{setting.flag}\b", page), setting.flag
        assert setting.env is None or f"| `{setting.env}` |" in page


def test_flags_are_listed_with_what_they_take() -> None:
    assert "--log-format text|json" in CliRunner().invoke(main, ["--help"]).output
