"""What a source says of a setting, read: texts of the environment, options of mitmproxy, values of a YAML file.

A source's value is checked here and becomes an option of mitmproxy (`option_value`), and all options together the
`Settings` (`settings_from`). Nothing is clamped: what is not allowed is an error that says what is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from ipaddress import ip_network
from typing import Any, get_type_hints

from kubetunnel.core.durations import EXPECTED, format_duration, format_number, parse_duration
from kubetunnel.core.names import is_address, zone_is_valid
from kubetunnel.core.settings import Setting, Settings, ZoneSettings, every_setting
from kubetunnel.forward_specs import parse_entry
from kubetunnel.service_specs import parse_services, spec_of
from netsetup.layout import link_name_is_valid

type OptionValue = str | int | bool | list[str] | None

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class Problem:
    """One value that cannot be taken: `environment: KTUN_RETRY_MAX: 'x' is not a whole number`."""

    source: str
    key: str
    complaint: str

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.complaint}"


class SettingsError(ValueError):
    """All that is wrong with the settings, at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def option_value(setting: Setting, value: Any) -> OptionValue:
    """A source's value as that of the mitmproxy option. Raises ValueError that says what is allowed."""
    taken = _plain(setting, value)
    _final(setting, taken)
    return taken


def _plain(setting: Setting, value: Any) -> OptionValue:
    match setting.kind:
        case "switch":
            return _switch(value)
        case "number":
            if setting.default is None and value in (None, ""):
                return None
            number = _number(value)
            _check_range(setting, number, format_number(number))
            return number
        case "duration":
            text = _text(value, EXPECTED)
            _check_range(setting, parse_duration(text), text)
            return text
        case "list":
            return _items(setting, value)
        case "text":
            choices = ", ".join(filter(None, setting.choices))
            text = "" if value is None else _text(value, f"one of {choices}" if choices else setting.takes or "a text")
            if setting.choices:
                text = text.lower()
                if text not in setting.choices:
                    raise ValueError(f"{text!r} is none of {choices}")
            return text


def default_option_value(setting: Setting) -> OptionValue:
    """The option's default."""
    if setting.kind == "duration":
        return format_duration(setting.default)
    if setting.kind == "list":
        return list(setting.default)
    return "" if setting.default is None and setting.kind == "text" else setting.default


def settings_from(values: Mapping[str, OptionValue], sources: Mapping[str, str] | None = None) -> Settings:
    """The settings that all options together stand for.

    Args:
        values: by the settings' paths; what is missing has its default.
        sources: where a value came from, by path, as errors name it; `option kube_…` where it is not said.

    Raises:
        SettingsError: with every problem, not only the first.
    """
    problems: list[Problem] = []
    read: dict[str, Any] = {}
    for setting in every_setting():
        value = values.get(setting.path, default_option_value(setting))
        try:
            read[setting.path] = _final(setting, _plain(setting, value))
        except ValueError as e:
            source, _, key = (sources or {}).get(setting.path, f"option: {setting.option}").partition(": ")
            problems.append(Problem(source, key, str(e)))
    if problems:
        raise SettingsError(problems)
    return _build(Settings, "", read)  # type: ignore[no-any-return]


def _final(setting: Setting, value: OptionValue) -> Any:
    for item in value if isinstance(value, list) else [value] if value != "" or setting.default is not None else []:
        if setting.form and not _FORMS[setting.form](str(item)):
            raise ValueError(f"{item!r} is not {_SINGULAR.get(setting.form, setting.takes)}")
    if isinstance(value, list):
        return _LISTS.get(setting.path, tuple)(value)
    if setting.kind == "duration":
        return parse_duration(str(value))
    return None if setting.default is None and value == "" else value


def _zones(items: Sequence[str]) -> tuple[ZoneSettings, ...]:
    zones = []
    for item in items:
        zone, equals, context = item.partition("=")
        if not (equals and context and zone_is_valid(zone)):
            raise ValueError(f"{item!r} is not ZONE=CONTEXT, such as prod.local=production")
        zones.append(ZoneSettings(zone.lower(), context))
    if len({zone.zone for zone in zones}) < len(zones):
        raise ValueError("a zone is there twice")
    return tuple(zones)


def _is_prefix(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return "/" in text


_FORMS: dict[str, Callable[[str], bool]] = {
    "zone": zone_is_valid,
    "address": is_address,
    "prefix": _is_prefix,
    "link": link_name_is_valid,
}
_SINGULAR = {"prefix": "a prefix such as 10.8.0.0/24"}


def _forwards(items: Sequence[str]) -> tuple[str, ...]:
    for item in items:
        parse_entry(item)
    return tuple(items)


def _prefixes(items: Sequence[str]) -> tuple[str, ...]:
    versions = {ip_network(item).version for item in items}
    if len(versions) != 1:
        raise ValueError("give at least one prefix, and all of IPv4 or all of IPv6")
    return tuple(items)


_LISTS: dict[str, Any] = {
    "services": parse_services,
    "zones": _zones,
    "forwards": _forwards,
    "network.ip_ranges": _prefixes,
}


def _build(section: type, prefix: str, values: Mapping[str, Any]) -> Any:
    types = get_type_hints(section)
    arguments = {}
    for item in fields(section):
        declared = types[item.name]
        nested = isinstance(declared, type) and is_dataclass(declared)
        path = prefix + item.name
        arguments[item.name] = (
            _build(declared, f"{path}.", values) if nested else values[prefix + item.name.removesuffix("_s")]
        )
    return section(**arguments)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"{value!r} is neither true nor false")
    return text in _TRUE


def _number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip() if isinstance(value, str) else ""
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{value!r} is not a whole number")
    return int(text)


def _text(value: Any, expected: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not {expected}")  # noqa: TRY004 - a user's mistake, not a programmer's
    return value.strip()


def _items(setting: Setting, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
        # YAML: `zones: {prod.local: production}`
        return [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, Sequence):
        if setting.path == "services":
            value = [spec_of(item) if isinstance(item, Mapping) else item for item in value]
        if all(isinstance(item, str) for item in value):
            return list(value)
    raise ValueError(f"{value!r} is not a list of {setting.takes or 'texts'}")


def _check_range(setting: Setting, value: float, text: str) -> None:
    shown = format_duration if setting.kind == "duration" else format_number
    if setting.least is not None and value < setting.least:
        raise ValueError(f"{text} is less than {shown(setting.least)}")
    if setting.most is not None and value > setting.most:
        raise ValueError(f"{text} is more than {shown(setting.most)}")
