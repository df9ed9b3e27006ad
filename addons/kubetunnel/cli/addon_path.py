"""`kube-tunnel addon-path`, for `mitmdump -s "$(kube-tunnel addon-path)"`."""

from __future__ import annotations

import click

from kubetunnel.cli.main import addon_path


@click.command()
def command() -> None:
    """Print the path of the addon script, for mitmdump -s."""
    click.echo(addon_path())
