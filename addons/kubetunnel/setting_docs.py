"""The settings as documents, made from the tree: an example file, a reference, and a JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from kubetunnel.core.durations import format_duration, format_number
from kubetunnel.core.settings import ServiceSettings, Setting, every_setting
from kubetunnel.core.spoken import APP_PROTOCOLS

_DURATION = r"^(0|(([0-9]+\.?[0-9]*|\.[0-9]+)([nuµμmNUM]?[sS]|[mMhH]))+)$"
_HEAD = """\
# kube-tunnel's settings, each with its default. Taken from --config FILE or $KTUN_CONFIG, else ./kube-tunnel.yaml,
# $XDG_CONFIG_HOME/kube-tunnel/config.yaml, /etc/kube-tunnel/config.yaml; while running too, when it comes or changes.
# Made by `kube-tunnel config --example`.
"""


def shown_default(setting: Setting) -> str:
    """The default as it would be written in YAML."""
    match setting.kind:
        case "switch":
            return str(setting.default).lower()
        case "duration":
            return format_duration(setting.default)
        case "list":
            return f"[{', '.join(setting.default)}]"
    return "null" if setting.default is None else str(setting.default)


def allowed(setting: Setting) -> str:
    """What it takes, in a few words."""
    if setting.choices:
        return ", ".join(filter(None, setting.choices))
    kinds = {"switch": "true or false", "duration": "a duration", "number": "a whole number", "list": "a list"}
    form = setting.takes or kinds.get(setting.kind, "a text")
    if setting.kind == "list" and setting.takes:
        form = f"a list of {setting.takes}"
    if setting.least is None or setting.most is None:
        return form
    shown = format_duration if setting.kind == "duration" else format_number
    return f"{form}, {shown(setting.least)} to {shown(setting.most)}"


def example_file() -> str:
    """`config.example.yaml`: every setting with its default, commented out, so that a copy changes nothing."""
    lines, section = [_HEAD.rstrip()], ""
    for setting in every_setting():
        path, _, key = setting.path.rpartition(".")
        indent = "  " * path.count(".") + "  " if path else ""
        if path != section:
            lines += ["", *_section_heads(section, path)]
            section = path
        elif not path:
            lines.append("")
        others = ", ".join(filter(None, [setting.env, setting.flag]))
        start = "" if setting.live else " Taken at the start alone."
        lines.append(f"{indent}# {setting.doc} {allowed(setting)[:1].upper()}{allowed(setting)[1:]}.{start}")
        lines += [f"{indent}# Also {others}."] if others else []
        lines.append(f"{indent}# {key}: {shown_default(setting)}")
    return "\n".join(lines) + "\n"


def _section_heads(former: str, path: str) -> Iterator[str]:
    """The keys that lead to a section, those that are not open yet."""
    open_keys, keys = former.split(".") if former else [], path.split(".") if path else []
    for depth, key in enumerate(keys):
        if open_keys[: depth + 1] != keys[: depth + 1]:
            yield f"{'  ' * depth}{key}:"


def reference() -> str:
    """`docs/settings.md`."""
    rows = [
        f"| `{s.path}` | `{s.option}` | {_code(s.env)} | {_code(s.flag)} | `{shown_default(s)}` "
        f"| {s.doc} {_cell(allowed(s))}{'' if s.live else ' Taken at the start alone.'} |"
        for s in every_setting()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "Made from the settings' tree by `kube-tunnel config --reference`. Sources, strongest first: environment,",
            "options of mitmproxy and flags, the YAML file, the default. Flags are written with one dash or two, and",
            "with a space or `=`. The file is read again when it changes: taken whole, or refused whole with all that",
            "is wrong in it, and the log says what changed. So is one that comes while running, where there was none",
            "or in a stronger place. When it is gone, that is told, and its settings stay until it is back or the",
            "tunnel ends.",
            "",
            "| in the file | option of mitmproxy | environment | flag | default | |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"({escaped})"


def json_schema() -> dict[str, Any]:
    """The schema of the settings file."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_object("kube-tunnel's settings"),
    }
    for setting in every_setting():
        *sections, key = setting.path.split(".")
        place = root
        for section in sections:
            place = place["properties"].setdefault(section, _object() | {"type": ["object", "null"]})
        place["properties"][key] = _schema_of(setting)
    return root


def _object(title: str = "") -> dict[str, Any]:
    return {**({"title": title} if title else {}), "type": "object", "additionalProperties": False, "properties": {}}


def _schema_of(setting: Setting) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": f"{setting.doc} {allowed(setting)}."}
    match setting.kind:
        case "switch":
            schema |= {"type": "boolean", "default": setting.default}
        case "number":
            kinds: Any = "integer" if setting.default is not None else ["integer", "null"]
            schema |= {"type": kinds, "minimum": setting.least, "maximum": setting.most, "default": setting.default}
        case "duration":
            schema |= {"type": "string", "pattern": _DURATION, "default": format_duration(setting.default)}
        case "list":
            schema |= _list_schema(setting)
        case "text":
            schema |= {"type": "string"} if setting.default is not None else {"type": ["string", "null"]}
            schema |= {"enum": [choice or None for choice in setting.choices]} if setting.choices else {}
            schema |= {"default": setting.default}
    return {key: value for key, value in schema.items() if value is not None or key == "default"}


def _list_schema(setting: Setting) -> dict[str, Any]:
    strings = {"type": "array", "items": {"type": "string"}}
    if setting.path == "zones":
        return {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, strings]}
    if setting.path != "services":
        return strings
    types: dict[str, dict[str, Any]] = {
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "app_protocol": {"enum": list(APP_PROTOCOLS)},
        "passthrough": {"type": "boolean"},
    }
    entry = _object() | {"required": ["service"]}
    entry["properties"] = {item.name: types.get(item.name, {"type": "string"}) for item in fields(ServiceSettings)}
    return {"type": "array", "items": {"anyOf": [{"type": "string"}, entry]}}
