"""The settings as options of mitmproxy, `kube_…`: for `--set`, its config.yaml and mitmweb's options page.

What environment and settings file say is written into the options, so that all else sees one place. Strongest first:
environment, options (and flags, which become options), file, default. The file is read again when it changes, or when
one comes in a stronger place, and then taken whole or not at all.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from mitmproxy import exceptions
from mitmproxy.optmanager import OptManager

from kubetunnel.core.settings import Setting, Settings, every_setting
from kubetunnel.setting_sources import CONFIG, config_places, read_config, read_sources
from kubetunnel.setting_values import OptionValue, SettingsError, default_option_value, settings_from

logger = logging.getLogger(__name__)

PREFIX = "kube_"
_LOOKS_UNTIL_GONE = 2

type _Seen = tuple[Path, tuple[int, int, int]]


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
        self._places: tuple[Path, ...] = ()
        self._file: Path | None = None  # whose settings are in force
        self._from_file: dict[str, OptionValue] = {}
        self._seen: _Seen | None = None  # the last one that was read, be it taken or refused
        self._missing = 0  # looks that did not find it, one after the other

    def load(self) -> None:
        """In the `load` hook, while what was given on the command line is still deferred. Raises SettingsError."""
        given = self._options.deferred.get(CONFIG, "")
        words = getattr(given, "val", given)  # of --set; what mitmproxy's own file has is typed
        chosen = words[0] if isinstance(words, list) else words
        found = read_sources(self._environ, chosen)
        self._places = config_places(chosen, self._environ)
        self._file, self._seen = found.file, _first(self._places)
        updates: dict[str, OptionValue] = {}
        for setting in every_setting():
            value, source = found.values.get(setting.path, (None, ""))
            if setting.option in self._options.deferred and not source.startswith("environment"):
                self.of[setting.path] = f"option: {setting.option}"
            elif value is not None:
                self._options.deferred.pop(setting.option, None)
                updates[setting.option], self.of[setting.path] = value, source
                if not source.startswith("environment"):
                    self._from_file[setting.path] = value
        self._options.update(**updates)
        if self._file:
            logger.info("Settings from %s.", self._file)

    def look(self) -> None:
        """Takes up a file that changed, or came in a stronger place than that of the one in force.

        One that is wrong is told of and left. So is one that is gone: its settings stay.
        """
        places = self._places[: self._places.index(self._file) + 1] if self._file else self._places
        seen = _first(places)
        if seen is None:
            self._tell_missing()
            return
        self._missing = 0
        if seen == self._seen:
            return
        path, _ = seen
        news = "was changed" if self._seen and path == self._file else "is there now"
        self._seen = seen
        before = dict(self.of)
        try:
            file = read_config(path)
            changed = self._take_up(path, file)
        except (SettingsError, exceptions.OptionsError) as e:
            self.of = before
            logger.warning("%s %s, but is not taken: the settings stay as they are.\n%s", path, news, e)
            return
        self._file, self._from_file = path, file
        if changed:
            logger.info("%s %s: %s.", path, news, ", ".join(changed))
        else:
            logger.info("%s %s, but nothing in it that counts.", path, news)

    def _tell_missing(self) -> None:
        self._missing += 1
        # an editor that replaces it is done by the second look
        if self._missing == _LOOKS_UNTIL_GONE:
            self._seen = None  # when it is back, that is told
            if self._file:
                logger.warning("%s is gone: its settings stay until it is back, or the tunnel ends.", self._file)

    def _take_up(self, path: Path, file: Mapping[str, OptionValue]) -> list[str]:
        """What changed, in words."""
        updates: dict[str, OptionValue] = {}
        for setting in every_setting():
            default = default_option_value(setting)
            weakest = self._from_file.get(setting.path, default)
            is_files = self.of.get(setting.path) in (None, f"{self._file}: {setting.path}")
            if not is_files or getattr(self._options, setting.option) != weakest:
                continue  # environment, flags, and options that were set meanwhile are stronger than a file
            if setting.path in file:
                self.of[setting.path] = f"{path}: {setting.path}"
                updates[setting.option] = file[setting.path]
            elif self.of.pop(setting.path, None):
                updates[setting.option] = default
        former = {name: getattr(self._options, name) for name in updates}
        changed = {name: value for name, value in updates.items() if former[name] != value}
        if changed:
            self._options.update(**changed)
        paths = {setting.option: setting.path for setting in every_setting()}
        return [f"{paths[name]} from {former[name]!r} to {value!r}" for name, value in changed.items()]


def _first(places: Sequence[Path]) -> _Seen | None:
    """The first file that is there, with what changes when it does."""
    for path in places:
        try:
            found = path.stat()
        except OSError:
            continue  # being replaced by an editor, it may be; the next look finds it
        if stat.S_ISREG(found.st_mode):
            return path, (found.st_mtime_ns, found.st_ino, found.st_size)
    return None
