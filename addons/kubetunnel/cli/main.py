"""`kube-tunnel`: mitmdump with the addon on your cluster, else on a simulated one; and the subcommands.

Flags are made from the settings (`core/settings.py`), with one dash or two, a space or `=`, as Go's flags are written.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kubetunnel import __version__
from kubetunnel.core.settings import Setting, Settings, every_setting
from kubetunnel.setting_sources import read_sources
from kubetunnel.setting_values import OptionValue, Problem, SettingsError, option_value, settings_from

_SUBCOMMANDS = {
    "config": "Print the settings in force and where each comes from.",
    "addon-path": "Print the path of the addon script, for mitmdump -s.",
    "forward": "Listen on local ports for a Service, a Pod or a Deployment.",
    "netsetup": "Set the machine's network up or down (needs root).",
    "ca": "Where the certificate authority is, and how to trust it.",
}
_FLAGS = {setting.flag: setting for setting in every_setting() if setting.flag}
_DEFAULT_PORT = 8080  # mitmproxy's
_MISTAKE = 2  # the exit status of a usage error, as click's


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
        args = [_as_click_has_it(argument) for argument in args]
        _, rest, _ = self.make_parser(ctx).parse_args(list(args))
        before = len(args) - len(rest)
        if rest and before and args[before - 1] == "--":
            ctx.obj = rest
            args = args[: before - 1]
        return super().parse_args(ctx, args)


def _as_click_has_it(argument: str) -> str:
    """`-dns-tcp=false` becomes `--no-dns-tcp`: click's switches take no value, Go's do."""
    name, equals, value = argument.partition("=")
    flag = f"--{name.lstrip('-')}"
    setting = _FLAGS.get(flag)
    if not (name.startswith("-") and equals and setting and setting.kind == "switch"):
        return argument
    try:
        return flag if option_value(setting, value) else f"--no-{flag[2:]}"
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint=flag) from e


def _name(setting: Setting) -> str:
    return setting.path.replace(".", "_")


def _option(setting: Setting) -> click.Option:
    assert setting.flag  # noqa: S101 - those without one are left out
    flag, name = setting.flag, setting.flag[2:]
    if setting.kind == "switch":
        return click.Option(
            [_name(setting), f"{flag}/--no-{name}", f"-{name}/-no-{name}"], default=None, help=setting.doc
        )
    metavar = {"number": "N", "duration": "DURATION"}.get(setting.kind, "TEXT")
    return click.Option(
        [_name(setting), flag, f"-{name}"],
        default=None,
        metavar=metavar,
        help=setting.doc,
        multiple=setting.kind == "list",
    )


@click.pass_context
def _start(ctx: click.Context, /, **given: Any) -> None:
    if ctx.invoked_subcommand is not None:
        return
    flags = {setting: given[_name(setting)] for setting in _FLAGS.values()}
    _at_home()
    given_flags = {setting: value for setting, value in flags.items() if value not in (None, ())}
    settings = _settings(given_flags, given["config"])
    arguments = ["-s", str(addon_path())]
    for setting, value in flags.items():
        for item in value if isinstance(value, tuple) else [] if value is None else [value]:
            text = str(item).lower() if isinstance(item, bool) else item
            arguments += ["--set", f"{setting.option}={text}"]
    if given["config"]:
        arguments += ["--set", f"kube_config={given['config']}"]
    for assignment in given["assignments"]:
        arguments += ["--set", assignment]
    for flag in ("verbose", "quiet"):
        arguments += [f"--{flag}"] if given[flag] else []
    arguments += ["-p", str(given["port"])] if given["port"] is not None else []

    def run() -> int:
        return run_mitmproxy(given["program"] or "mitmdump", [*_cluster(given), *arguments, *(ctx.obj or [])])

    if settings.network.virtual:
        from kubetunnel.cli.virtual import run_with_network

        sys.exit(run_with_network(settings, given["port"] or _DEFAULT_PORT, run))
    sys.exit(run())


def _at_home() -> None:
    """Under sudo, settings and kubeconfig are those of the user who called it, whose the tunnel is going to be."""
    from netsetup.privileges import find_user, invoking_user, is_root

    if is_root() and (user := invoking_user(os.environ)):
        os.environ["HOME"] = find_user(user).pw_dir
        os.environ.pop("XDG_CONFIG_HOME", None)


def _settings(flags: dict[Setting, Any], config: str | None) -> Settings:
    """Those of flags, environment and file. Ends the program with all that is wrong in them, at once."""
    values: dict[str, OptionValue] = {}
    problems: list[Problem] = []
    for setting, value in flags.items():
        try:
            values[setting.path] = option_value(setting, list(value) if isinstance(value, tuple) else value)
        except ValueError as e:
            problems.append(Problem("flag", str(setting.flag), str(e)))
    try:
        found = read_sources(os.environ, config or "", chosen_by=("flag", "--config")).values
    except SettingsError as e:
        problems += e.problems
    if problems:
        for problem in problems:
            click.echo(f"kube-tunnel: {problem}", err=True)
        sys.exit(_MISTAKE)
    for path, (value, source) in found.items():
        if path not in values or source.startswith("environment"):
            values[path] = value
    return settings_from(values)


def _cluster(given: dict[str, Any]) -> list[str]:
    """Says which cluster it is going to be; the simulated one where there is no other."""
    if given["cluster_demo"] or any(a.startswith("kube_demo=") for a in given["assignments"]):
        return []
    chosen = given["cluster_kubeconfig"] or current_kubeconfig()
    if chosen:
        click.echo(f"Using the current cluster: {chosen}")
        return []
    if any(a.startswith("kube_kubeconfig=") for a in given["assignments"]):
        return []
    click.echo("No kubeconfig found: using a simulated cluster (the demo).")
    return ["--set", "kube_demo=true"]


def run_mitmproxy(program: str, arguments: Sequence[str]) -> int:
    """Runs mitmdump, mitmweb or mitmproxy in this process. Returns the exit status."""
    from mitmproxy.tools import main as tools  # late: it takes half a second

    sys.stdout.flush()
    getattr(tools, program)(list(arguments))
    return 0


def current_kubeconfig() -> str | None:
    """Where kubectl would take its cluster from, for display; None where there is nothing."""
    if listed := os.environ.get("KUBECONFIG"):
        # named by the user, so a missing file is an error to tell of and no reason for the demo
        return listed
    default = Path.home() / ".kube" / "config"
    if default.exists():
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
        click.Option(
            ["port", "-p", "--port", "-port"], type=click.IntRange(0, 65535), help="The port to listen on (8080)."
        ),
        click.Option(["config", "--config", "-config"], metavar="FILE", help="The YAML file of settings."),
        *map(_option, _FLAGS.values()),
        click.Option(["program", "--web"], flag_value="mitmweb", help="mitmweb: inspect in a browser."),
        click.Option(["program", "--tui"], flag_value="mitmproxy", help="mitmproxy: inspect in the terminal."),
        click.Option(["verbose", "-v", "--verbose", "-verbose"], is_flag=True, help="Tell more."),
        click.Option(["quiet", "-q", "--quiet", "-quiet"], is_flag=True, help="Tell only what is wrong."),
        click.Option(["assignments", "--set"], multiple=True, metavar="NAME=VALUE", help="An option of mitmproxy."),
    ],
)
main = click.version_option(__version__, "--version", "-version", prog_name="kube-tunnel")(main)
