"""`kube-tunnel completion bash|zsh|fish`: the shell's completion, by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what has SHELL complete the commands and flags of kube-tunnel.

    \b
    bash    eval "$(kube-tunnel completion bash)"            in ~/.bashrc (bash 4.4 or newer)
    zsh     eval "$(kube-tunnel completion zsh)"             in ~/.zshrc, after compinit
    fish    kube-tunnel completion fish > ~/.config/fish/completions/kube-tunnel.fish
    """
    from kubetunnel.cli.main import main

    completion = get_completion_class(shell)
    if completion is None:
        raise click.ClickException(f"This click does not know {shell}.")
    click.echo(completion(main, {}, "kube-tunnel", "_KUBE_TUNNEL_COMPLETE").source())
