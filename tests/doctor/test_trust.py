"""The CA as files: missing, broken, readable by others, trusted by a store."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kubetunnel.ca import describe
from kubetunnel.doctor.trust import certificates_in, check_trust
from kubetunnel.doctor.verdict import Level

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    confdir = tmp_path_factory.mktemp("ca") / "confdir"
    describe(confdir)
    return confdir


@pytest.fixture
def confdir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "confdir"))


def levels(confdir: Path, **environ: str) -> list[Level]:
    return [verdict.level for verdict in check_trust(confdir, NOW, environ)]


def test_none_yet(tmp_path: Path) -> None:
    assert levels(tmp_path) == [Level.SKIP]


def test_fresh(confdir: Path) -> None:
    assert levels(confdir) == [Level.OK, Level.WARN]


def test_broken(confdir: Path) -> None:
    (confdir / "mitmproxy-ca-cert.pem").write_text("nothing")
    assert levels(confdir) == [Level.FAIL]


@pytest.mark.parametrize("name", ["mitmproxy-ca.pem", "mitmproxy-ca.p12"])
def test_a_key_that_others_may_read(confdir: Path, name: str) -> None:
    (confdir / name).chmod(0o644)
    assert levels(confdir)[0] is Level.FAIL
    assert name in check_trust(confdir, NOW, {})[0].mend


def test_a_store_that_has_it(confdir: Path, tmp_path: Path) -> None:
    own = (confdir / "mitmproxy-ca-cert.pem").read_text()
    broken = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n"
    store = tmp_path / "store.pem"
    store.write_text(f"# others\n{broken}{own}")
    assert levels(confdir, SSL_CERT_FILE=str(store)) == [Level.OK, Level.OK]
    assert certificates_in(tmp_path / "missing.pem") == ()
