"""Where settings come from, strongest first: environment, options of mitmproxy (and flags), YAML file, default.

What the environment and the file say is written into mitmproxy's options, so that all else, mitmweb's options page too,
sees one place. The file is read again when it changes, and then taken whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from mitmproxy import exceptions
from mitmproxy.optmanager import OptManager

from kubetunnel.core.settings import Setting, every_setting
from kubetunnel.options import CONFIG
from kubetunnel.setting_values import OptionValue, Problem, SettingsError, default_option_value, option_value

logger = logging.getLogger(__name__)

_CONFIG_ENV = "KTUN_CONFIG"
_MAX_FILE_BYTES = 1 << 20


def find_config(chosen: str, environ: Mapping[str, str]) -> Path | None:
    """The settings file: the chosen one, else the first that is there of the usual places.

    Raises:
        SettingsError: the chosen one is not there.
    """
    for source, key, path in (
        ("environment", _CONFIG_ENV, environ.get(_CONFIG_ENV)),
        ("option", CONFIG, chosen),
    ):
        if path:
            found = Path(path).expanduser()
            if not found.is_file():
                raise SettingsError([Problem(source, key, f"{path!r} is no file")])
            return found
    home = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    usual = (Path("kube-tunnel.yaml"), home / "kube-tunnel" / "config.yaml", Path("/etc/kube-tunnel/config.yaml"))
    return next((path for path in usual if path.is_file()), None)


def read_config(path: Path) -> dict[str, OptionValue]:
    """What a settings file says, by the settings' paths. Raises SettingsError with all that is wrong in it."""
    try:
        with path.open("rb") as file:
            document = yaml.safe_load(file.read(_MAX_FILE_BYTES))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError([Problem(str(path), "file", f"cannot be read: {e}")]) from e
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError([Problem(str(path), "file", "is not a mapping of settings")])
    known = {setting.path: setting for setting in every_setting()}
    values: dict[str, OptionValue] = {}
    problems: list[Problem] = []
    for key, value in _flattened(document, "", known):
        setting = known.get(key)
        if setting is None:
            problems.append(Problem(str(path), key, _unknown(key, known)))
            continue
        try:
            values[key] = option_value(setting, value)
        except ValueError as e:
            problems.append(Problem(str(path), key, str(e)))
    if problems:
        raise SettingsError(problems)
    return values


def _flattened(document: Mapping[Any, Any], prefix: str, known: Mapping[str, Setting]) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in known:
            yield from _flattened(value, f"{path}.", known)
        else:
            yield path, value


def _unknown(key: str, known: Mapping[str, Setting]) -> str:
    section = key.rpartition(".")[0]
    near = [path for path in known if path.rpartition(".")[0] == section]
    return f"there is no such setting; there are {', '.join(near or known)}"


def read_environment(environ: Mapping[str, str]) -> dict[str, OptionValue]:
    """What environment variables say, by the settings' paths. Raises SettingsError with all that is wrong in them."""
    values: dict[str, OptionValue] = {}
    problems: list[Problem] = []
    for setting in every_setting():
        text = environ.get(setting.env) if setting.env else None
        if setting.env and text:
            try:
                values[setting.path] = option_value(setting, text)
            except ValueError as e:
                problems.append(Problem("environment", setting.env, str(e)))
    if problems:
        raise SettingsError(problems)
    return values


class SettingSources:
    """Writes what environment and file say into the options, and keeps account of who said what.

    `of`: the source of each value that is no default, by the setting's path, as errors and listings name it.
    """

    def __init__(self, options: OptManager, environ: Mapping[str, str] = os.environ) -> None:
        self.of: dict[str, str] = {}
        self._options = options
        self._environ = environ
        self._file: Path | None = None
        self._seen: tuple[int, int] | None = None

    def load(self) -> None:
        """In the `load` hook, while what was given on the command line is still deferred. Raises SettingsError."""
        problems: list[Problem] = []
        environment = self._take(lambda: read_environment(self._environ), problems)
        chosen = self._options.deferred.get(CONFIG)
        words = getattr(chosen, "val", chosen)
        chosen = words[0] if isinstance(words, list) else words or ""
        file: dict[str, OptionValue] = {}

        def read_file() -> dict[str, OptionValue]:
            self._file = find_config(chosen, self._environ)
            self._seen = _stamp(self._file)
            return read_config(self._file) if self._file else {}

        file = self._take(read_file, problems)
        if problems:
            raise SettingsError(problems)
        updates: dict[str, OptionValue] = {}
        for setting in every_setting():
            if setting.path in environment:
                self._options.deferred.pop(setting.option, None)
                updates[setting.option] = environment[setting.path]
                self.of[setting.path] = f"environment: {setting.env}"
            elif setting.option in self._options.deferred:
                self.of[setting.path] = f"option: {setting.option}"
            elif setting.path in file:
                updates[setting.option] = file[setting.path]
                self.of[setting.path] = f"{self._file}: {setting.path}"
        self._options.update(**updates)
        if self._file:
            logger.info("Settings from %s.", self._file)

    @staticmethod
    def _take(read: Any, problems: list[Problem]) -> dict[str, OptionValue]:
        try:
            return read()  # type: ignore[no-any-return]
        except SettingsError as e:
            problems += e.problems
            return {}

    def look(self) -> None:
        """Takes up a file that changed since; one that is wrong is told of and left."""
        stamp = _stamp(self._file)
        if self._file is None or stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._take_up(read_config(self._file))
        except (SettingsError, exceptions.OptionsError) as e:
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
        changed = {name: value for name, value in updates.items() if getattr(self._options, name) != value}
        if changed:
            self._options.update(**changed)
            logger.info("%s was changed: %s.", self._file, ", ".join(f"{k} is {v!r}" for k, v in changed.items()))
        else:
            logger.info("%s was changed, but nothing in it that counts.", self._file)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if path else None
    except OSError:
        return None  # being replaced by an editor; the next look finds it
    return (found.st_mtime_ns, found.st_ino) if found else None
