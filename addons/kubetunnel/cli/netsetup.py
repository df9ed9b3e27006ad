"""`kube-tunnel netsetup`: `python -m netsetup`, with the tunnel's settings as what `up` takes by default."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from netsetup.cli import NetsetupGroup
from netsetup.cli import command as plain

_MISTAKE = 2  # the exit status of a usage error, as click's
# options of `up` by the settings that they stand for
_OPTIONS = {
    "proxy.port": "port", "dns.port": "dns_port", "network.ip_ranges": "ip_ranges",
    "network.dns_interface.ip": "dns_ip", "network.dns_interface.name": "dns_link",
    "network.search": "search",
    "network.proxy_interface.ip": "proxy_ip", "network.proxy_interface.name": "proxy_link",
}  # fmt: skip


class _Configured(NetsetupGroup):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name == "up":  # the others undo and show what there is, whatever the settings say
            ctx.default_map = {"up": _defaults()}
        return name, command, rest


def _defaults() -> dict[str, Any]:
    """What environment and settings file say, of those options that they say anything of."""
    from kubetunnel.setting_sources import read_sources
    from kubetunnel.setting_values import SettingsError, settings_from

    try:
        values = {path: value for path, (value, _) in read_sources(_environ(), "").values.items()}
        settings = settings_from(values)
    except SettingsError as e:
        for problem in e.problems:
            click.echo(f"netsetup: {problem}", err=True)
        sys.exit(_MISTAKE)
    defaults: dict[str, Any] = {}
    for path, option in _OPTIONS.items():
        value = values.get(path)
        if value:  # 0 is a free port, and there is no redirection to that
            defaults[option] = ",".join(value) if isinstance(value, tuple | list) else value
    if "cluster.zone" in values or "zones" in values:
        defaults["zones"] = (settings.cluster.zone, *(other.zone for other in settings.zones))
    return defaults


def _environ() -> dict[str, str]:
    """Under sudo the settings file is that of the user who called it, whose tunnel it is going to be."""
    from netsetup.privileges import find_user, invoking_user, is_root

    environ = dict(os.environ)
    if is_root() and (user := invoking_user(environ)):
        environ["XDG_CONFIG_HOME"] = str(Path(find_user(user).pw_dir) / ".config")
    return environ


command = _Configured(
    name="netsetup",
    commands=plain.commands,
    context_settings=plain.context_settings,
    help=f"{plain.help} The defaults of `up` are the tunnel's settings, of environment and file.",
)
