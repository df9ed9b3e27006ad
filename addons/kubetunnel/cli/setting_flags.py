"""Flags made from the settings, with one dash or two, a space or `=`, as Go's flags are written; and what they say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from kubetunnel.core.settings import Setting, Settings, every_setting
from kubetunnel.setting_sources import CONFIG, read_sources
from kubetunnel.setting_values import OptionValue, Problem, SettingsError, option_value, settings_from

FLAGS = {setting.flag: setting for setting in every_setting() if setting.flag}
_OPTIONS = {setting.option: setting for setting in every_setting()}
_MISTAKE = 2  # the exit status of a usage error, as click's


class FlagCommand(click.Command):
    """A command that takes flags of settings; those of `sections`, such as "dns"."""

    def __init__(self, *arguments: Any, sections: Iterable[str] = (), **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.params += flag_options(sections)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, as_click_has_them(args, self.params))


def as_click_has_them(arguments: Sequence[str], parameters: Iterable[click.Parameter]) -> list[str]:
    """`-dns-tcp=false` becomes `--no-dns-tcp`: click's switches take no value, Go's do.

    Only as far as the command's own flags go: what follows a subcommand or `--` is not ours to read.
    """
    with_value = {
        name
        for parameter in parameters
        if isinstance(parameter, click.Option) and not parameter.is_flag
        for name in parameter.opts
    }
    translated: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--" or not argument.startswith("-"):
            return [*translated, argument, *rest]
        translated.append(_as_click_has_it(argument))
        if argument in with_value:
            translated += [value for value in [next(rest, None)] if value is not None]
    return translated


def flag_options(sections: Iterable[str] = ()) -> list[click.Option]:
    """The flags as click's options: those of the sections, of all settings without any."""
    wanted = tuple(f"{section}." for section in sections)
    config = click.Option(["config", "--config", "-config"], metavar="FILE", help="The YAML file of settings.")
    return [config, *(_option(each) for each in FLAGS.values() if not wanted or each.path.startswith(wanted))]


def given_flags(given: Mapping[str, Any]) -> dict[Setting, Any]:
    """The settings whose flags were given, and their values as click has them."""
    flags = {setting: given.get(_name(setting)) for setting in FLAGS.values()}
    return {setting: value for setting, value in flags.items() if value not in (None, ())}


def settings_of(given: Mapping[str, Any], program: str = "kube-tunnel") -> Settings:
    """Those of flags, environment and file. Ends the program with all that is wrong in them, at once.

    Args:
        given: click's parameters; `assignments` among them, if any, are options of mitmproxy.
        program: who complains.
    """
    values: dict[str, OptionValue] = {}
    problems: list[Problem] = []
    for setting, value in given_flags(given).items():
        try:
            values[setting.path] = option_value(setting, list(value) if isinstance(value, tuple) else value)
        except ValueError as e:
            problems.append(Problem("flag", str(setting.flag), str(e)))
    assignments = given.get("assignments", ())
    problems += [Problem("flag", "--set", f"{each!r} is not NAME=VALUE") for each in assignments if "=" not in each]
    for name, texts in _assigned(assignments).items():
        if (assigned := _OPTIONS.get(name)) is None:
            told = f"there is no such option; there are {', '.join(_OPTIONS)}"
            problems.append(Problem("flag", f"--set {name}", told))
            continue
        try:
            values[assigned.path] = option_value(assigned, texts if assigned.kind == "list" else texts[-1])
        except ValueError as e:
            problems.append(Problem("flag", f"--set {name}", str(e)))
    chosen, chosen_by = given.get("config") or "", "--config"
    for name, equals, path in (text.partition("=") for text in given.get("assignments", ())):
        if name == CONFIG and equals:
            chosen, chosen_by = path, f"--set {CONFIG}"
    try:
        found = read_sources(os.environ, chosen, chosen_by=("flag", chosen_by)).values
    except SettingsError as e:
        problems += e.problems
    if problems:
        for problem in problems:
            click.echo(f"{program}: {problem}", err=True)
        sys.exit(_MISTAKE)
    for path, (value, source) in found.items():
        if path not in values or source.startswith("environment"):
            values[path] = value
    return settings_from(values)


def _assigned(assignments: Iterable[str]) -> dict[str, list[str]]:
    """Those of options of ours: a list is given by several, of the others mitmproxy takes the last."""
    assigned: dict[str, list[str]] = {}
    for name, equals, text in (assignment.partition("=") for assignment in assignments):
        if name.startswith("kube_") and equals and name != CONFIG:
            assigned.setdefault(name, []).append(text)
    return assigned


def _as_click_has_it(argument: str) -> str:
    name, equals, value = argument.partition("=")
    flag = f"--{name.lstrip('-')}"
    setting = FLAGS.get(flag)
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
    metavar = {"number": "N", "duration": "DURATION"}.get(
        setting.kind, "|".join(filter(None, setting.choices)) or "TEXT"
    )
    return click.Option(
        [_name(setting), *([setting.short] if setting.short else []), flag, f"-{name}"],
        default=None,
        metavar=metavar,
        help=setting.doc,
        multiple=setting.kind == "list",
    )
