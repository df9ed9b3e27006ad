#!/usr/bin/env python3
"""Prints docs/commands.md: each command as its own `--help` tells it, and what no help has room for (`make docs`)."""

from __future__ import annotations

from collections.abc import Iterator

import click

from kubetunnel.cli.main import main
from kubetunnel.core.settings import every_setting

WIDTH = 100

_HEAD = """\
# Commands

Made of the commands' own `--help` by `make docs`. Flags are written with one dash or two, and with a space or `=`:
`-port=8080`, `--port 8080`.
"""

_TAIL = """\
## Exit status

| | |
| --- | --- |
| 0 | ended as asked (SIGINT, SIGTERM, SIGHUP), and what was under way was done or had its 60 s |
| 1 | could not start or do what was asked for; the last line says why |
| 2 | a flag, a variable or a line of the settings file is wrong; all that is wrong is told at once |
| 128 + n | ended at once by the second signal, of number n |

`kube-tunnel run` ends with the status of the program that it ran.

## Files

| | |
| --- | --- |
| `kube-tunnel.yaml` | settings; else `$XDG_CONFIG_HOME/kube-tunnel/config.yaml`, `/etc/kube-tunnel/config.yaml` |
| `~/.kube/config`, or what `$KUBECONFIG` lists | the cluster, as kubectl has it |
| `~/.mitmproxy/` | the certificate authority and mitmproxy's own settings |
| `$XDG_STATE_HOME/kube-tunnel/` | virtual IPs, so that a Service keeps its own |
| `/var/lib/kube-tunnel/netsetup.json` | what `netsetup up` did, for `netsetup down` |

## Environment

Each variable but the last is stronger than the flag or the line of the settings file that it stands for.
"""


def document() -> str:
    """The page."""
    parts = [_HEAD, *(_section(name, command, context) for name, command, context in _commands()), _TAIL]
    rows = [f"| `{each.env}` | `{each.path}` | {each.doc} |" for each in every_setting() if each.env]
    rows.append("| `KTUN_CONFIG` |  | The settings file. |")
    rows.append("| `KUBECONFIG` | `cluster.kubeconfig` | As for kubectl: flag and settings file are stronger. |")
    return "\n".join([*parts, "| variable | setting | |", "| --- | --- | --- |", *rows, ""])


def _commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    yield from _below("kube-tunnel", main, None)


def _below(
    name: str, command: click.Command, parent: click.Context | None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    info = name if parent is None else name.rpartition(" ")[2]
    context = click.Context(
        command, info_name=info, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    yield name, command, context
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            if (found := command.get_command(context, word)) is not None:
                yield from _below(f"{name} {word}", found, context)


def _section(name: str, command: click.Command, context: click.Context) -> str:
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    click.echo(document(), nl=False)
