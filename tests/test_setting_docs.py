"""The documents made of the settings are those of the tree, and true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kubetunnel.core.settings import Settings, every_setting
from kubetunnel.setting_docs import example_file, json_schema, reference, shown_default
from kubetunnel.setting_sources import read_config, read_sources
from kubetunnel.setting_values import SettingsError, settings_from
from tests.tunnel import ROOT


def uncommented(text: str) -> str:
    """The example as somebody would have it who takes the `# ` away before every setting."""
    keys = {setting.path.rpartition(".")[2] for setting in every_setting()}
    lines = text.splitlines()
    return "\n".join(
        line.replace("# ", "", 1) if line.lstrip(" #").split(":")[0] in keys and ": " in line else line
        for line in lines
    )


def test_the_files_are_what_the_program_prints() -> None:
    assert (ROOT / "config.example.yaml").read_text() == example_file(), "run: make docs"
    assert (ROOT / "docs" / "settings.md").read_text() == reference(), "run: make docs"


def test_the_example_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(example_file())
    assert read_config(path) == {}
    path.write_text(uncommented(example_file()))
    values = read_config(path)
    assert values.keys() == {setting.path for setting in every_setting()}
    assert settings_from(values) == Settings()


def test_every_setting_is_in_the_reference_and_has_a_sentence() -> None:
    for setting in every_setting():
        assert f"| `{setting.path}` | `{setting.option}` |" in reference()
        assert setting.doc.endswith(".")
        assert f"`{shown_default(setting)}`" in reference()


def test_names_are_used_once() -> None:
    for name in ("path", "option", "env", "flag"):
        names = [getattr(setting, name) for setting in every_setting() if getattr(setting, name)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "document",
    [
        {}, {"retry": None}, {"retry": {"max": 0, "delay": "1.5s"}}, {"retry": {"delay": "100MS"}},
        {"dns": {"ttl": "0"}}, {"grpc": {"timeout": "1M30S"}}, {"zones": {"prod.local": "production"}},
        {"zones": ["prod.local=production"]},
        {"services": [{"service": "api.shop", "port": 80}, "x.y passthrough=true"]},
        {"cluster": {"context": None, "demo": True}}, yaml.safe_load(uncommented(example_file())),
    ],
)  # fmt: skip
def test_the_schema_takes_what_the_program_takes(document: Any, tmp_path: Path) -> None:
    jsonschema.validate(document, json_schema())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    read_sources({"KTUN_CONFIG": str(path)}, "")


@pytest.mark.parametrize(
    "document",
    [
        {"nonsense": 1}, {"retry": {"max": 11}}, {"retry": {"max": "2"}}, {"retry": {"delay": "soon"}},
        {"retry": {"delay": "01s0"}}, {"services": [{"port": 80}]}, {"zones": {"prod.local": 1}},
        {"cluster": {"demo": "perhaps"}}, [],
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_program_refuses(document: Any, tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
    if document != {"retry": {"max": "2"}}:  # the program is kinder to quotes
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(SettingsError):
            read_sources({"KTUN_CONFIG": str(path)}, "")
