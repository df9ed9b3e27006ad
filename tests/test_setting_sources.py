"""Settings from every source: what is read, which source wins, and that all that is wrong is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options

from kubetunnel.core.settings import (
    ClusterSettings,
    RetrySettings,
    ServiceSettings,
    Settings,
    ZoneSettings,
    every_setting,
)
from kubetunnel.options import SettingSources, add_options, settings_of
from kubetunnel.setting_sources import read_config, read_environment
from kubetunnel.setting_values import SettingsError, default_option_value, settings_from


class Given:
    """The options of a mitmproxy that was started with these `--set`, and has just loaded the addon."""

    def __init__(self, environ: Mapping[str, str], *assignments: str) -> None:
        self.options = Options()
        self.options.set(*assignments, defer=True)
        self.sources = SettingSources(self.options, environ)
        add_options(_Loader(self.options))
        self.sources.load()
        self.options.process_deferred()

    @property
    def settings(self) -> Settings:
        return settings_of(self.options, self.sources.of)


class _Loader(Loader):
    def __init__(self, options: Options) -> None:
        self.options = options

    def add_option(self, *arguments: Any) -> None:
        self.options.add_option(*arguments)


def config(directory: Path, text: str) -> Path:
    path = directory / "kube-tunnel.yaml"
    path.write_text(text)
    return path


def test_the_defaults_of_the_options_are_those_of_the_tree() -> None:
    assert settings_from({}) == Settings()
    assert Given({"KTUN_CONFIG": ""}).settings == Settings()
    assert settings_from({s.path: default_option_value(s) for s in every_setting()}) == Settings()


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    path = config(tmp_path, "retry: {max: 1, delay: 1s}\ncluster: {zone: file.local, context: file}\n")
    environ = {"KTUN_CONFIG": str(path), "KTUN_RETRY_MAX": "3"}
    given = Given(environ, "kube_retry_max=2", "kube_zone=option.local")
    assert given.settings == Settings(
        cluster=ClusterSettings(zone="option.local", context="file"), retry=RetrySettings(max=3, delay_s=1.0)
    )
    assert given.sources.of == {
        "retry.max": "environment: KTUN_RETRY_MAX",
        "retry.delay": f"{path}: retry.delay",
        "cluster.zone": "option: kube_zone",
        "cluster.context": f"{path}: cluster.context",
    }


def test_the_file_is_where_it_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    (home / "kube-tunnel").mkdir(parents=True)
    (home / "kube-tunnel" / "config.yaml").write_text("retry: {max: 7}")
    environ = {"XDG_CONFIG_HOME": str(home)}
    assert Given(environ).settings.retry.max == 7
    config(tmp_path, "retry: {max: 6}")
    assert Given(environ).settings.retry.max == 6
    other = tmp_path / "other.yaml"
    other.write_text("retry: {max: 5}")
    assert Given(environ, f"kube_config={other}").settings.retry.max == 5
    with pytest.raises(SettingsError, match="option: kube_config: '/nowhere' is no file"):
        Given(environ, "kube_config=/nowhere")


def test_lists_are_written_as_people_write_yaml(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        """
services:
- {service: api.shop, port: 8443, app_protocol: https}
- {service: vault.infra, passthrough: true}
- "*.legacy app_protocol=http"
zones: {prod.local: production}
""",
    )
    settings = Given({"KTUN_CONFIG": str(path)}).settings
    assert settings.services == (
        ServiceSettings("api.shop", 8443, app_protocol="https"),
        ServiceSettings("vault.infra", passthrough=True),
        ServiceSettings("*.legacy", app_protocol="http"),
    )
    assert settings.zones == (ZoneSettings("prod.local", "production"),)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = config(tmp_path, "retry: {max: -1, delya: 3s, delay: soon}\nhttp: {force_http2: maybe}\nnonsense: 1\n")
    with pytest.raises(SettingsError) as wrong:
        Given({"KTUN_CONFIG": str(path), "KTUN_RETRY_MAX": "many", "KTUN_GRPC_TIMEOUT": "25h"})
    assert [str(problem) for problem in wrong.value.problems] == [
        "environment: KTUN_RETRY_MAX: 'many' is not a whole number",
        "environment: KTUN_GRPC_TIMEOUT: 25h is more than 24h",
        f"{path}: retry.max: -1 is less than 0",
        f"{path}: retry.delya: there is no such setting; there are retry.max, retry.delay",
        f"{path}: retry.delay: 'soon' is not a duration such as 30s, 1m30s or 100ms",
        f"{path}: http.force_http2: 'maybe' is neither true nor false",
        f"{path}: nonsense: there is no such setting; there are proxy, log, cluster, retry, http, grpc, inspect, pool, "
        "health, dns, network, forward, forwards, services, zones, external_names",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("retry: [", r"file: cannot be read: line 1, column 9: .*stream end.* \(while parsing a flow \S+\)$"),
        ("retry:\n\tmax: 1", r"file: cannot be read: line 2, column 1: found character '\\t'.*"),
        ("- retry", "file: is not a mapping of settings"),
        ("retry: 3", "retry: is a section, a mapping; there are retry.max, retry.delay$"),
        (
            "network: {dns_interface: kd}",
            r"network\.dns_interface: is a section, a mapping; there are network\.dns_interface\.ip, ",
        ),
        ("retry: {max: 1}\nlog: {}\nretry: {delay: 1s}", "cannot be read: .*'retry' is there twice"),
        ("zones: {prod.local: a, prod.local: b}", "cannot be read: .*'prod.local' is there twice"),
        ("retry: {max: 1.5}", "retry.max: 1.5 is not a whole number"),
        ("retry: {max: true}", "retry.max: True is not a whole number"),
        ("retry: {delay: 3}", "retry.delay: 3 is not a duration"),
        ("zones: {prod: }", "zones: {'prod': None} is not a list of ZONE=CONTEXT"),
        ("zones: {bad..zone: x}", "zones: 'bad..zone=x' is not ZONE=CONTEXT"),
        ("zones: [prod.local=a, prod.local=b]", "zones: a zone is there twice"),
        ("cluster: {zone: [a]}", r"cluster.zone: \['a'\] is not a DNS zone"),
        ("services: [{port: 80}]", "services: .* has no service: NAME.NAMESPACE"),
        ("\x00", "cannot be read"),
        ("retry: {max: 2024-13-45}", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("retry: &a {x: *a}", "retry.x: there is no such setting"),
        ("#" * (1 << 20) + "\nretry: {max: 1}", "is longer than"),
        (
            "network: {dns_interface: {name: a b}}",
            "name: 'a b' is not an interface's name, 1-15 letters, digits, '.', '_', '-'$",
        ),
        ("network: {proxy_interface: {name: kube-proxy-of-us}}", "name: 'kube-proxy-of-us' is not an interface's name"),
        ("network: {proxy_interface: {name: ''}}", "name: '' is not an interface's name"),
        ("log: {level: loud}", "log.level: 'loud' is none of debug, info, warn, error, quiet$"),
        ("log: {level: 3}", "log.level: 3 is not one of debug, info, warn, error, quiet$"),
    ],
)
def test_a_file_that_cannot_be_taken(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=told):
        read_config(config(tmp_path, text))


def test_a_variable_that_is_none_of_ours_is_told() -> None:
    told = r"^environment: KTUN_PROT: there is no such setting; there are .*KTUN_PORT, "
    with pytest.raises(SettingsError, match=told):
        read_environment({"KTUN_PROT": "80", "KTUN_CONFIG": "x.yaml", "KTUN_OTHER": ""})


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_config(config(tmp_path, "# nothing yet\n")) == {}
    assert read_environment({"KTUN_RETRY_MAX": ""}) == {}


def test_a_changed_file_is_taken_whole_or_refused_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = config(tmp_path, "retry: {max: 1}\ngrpc: {timeout: 5s}\n")
    given = Given({"KTUN_CONFIG": str(path), "KTUN_GRPC_TIMEOUT": "7s"})
    (tmp_path / "new").write_text("retry: {max: 4}\nhttp: {force_http2: true}\ngrpc: {timeout: 9s}\n")
    (tmp_path / "new").replace(path)
    given.sources.look()
    assert (given.settings.retry.max, given.settings.http.force_http2) == (4, True)
    assert given.settings.grpc.timeout_s == 7  # the environment is stronger
    assert "was changed: retry.max from 1 to 4, " in caplog.text

    (tmp_path / "new").write_text("retry: {max: 3}\nhttp: {force_http2: perhaps}\n")
    (tmp_path / "new").replace(path)
    given.sources.look()
    assert given.settings.retry.max == 4
    assert "is not taken" in caplog.text

    path.unlink()
    given.sources.look()  # an editor is at it
    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(path)
    given.sources.look()
    assert given.settings == dataclasses.replace(Settings(), grpc=given.settings.grpc)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings file, not there yet; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "home" / "kube-tunnel" / "config.yaml"
    path.parent.mkdir(parents=True)
    return path


def test_a_file_that_comes_to_a_usual_place_is_taken_up(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = Given({"XDG_CONFIG_HOME": str(tmp_path / "home"), "KTUN_GRPC_TIMEOUT": "7s"}, "kube_retry_delay=2s")
    given.sources.look()
    home.write_text("retry: {max: many}")
    given.sources.look()
    assert f"{home} is there now, but is not taken: the settings stay as they are.\n{home}: retry.max: " in caplog.text
    home.unlink()
    home.write_text("retry: {max: 7, delay: 3s}\ngrpc: {timeout: 9s}\nhttp: {force_http2: true}")
    given.sources.look()
    assert given.settings.retry == RetrySettings(max=7, delay_s=2.0)  # options and environment are stronger
    assert given.settings.grpc.timeout_s == 7
    assert f"{home} is there now: retry.max from 2 to 7, http.force_http2 from False to True." in caplog.text
    assert given.sources.of["retry.max"] == f"{home}: retry.max"

    stronger = config(tmp_path, "retry: {max: 6}")
    given.sources.look()
    assert (given.settings.retry.max, given.settings.http.force_http2) == (6, False)
    home.write_text("retry: {max: 5}")  # it is the weaker one by now
    given.sources.look()
    assert given.settings.retry.max == 6
    stronger.unlink()
    for _ in range(3):
        given.sources.look()
    assert given.settings.retry.max == 6
    assert caplog.text.count("kube-tunnel.yaml is gone: its settings stay until it is back, or the tunnel ends.") == 1


def test_a_file_that_is_gone_is_told_of_once_and_taken_up_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = config(tmp_path, "retry: {max: 1}")
    given = Given({}, f"kube_config={path}")
    aside = path.rename(tmp_path / "aside")
    given.sources.look()  # an editor may be at it
    assert "is gone" not in caplog.text
    for _ in range(3):
        given.sources.look()
    assert caplog.text.count(f"{path} is gone: its settings stay until it is back, or the tunnel ends.") == 1
    assert given.settings.retry.max == 1
    aside.rename(path)
    given.sources.look()
    assert f"{path} is there now, but nothing in it that counts." in caplog.text
    path.unlink()
    for _ in range(3):
        given.sources.look()
    assert caplog.text.count("is gone") == 2
    path.write_text("retry: {max: 4}")
    given.sources.look()
    assert given.settings.retry.max == 4
    assert f"{path} is there now: retry.max from 1 to 4." in caplog.text


def test_a_stronger_file_that_is_wrong_leaves_the_one_in_force(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("retry: {max: 7}")
    given = Given({"XDG_CONFIG_HOME": str(tmp_path / "home")})
    stronger = config(tmp_path, "retry: {max: many}")
    for _ in range(3):
        given.sources.look()
    assert caplog.text.count("kube-tunnel.yaml is there now, but is not taken") == 1
    stronger.unlink()
    home.write_text("retry: {max: 8}")
    given.sources.look()
    assert given.settings.retry.max == 8


def test_an_option_that_was_set_while_running_is_stronger_than_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, "retry: {max: 1}")
    given = Given({"KTUN_CONFIG": str(path)})
    given.options.update(kube_retry_max=9, kube_force_http2=True)
    path.unlink()
    config(tmp_path, "retry: {max: 3, delay: 2s}\nhttp: {force_http2: false}")
    given.sources.look()
    assert given.settings.retry == RetrySettings(max=9, delay_s=2.0)
    assert given.settings.http.force_http2
