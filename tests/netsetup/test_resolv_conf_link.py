"""The link at resolv.conf: led elsewhere, and back, unless it is somebody else's by then."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsetup.errors import StepError
from netsetup.operations import LinkResolvConf
from netsetup.resolv_conf_link import has_link, link_resolv_conf, put_link_back

BEFORE, TARGET = "../run/resolv.conf", "../run/stub-resolv.conf"


@pytest.fixture
def step(tmp_path: Path) -> LinkResolvConf:
    (tmp_path / "resolv.conf").symlink_to(BEFORE)
    return LinkResolvConf(str(tmp_path / "resolv.conf"), TARGET, BEFORE)


def target(step: LinkResolvConf) -> str:
    return str(Path(step.path).readlink())


def files(step: LinkResolvConf) -> list[str]:
    return [path.name for path in Path(step.path).parent.iterdir()]


def test_there_and_back(step: LinkResolvConf) -> None:
    link_resolv_conf(step)
    assert (target(step), has_link(step), files(step)) == (TARGET, True, ["resolv.conf"])
    assert put_link_back(step) == "put back"
    assert (target(step), has_link(step), files(step)) == (BEFORE, False, ["resolv.conf"])
    assert put_link_back(step) == "was gone already"


def test_killed_in_between(step: LinkResolvConf) -> None:
    Path(step.path).with_name(".resolv.conf.kube-tunnel").symlink_to(TARGET)
    assert put_link_back(step) == "was gone already"
    assert (target(step), files(step)) == (BEFORE, ["resolv.conf"])


def test_deleted_by_hand(step: LinkResolvConf) -> None:
    link_resolv_conf(step)
    Path(step.path).unlink()
    assert put_link_back(step) == "put back"
    assert target(step) == BEFORE


@pytest.mark.parametrize("theirs", ["link", "file"])
def test_somebody_elses_by_now(step: LinkResolvConf, theirs: str) -> None:
    link_resolv_conf(step)
    path = Path(step.path)
    path.unlink()
    path.symlink_to("/vpn/resolv.conf") if theirs == "link" else path.write_text("nameserver 192.0.2.1\n")
    assert put_link_back(step) == "left: somebody else has written it since"
    assert target(step) == "/vpn/resolv.conf" if theirs == "link" else path.read_text() == "nameserver 192.0.2.1\n"
    with pytest.raises(StepError, match="changed by somebody else"):
        link_resolv_conf(step)
