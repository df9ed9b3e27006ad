"""The resolver's files: written and put back, and never over somebody else's change."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsetup.errors import StepError
from netsetup.operations import EditResolvConf, MakeDirectory, WriteFile
from netsetup.plan import HEADING
from netsetup.resolver import (
    edit_resolv_conf,
    make_directory,
    put_file_back,
    put_resolv_conf_back,
    remove_directory,
    write_file,
)

OURS = HEADING.encode() + b"nameserver 127.0.0.1\n"


@pytest.mark.parametrize("before", [None, b"", b"theirs, which is a good deal longer than what we write: " * 9])
def test_a_file_is_put_back(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "cluster.local"
    if before is not None:
        path.write_bytes(before)
        path.chmod(0o600)
    step = WriteFile(str(path), OURS, before)
    write_file(step)
    assert path.read_bytes() == OURS
    assert put_file_back(step) == ("removed" if before is None else "put back")
    if before is None:
        assert not path.exists()
    else:
        assert path.read_bytes() == before
        assert path.stat().st_mode & 0o777 == 0o600
    assert put_file_back(step) == "was gone already"


def test_a_file_of_ours_that_was_changed_goes_and_one_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "cluster.local"
    step = WriteFile(str(path), OURS, None)
    path.write_bytes(OURS + b"port 53\n")
    assert put_file_back(step) == "removed"
    path.write_bytes(b"nameserver 192.0.2.1\n")
    assert put_file_back(step).startswith("left: somebody else")
    assert path.exists()


def test_a_change_between_the_look_and_the_writing_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver 192.0.2.2\n")
    with pytest.raises(StepError, match="changed by somebody else"):
        edit_resolv_conf(EditResolvConf(str(path), str(path), "10.8.0.1", b"nameserver 192.0.2.1\n"))
    with pytest.raises(StepError, match="changed by somebody else"):
        write_file(WriteFile(str(path), OURS, None))
    assert path.read_bytes() == b"nameserver 192.0.2.2\n"
    # undoing what was never done changes nothing
    step = EditResolvConf(str(path), str(path), "10.8.0.1", b"nameserver 192.0.2.1\n")
    assert put_resolv_conf_back(step) == "was gone already"
    assert path.read_bytes() == b"nameserver 192.0.2.2\n"


def test_a_directory_goes_only_when_empty(tmp_path: Path) -> None:
    step = MakeDirectory(str(tmp_path / "resolver"))
    make_directory(step)
    (tmp_path / "resolver" / "corp.example").touch()
    assert remove_directory(step) is False
    (tmp_path / "resolver" / "corp.example").unlink()
    assert remove_directory(step) is True
    assert remove_directory(step) is False


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "gone" / "resolv.conf")
    with pytest.raises(StepError, match=r"Could not write .*: No such file or directory"):
        edit_resolv_conf(EditResolvConf(path, path, "10.8.0.1", None))
