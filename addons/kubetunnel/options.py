"""The settings as options of mitmproxy, `kube_…`: for `--set`, its config.yaml and mitmweb's options page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mitmproxy import exceptions
from mitmproxy.optmanager import OptManager

from kubetunnel.core.settings import Setting, Settings, every_setting
from kubetunnel.setting_values import SettingsError, default_option_value, settings_from

PREFIX = "kube_"
CONFIG = "kube_config"


def add_options(loader: Any) -> None:
    """To be called in the `load` hook."""
    loader.add_option(CONFIG, str, "", "The YAML file of settings; empty: the first that is there of the usual places.")
    types: dict[str, Any] = {"switch": bool, "number": int, "list": Sequence[str]}
    for setting in every_setting():
        kind = types.get(setting.kind, str)
        loader.add_option(setting.option, kind, default_option_value(setting), _help(setting))


def _help(setting: Setting) -> str:
    form = "a duration such as 30s or 1m30s" if setting.kind == "duration" else setting.takes
    return f"{setting.doc} {form[:1].upper()}{form[1:]}." if form else setting.doc


def take_mistakes(options: OptManager) -> list[str]:
    """What is wrong with options of ours that were given before we were loaded; they are taken away.

    mitmproxy keeps them back until then, says nothing of those that nobody knows, and at a value that it cannot read
    gives up the script without a word.
    """
    mistakes = []
    for name, value in list(options.deferred.items()):
        if not name.startswith(PREFIX):
            continue
        option = options._options.get(name)  # noqa: SLF001 - what is deferred has no public reader
        mistake = _no_such_option(options) if option is None else _unreadable(options, option, value)
        if mistake:
            mistakes.append(f"{name}: {mistake}")
            del options.deferred[name]
    return mistakes


def _no_such_option(options: OptManager) -> str:
    known = sorted(name for name in options.keys() if name.startswith(PREFIX))  # noqa: SIM118 - no mapping
    return f"there is no such option; there are {', '.join(known)}"


def _unreadable(options: OptManager, option: Any, value: Any) -> str | None:
    words = getattr(value, "val", None)  # of --set; what a file has is typed
    try:
        if isinstance(words, list):
            options._parse_setval(option, words)  # noqa: SLF001
    except exceptions.OptionsError as e:
        return str(e)
    return None


def settings_of(options: OptManager, sources: Mapping[str, str]) -> Settings:
    """The settings that the options stand for.

    Args:
        sources: who set them, by the settings' paths (`SettingSources.of`).

    Raises:
        OptionsError: names every source, option, value and what is allowed.
    """
    values = {setting.path: getattr(options, setting.option) for setting in every_setting()}
    try:
        return settings_from(values, sources)
    except SettingsError as e:
        raise exceptions.OptionsError(str(e)) from e
