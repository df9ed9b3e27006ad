"""The settings as options of mitmproxy, `kube_…`: for `--set`, its config.yaml and mitmweb's options page.

What environment and settings file say is written into the options, so that all else sees one place. Strongest first:
environment, options (and flags, which become options), file, default. The file is read again when it changes, and then
taken whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from mitmproxy import exceptions
from mitmproxy.optmanager import OptManager

from kubetunnel.core.settings import Setting, Settings, every_setting
from kubetunnel.setting_sources import CONFIG, read_config, read_sources
from kubetunnel.setting_values import OptionValue, SettingsError, default_option_value, settings_from

logger = logging.getLogger(__name__)

PREFIX = "kube_"


def add_options(loader: Any) -> None:
    """To be called in the `load` hook."""
    loader.add_option(CONFIG, str, "", "The YAML file of settings; empty: the first that is there of the usual places.")
    types: dict[str, Any] = {"switch": bool, "number": int, "list": Sequence[str]}
    for setting in every_setting():
        kind = types.get(setting.kind, str)
        if setting.kind == "number" and setting.default is None:
            kind = Optional[int]  # noqa: UP045 - the only spelling that mitmproxy knows
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


class SettingSources:
    """Writes what environment and file say into the options, and keeps account of who said what.

    `of`: the source of each value that is no default, by the setting's path, as errors name it.
    """

    def __init__(self, options: OptManager, environ: Mapping[str, str] = os.environ) -> None:
        self.of: dict[str, str] = {}
        self._options = options
        self._environ = environ
        self._file: Path | None = None
        self._seen: tuple[int, int] | None = None

    def load(self) -> None:
        """In the `load` hook, while what was given on the command line is still deferred. Raises SettingsError."""
        chosen = self._options.deferred.get(CONFIG, "")
        words = getattr(chosen, "val", chosen)  # of --set; what mitmproxy's own file has is typed
        found = read_sources(self._environ, words[0] if isinstance(words, list) else words)
        self._file, self._seen = found.file, _stamp(found.file)
        updates: dict[str, OptionValue] = {}
        for setting in every_setting():
            value, source = found.values.get(setting.path, (None, ""))
            if setting.option in self._options.deferred and not source.startswith("environment"):
                self.of[setting.path] = f"option: {setting.option}"
            elif value is not None:
                self._options.deferred.pop(setting.option, None)
                updates[setting.option], self.of[setting.path] = value, source
        self._options.update(**updates)
        if self._file:
            logger.info("Settings from %s.", self._file)

    def look(self) -> None:
        """Takes up a file that changed since; one that is wrong is told of and left."""
        stamp = _stamp(self._file)
        if self._file is None or stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        before = dict(self.of)
        try:
            self._take_up(read_config(self._file))
        except (SettingsError, exceptions.OptionsError) as e:
            self.of = before
            logger.warning("%s was changed, but is not taken: the settings stay as they are.\n%s", self._file, e)

    def _take_up(self, file: Mapping[str, OptionValue]) -> None:
        updates: dict[str, OptionValue] = {}
        for setting in every_setting():
            source = f"{self._file}: {setting.path}"
            if setting.path in file and self.of.get(setting.path) in (None, source):
                self.of[setting.path] = source
                updates[setting.option] = file[setting.path]
            elif self.of.get(setting.path) == source and setting.path not in file:
                del self.of[setting.path]
                updates[setting.option] = default_option_value(setting)
        former = {name: getattr(self._options, name) for name in updates}
        changed = {name: value for name, value in updates.items() if former[name] != value}
        if changed:
            self._options.update(**changed)
            paths = {setting.option: setting.path for setting in every_setting()}
            told = ", ".join(f"{paths[name]} from {former[name]!r} to {value!r}" for name, value in changed.items())
            logger.info("%s was changed: %s.", self._file, told)
        else:
            logger.info("%s was changed, but nothing in it that counts.", self._file)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if path else None
    except OSError:
        return None  # being replaced by an editor; the next look finds it
    return (found.st_mtime_ns, found.st_ino) if found else None
