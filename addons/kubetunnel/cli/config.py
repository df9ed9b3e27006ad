"""`kube-tunnel config`: the settings in force and where each comes from; the documents that are made of them."""

from __future__ import annotations

import json
import os
import sys

import click


@click.command()
@click.option("--config", "-config", "chosen", metavar="FILE", default="", help="The YAML file of settings.")
@click.option("--json", "-json", "as_json", is_flag=True, help="As JSON.")
@click.option("--example", "-example", "document", flag_value="example", help="Print an example file instead.")
@click.option(
    "--reference", "-reference", "document", flag_value="reference", help="Print the reference (Markdown) instead."
)
@click.option(
    "--schema",
    "-schema",
    "document",
    flag_value="schema",
    help="Print a JSON Schema of the file, for editors, instead.",
)
def command(chosen: str, as_json: bool, document: str | None) -> None:
    """Print every setting with its value, and where that comes from: environment, file or default.

    A flag or an option of mitmproxy belongs to one start of the tunnel, so none is shown here.
    """
    from kubetunnel import setting_docs

    if document == "schema":
        click.echo(json.dumps(setting_docs.json_schema(), indent=2, ensure_ascii=False))
    elif document is not None:
        click.echo({"example": setting_docs.example_file, "reference": setting_docs.reference}[document](), nl=False)
    else:
        _print_settings(chosen, as_json=as_json)


def _print_settings(chosen: str, *, as_json: bool) -> None:
    from kubetunnel.core.settings import every_setting
    from kubetunnel.setting_sources import read_sources
    from kubetunnel.setting_values import SettingsError, default_option_value

    try:
        found = read_sources(os.environ, chosen, chosen_by=("flag", "--config")).values
    except SettingsError as e:
        for problem in e.problems:
            click.echo(f"kube-tunnel: {problem}", err=True)
        sys.exit(2)
    rows = []
    for setting in every_setting():
        value, source = found.get(setting.path, (default_option_value(setting), "default"))
        rows.append({"setting": setting.path, "value": value, "source": source})
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max(len(str(row["setting"])) for row in rows)
    shown = [_shown(row["value"]) for row in rows]
    value_width = min(40, max(map(len, shown)))
    for row, value in zip(rows, shown, strict=True):
        click.echo(f"{row['setting']:<{width}}  {value:<{value_width}}  {row['source']}".rstrip())


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if value in (None, ""):
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
