"""`netsetup up | down | status`: the commands that need root for a moment, and nothing of the user's.

No kubeconfig is read, no file of the user's, and no credential plugin run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.metadata import entry_points
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from netsetup.errors import NetsetupError, RootNeededError
from netsetup.layout import DEFAULT_RANGES, Address, Wanted
from netsetup.privileges import as_root, find_user, invoking_user, is_root, settings_in
from netsetup.state import DEFAULT_STATE

# commands of packages that build on this one, which does not import them: `dns` needs to ask the clusters
_PLUGINS = "netsetup.commands"


class NetsetupGroup(click.Group):
    """Ends with our errors' own sentence, and exit code 1. Has other packages' commands too (entry points)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *entry_points(group=_PLUGINS).names])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        for plugin in entry_points(group=_PLUGINS, name=cmd_name):
            found: click.Command = plugin.load()
            return found
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NetsetupError as e:
            raise click.ClickException(str(e)) from e


@click.group(cls=NetsetupGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """The machine's network for kube-tunnel: virtual IPs, their redirection to the tunnel, and DNS for the zones."""


def _ranges(_context: click.Context, _option: click.Parameter, text: str) -> tuple[Any, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as e:
        raise click.BadParameter(f"{e}; prefixes like 10.8.0.0/24, separated by commas, are wanted") from e


def _address(_context: click.Context, _option: click.Parameter, text: str | None) -> Address | None:
    try:
        return None if text is None else ip_address(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e


_state = click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_STATE,
    show_default=True,
    help="The file that says what was done.",
)
_port = click.IntRange(1, 65535)


@command.command()
@click.option("--user", metavar="USER", help="Who runs the tunnel.  [default: who has called sudo]")
@click.option("--port", type=_port, default=8080, show_default=True, help="The tunnel's port on loopback.")
@click.option("--dns-port", type=_port, default=5353, show_default=True, help="The DNS server's port on loopback.")
@click.option("--dns-ip", callback=_address, metavar="IP", help="  [default: the first of the first free range]")
@click.option("--proxy-ip", callback=_address, metavar="IP", help="  [default: the second]")
@click.option(
    "--ip-ranges",
    callback=_ranges,
    default=",".join(map(str, DEFAULT_RANGES)),
    show_default=True,
    help="Prefixes for virtual IPs; those that are free are used.",
)
@click.option("--zone", "zones", multiple=True, default=("cluster.local",), show_default=True, help="Repeatable.")
@click.option("--dns-link", default="kube-dns0", show_default=True, help="Name of the DNS address's interface.")
@click.option("--proxy-link", default="kube-proxy0", show_default=True, help="Name of the virtual IPs' interface.")
@click.option("--search", metavar="NAMESPACE", help="Short names resolve: NAME of this Namespace, NAME.NAMESPACE.")
@click.option("--forwarded", is_flag=True, help="Redirect also what containers and other machines send through here.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done; needs no root.")
@_state
def up(state: Path, dry_run: bool, user: str | None, **options: Any) -> None:
    """Set the network up. Twice is once; other options than last time replace what is there."""
    from netsetup import setup  # late: `--help` needs no netlink

    user = user or invoking_user(os.environ)
    if user is not None:
        find_user(user)
    wanted = Wanted(user=user, **options)
    if dry_run:
        for line in setup.dry_run(wanted, state):
            click.echo(line)
        return
    _need_root()
    _end_on_signals()
    made = setup.up(wanted, state, tell=click.echo)
    click.echo(
        f"Up: DNS at {made.dns_ip}, virtual IPs in {', '.join(map(str, made.ranges))}. Run the tunnel on port "
        f"{made.proxy_port} and its DNS server on port {made.dns_port}."
    )
    if not made.redirected:
        click.echo(f"Ports are not redirected on this system: names are to be answered with {made.proxy_ip}.")


@command.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be undone; needs no root.")
@_state
def down(state: Path, dry_run: bool) -> None:
    """Undo what `up` did, all of it and nothing else."""
    from netsetup import setup

    if dry_run:
        for line in setup.dry_run_down(state) or [f"nothing: no {state}"]:
            click.echo(line)
        return
    _need_root()
    _end_on_signals()
    undone = setup.down(state, tell=click.echo)
    click.echo("Down." if undone else f"There is nothing to undo: no {state}.")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_state
def status(state: Path, as_json: bool) -> None:
    """Each piece as wanted and as found; exit code 1 when something is missing."""
    from netsetup.status import status as look_for
    from netsetup.status import told_of_outlived
    from netsetup.way_out import left_behind

    found = look_for(state)
    if as_json:
        pieces = [{"wanted": p.step.text, "found": p.found} | ({"why": p.why} if p.why else {}) for p in found.pieces]
        click.echo(json.dumps({"up": found.whole, "pieces": pieces, "conflicts": found.conflicts}, indent=1))
    elif found.record is None:
        click.echo(f"Nothing is set up (no {state}).")
        if (lost := left_behind(state)) is not None:
            click.echo(str(lost))
    else:
        marks = {True: "ok", False: "MISSING", None: "unknown"}
        for piece in found.pieces:
            click.echo(f"{marks[piece.found]:8} {piece.step.text}" + (f"  [{piece.why}]" if piece.why else ""))
        for conflict in found.conflicts:
            click.echo(f"CONFLICT {conflict}")
        if found.outlived:
            told = told_of_outlived(found.outlived, found.record)
            click.echo(f"{told} What undoes it: {as_root('netsetup', 'down')}")
        if not found.record.complete:
            click.echo(f"`up` or `down` was ended before its end. What undoes the rest: {as_root('netsetup', 'down')}")
        elif found.record.temporary:
            click.echo(
                "It is to end with the kube-tunnel --virtual that has made it. Where that was killed, what undoes it: "
                f"{as_root('netsetup', 'down')}"
            )
        elif not found.whole:
            click.echo(f"What mends it, with the same options: {as_root('netsetup', 'up')}")
    if not found.whole:
        sys.exit(1)


def _need_root() -> None:
    if not is_root():
        ctx = click.get_current_context()
        if ctx.parent is ctx.find_root():
            again = as_root("netsetup", *sys.argv[1:])
        else:  # `kube-tunnel netsetup`, whose defaults are the tunnel's settings
            again = as_root("kubetunnel", *sys.argv[1:], keep=settings_in(os.environ))
        raise RootNeededError("This changes the machine's network, which only root may.", command=again)


def _end_on_signals() -> None:
    """SIGTERM and SIGHUP undo what was begun, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
