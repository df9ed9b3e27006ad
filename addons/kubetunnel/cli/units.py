"""`kube-tunnel units`: the systemd units that start the tunnel and the machine's network, printed and not installed."""

from __future__ import annotations

import getpass
import shutil
import sys
from pathlib import Path

import click

UNITS = {"proxy": "kube-tunnel.service", "netsetup": "kube-tunnel-netsetup.service"}
_DIRECTORY = Path(__file__).resolve().parents[1] / "systemd"


@click.command("units", short_help="Print systemd units for the tunnel and for the network.")
@click.argument("which", type=click.Choice(tuple(UNITS)), required=False)
@click.option("--user", "-user", metavar="USER", help="Who runs the tunnel.  [default: you]")
@click.option(
    "--port", "-port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="The tunnel's port."
)
def command(which: str | None, user: str | None, port: int) -> None:
    """Print the unit for the tunnel (proxy: a user's unit), that for the network (netsetup: root's), or both.

    Nothing is installed. For that:

    \b
    kube-tunnel units proxy > ~/.config/systemd/user/kube-tunnel.service
    systemctl --user enable --now kube-tunnel
    kube-tunnel units netsetup | sudo tee /etc/systemd/system/kube-tunnel-netsetup.service
    sudo systemctl enable --now kube-tunnel-netsetup
    """
    values = {
        "@kube-tunnel@": _quoted(_program()),
        "@python@": _quoted(sys.executable),
        "@user@": _quoted(user or getpass.getuser()),
        "@port@": str(port),
    }
    for number, kind in enumerate([which] if which else UNITS):
        text = (_DIRECTORY / UNITS[kind]).read_text(encoding="utf-8")
        for mark, value in values.items():
            text = text.replace(mark, value)
        separator = "\n" if number else ""
        click.echo(f"{separator}{text}", nl=False)


def _program() -> str:
    """The command of the environment that this runs in, else as the PATH has it."""
    beside = Path(sys.executable).with_name("kube-tunnel")
    return str(beside) if beside.exists() else shutil.which("kube-tunnel") or "kube-tunnel"


def _quoted(word: str) -> str:
    """As systemd.syntax(7) and systemd.service(5) want a word of a command line."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or any(letter.isspace() for letter in word) else word
