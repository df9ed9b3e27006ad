"""`kube-tunnel demo`: `kube-tunnel --demo` as a word, with the same flags."""

from __future__ import annotations

import click


class _PassedOn(click.Command):
    """Takes everything but `--help` as it stands, `--` too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        if set(own) & set(self.get_help_option_names(ctx)):
            return super().parse_args(ctx, ["--help"])
        ctx.obj = args
        return []


@click.command(
    "demo",
    cls=_PassedOn,
    short_help="The tunnel into a simulated cluster.",
    options_metavar="[FLAGS OF kube-tunnel] [-- OPTIONS OF MITMPROXY]",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Start the tunnel into a small simulated cluster, which ends with it: to try things, or on a train.

    The same as `kube-tunnel --demo`; `kube-tunnel --help` has the flags.
    """
    from kubetunnel.cli.main import main

    main.main(["--demo", *ctx.obj], prog_name="kube-tunnel")
