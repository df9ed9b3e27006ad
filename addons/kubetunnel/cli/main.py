"""`kube-tunnel`: mitmdump with the addon on your cluster, else on a simulated one; and the subcommands.

Flags are made from the settings (`core/settings.py`), with one dash or two, a space or `=`, as Go's flags are written.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kubetunnel import __version__
from kubetunnel.cli.setting_flags import as_click_has_them, flag_options, given_flags, settings_of
from kubetunnel.core.settings import Settings

_SUBCOMMANDS = {
    "config": "Print the settings in force and where each comes from.",
    "addon-path": "Print the path of the addon script, for mitmdump -s.",
    "forward": "Listen on local ports for a Service, a Pod or a Deployment.",
    "doctor": "Check cluster, rights, ports, DNS, interfaces and trust; say what mends it.",
    "run": "Run a program so that it reaches the cluster's Services.",
    "netsetup": "Set the machine's network up or down (needs root).",
    "services": "What the cluster has, and its names.",
    "completion": "Print the completion script of a shell.",
    "demo": "The tunnel into a simulated cluster.",
    "units": "Print systemd units for the tunnel and for the network.",
    "ca": "Where the certificate authority is, and how to trust it.",
}
DEFAULT_USER_PORT = 8080  # for who is not root


class _Commands(click.Group):
    """Subcommands by file name; what follows `--` in the place of one is for mitmproxy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUBCOMMANDS:
            return None
        module = importlib.import_module(f"kubetunnel.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_SUBCOMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = as_click_has_them(args, self.params)
        _, rest, _ = self.make_parser(ctx).parse_args(list(args))
        before = len(args) - len(rest)
        if rest and before and args[before - 1] == "--":
            ctx.obj = rest
            args = args[: before - 1]
        return super().parse_args(ctx, args)


@click.pass_context
def _start(ctx: click.Context, /, **given: Any) -> None:
    if ctx.invoked_subcommand is not None:
        _refuse_flags(ctx, ctx.invoked_subcommand)
        return
    _at_home()
    settings = settings_of(given)
    arguments = ["-s", str(addon_path())]
    for setting, value in given_flags(given).items():
        for item in value if isinstance(value, tuple) else [value]:
            text = str(item).lower() if isinstance(item, bool) else item
            arguments += ["--set", f"{setting.option}={text}"]
    if given["config"]:
        arguments += ["--set", f"kube_config={given['config']}"]
    for assignment in given["assignments"]:
        arguments += ["--set", assignment]
    for flag, level in (("verbose", "debug"), ("quiet", "quiet")):
        arguments += ["--set", f"kube_log_level={level}"] if given[flag] else []

    def run() -> int:
        if settings.log.format == "text":
            _announce_ca(given["assignments"])
        return run_mitmproxy(given["program"] or "mitmdump", [*_cluster(settings), *arguments, *(ctx.obj or [])])

    if settings.network.virtual:
        from kubetunnel.cli.virtual import run_with_network

        sys.exit(run_with_network(settings, settings.proxy.port or DEFAULT_USER_PORT, run))
    sys.exit(run())


def _refuse_flags(ctx: click.Context, subcommand: str) -> None:
    """A subcommand reads its own flags alone: `--context prod services` must not ask another cluster without a word."""
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE:
            flag = max(parameter.opts, key=len)
            raise click.UsageError(f"{flag} before {subcommand} is not for it; its own flags come after it.", ctx)


def _at_home() -> None:
    """Under sudo, settings and kubeconfig are those of the user who called it, whose the tunnel is going to be."""
    from netsetup.privileges import find_user, invoking_user, is_root

    if is_root() and (user := invoking_user(os.environ)):
        os.environ["HOME"] = find_user(user).pw_dir
        os.environ.pop("XDG_CONFIG_HOME", None)


def _cluster(settings: Settings) -> list[str]:
    """Says which cluster it is going to be; the simulated one where there is no other."""
    if settings.cluster.demo:
        return []
    chosen = settings.cluster.kubeconfig or current_kubeconfig()
    # a cluster of the user's own was asked for by its context: the tunnel says what it lacks
    is_demo = not chosen and not settings.cluster.context
    if settings.log.format == "text":
        if chosen:
            click.echo(f"Using the current cluster: {chosen}")
        elif is_demo:
            click.echo("No kubeconfig found: using a simulated cluster (the demo).")
        if not chosen and settings.network.virtual and "KUBECONFIG" not in os.environ:
            click.echo(
                "sudo passes no KUBECONFIG on, unless told to: sudo --preserve-env=KUBECONFIG …, or --kubeconfig FILE."
            )
    return ["--set", "kube_demo=true"] if is_demo else []


def _announce_ca(assignments: Sequence[str]) -> None:
    """mitmproxy makes its certificate authority without a word, which takes a second or more on a slow machine."""
    given = dict(assignment.partition("=")[::2] for assignment in assignments)
    confdir = Path(given.get("confdir", "~/.mitmproxy")).expanduser()
    if not (confdir / "mitmproxy-ca.pem").exists():
        click.echo(f"Making a certificate authority in {confdir}, once.")


def run_mitmproxy(program: str, arguments: Sequence[str]) -> int:
    """Runs mitmdump, mitmweb or mitmproxy in this process. Returns the exit status.

    0 where it was ended and what was under way was done (or had its time), 1 where it could not start, 128 and the
    signal's number where a second one ended it at once.
    """
    if program == "mitmproxy" and not sys.stdout.isatty():  # which it would tell with a traceback
        click.echo("kube-tunnel: --tui needs a terminal; there is --web, too", err=True)
        return 1
    from mitmproxy import ctx
    from mitmproxy.tools import main as tools  # late: it takes half a second

    sys.stdout.flush()
    logging.getLogger("mitmproxy.addons.script").addFilter(_is_of_interest)
    try:
        getattr(tools, program)(list(arguments))
    except KeyboardInterrupt:  # before mitmproxy takes signals, or when it does no more
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would raise into what is ending
    addons: Any = ctx.master.addons
    ending = addons.get("kubetunnel_ending")
    return ending.exit_status if ending is not None else 0


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Loading script")  # it is always ours


def current_kubeconfig() -> str | None:
    """Where kubectl would take its cluster from, for display; None where there is nothing."""
    if listed := os.environ.get("KUBECONFIG"):
        # named by the user, so a missing file is an error to tell of and no reason for the demo
        return listed
    default = Path.home() / ".kube" / "config"
    if os.access(default, os.F_OK):
        return str(default)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "the service account of this pod"
    return None


def addon_path() -> Path:
    """The addon script: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "kube_tunnel.py"
    return beside if beside.exists() else package / "kube_tunnel.py"


main = _Commands(
    name="kube-tunnel",
    callback=_start,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND | -- OPTIONS OF MITMPROXY]",
    help="The Services of a Kubernetes cluster by their DNS names on this machine, every request open to inspection.",
    context_settings={"help_option_names": ["-h", "--help", "-help"], "max_content_width": 100},
    params=[
        *flag_options(),
        click.Option(["program", "--web", "-web"], flag_value="mitmweb", help="mitmweb: inspect in a browser."),
        click.Option(["program", "--tui", "-tui"], flag_value="mitmproxy", help="mitmproxy: inspect in the terminal."),
        click.Option(["verbose", "-v", "--verbose", "-verbose"], is_flag=True, help="Tell more."),
        click.Option(["quiet", "-q", "--quiet", "-quiet"], is_flag=True, help="Tell only what is wrong."),
        click.Option(
            ["assignments", "--set", "-set"], multiple=True, metavar="NAME=VALUE", help="An option of mitmproxy."
        ),
    ],
)
main = click.version_option(__version__, "--version", "-version", prog_name="kube-tunnel")(main)
