"""What the environment and the YAML file say of the settings. The environment is stronger; mistakes come at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubetunnel.core.settings import Setting, every_setting
from kubetunnel.setting_values import OptionValue, Problem, SettingsError, option_value

CONFIG = "kube_config"  # the option of mitmproxy that names the file
_ENV_PREFIX = "KTUN_"
_CONFIG_ENV = f"{_ENV_PREFIX}CONFIG"
_MAX_FILE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML's last one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def config_places(chosen: str, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the settings file may be, the strongest first; the chosen one alone where there is one.

    Args:
        chosen: a path, "" for none; the environment's is stronger.
    """
    if path := environ.get(_CONFIG_ENV) or chosen:
        return (Path(path).expanduser(),)
    home = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return Path("kube-tunnel.yaml"), home / "kube-tunnel" / "config.yaml", Path("/etc/kube-tunnel/config.yaml")


def find_config(
    chosen: str, environ: Mapping[str, str], *, chosen_by: tuple[str, str] = ("option", CONFIG)
) -> Path | None:
    """The first settings file that is there. Arguments as `config_places` has them.

    Args:
        chosen_by: the source and the key that gave the chosen one, for errors.

    Raises:
        SettingsError: the chosen one is not there.
    """
    places = config_places(chosen, environ)
    found = next((path for path in places if path.is_file()), None)
    by_environment = environ.get(_CONFIG_ENV)
    if found is None and (by_environment or chosen):
        source, key = ("environment", _CONFIG_ENV) if by_environment else chosen_by
        raise SettingsError([Problem(source, key, f"{by_environment or chosen!r} is no file")])
    return found


def read_config(path: Path) -> dict[str, OptionValue]:
    """What a settings file says, by the settings' paths. Raises SettingsError with all that is wrong in it."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        document = yaml.load(content, _Loader) if len(content) <= _MAX_FILE_BYTES else None  # noqa: S506 - a safe one
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: such as the date 2024-13-45
        raise SettingsError([Problem(str(path), "file", f"cannot be read: {_in_a_line(e)}")]) from e
    if len(content) > _MAX_FILE_BYTES:
        raise SettingsError([Problem(str(path), "file", f"is longer than {_MAX_FILE_BYTES} bytes")])
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


def _in_a_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        context = f" ({error.context})" if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{context}"
    return " ".join(str(error).split())


def _flattened(document: Mapping[Any, Any], prefix: str, known: Mapping[str, Setting]) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        path = f"{prefix}{key}"
        is_section = any(setting.startswith(f"{path}.") for setting in known)
        if isinstance(value, Mapping) and is_section:  # no deeper than the tree: an alias may contain itself
            yield from _flattened(value, f"{path}.", known)
        elif value is None and is_section:
            continue  # all in it is commented out
        else:
            yield path, value


def _unknown(key: str, known: Mapping[str, Setting]) -> str:
    inside = [path for path in known if path.startswith(f"{key}.")]
    if inside:
        return f"is a section, a mapping; there are {', '.join(inside)}"
    section = key.rpartition(".")[0]
    near = [path for path in known if path.rpartition(".")[0] == section]
    if not section:
        near = list(dict.fromkeys(path.partition(".")[0] for path in known))
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
    known = [_CONFIG_ENV, *(setting.env for setting in every_setting() if setting.env)]
    told = f"there is no such setting; there are {', '.join(known)}"
    unknown = sorted(name for name in environ if name.startswith(_ENV_PREFIX) and environ[name] and name not in known)
    problems += [Problem("environment", name, told) for name in unknown]
    if problems:
        raise SettingsError(problems)
    return values


@dataclass(frozen=True, slots=True)
class Found:
    """What environment and file say.

    Attributes:
        values: value and source (`environment: KTUN_RETRY_MAX`, `FILE: retry.max`) by the setting's path.
        file: the settings file, None where there is none.
    """

    values: dict[str, tuple[OptionValue, str]]
    file: Path | None


def read_sources(environ: Mapping[str, str], chosen: str, *, chosen_by: tuple[str, str] = ("option", CONFIG)) -> Found:
    """Reads both; arguments as `find_config`'s. Raises SettingsError with all that is wrong in either."""
    problems: list[Problem] = []
    environment: dict[str, OptionValue] = {}
    from_file: dict[str, OptionValue] = {}
    file = None
    try:
        environment = read_environment(environ)
    except SettingsError as e:
        problems += e.problems
    try:
        file = find_config(chosen, environ, chosen_by=chosen_by)
        from_file = read_config(file) if file else {}
    except SettingsError as e:
        problems += e.problems
    if problems:
        raise SettingsError(problems)
    values = {path: (value, f"{file}: {path}") for path, value in from_file.items()}
    variables = {setting.path: f"environment: {setting.env}" for setting in every_setting()}
    values |= {path: (value, variables[path]) for path, value in environment.items()}
    return Found(values, file)
