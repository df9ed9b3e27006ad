"""`kube-tunnel ca`: the certificate authority and how to have it trusted."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("confdir", default="~/.mitmproxy", type=click.Path(path_type=Path))
def command(confdir: Path) -> None:
    """Print where the certificate authority is (made where there is none), and how to trust it.

    CONFDIR is mitmproxy's, ~/.mitmproxy by default.
    """
    from kubetunnel.ca import describe

    try:
        click.echo(describe(confdir.expanduser()))
    except (OSError, ValueError) as e:
        raise click.ClickException(str(e)) from e
