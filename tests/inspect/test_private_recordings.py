"""A file that mitmproxy records flows into is its user's alone: real files, and mitmproxy's own `Save`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy.addons.save import Save
from mitmproxy.test import taddons, tflow

from kubetunnel.inspect.private_recordings import PrivateRecordings


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private_from_the_command_line_on_and_after_a_rotation(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    third.touch(mode=0o644)
    save, private = Save(), PrivateRecordings()
    with taddons.context(save) as context:
        context.configure(save, save_stream_file=str(first))
        assert mode(first) == 0o644, "mitmproxy's own way, which the addon comes after"
        context.master.addons.add(private)
        assert mode(first) == 0o600
        context.configure(save, save_stream_file=str(second))
        assert mode(second) == 0o600
        context.options.save_stream_file = f"+{third}"
        save.response(tflow.tflow(resp=True))
        assert mode(third) == 0o600
        private.done()
        context.configure(save, save_stream_file=str(tmp_path / "stock"))
        assert mode(tmp_path / "stock") == 0o644, "the script was taken away, and mitmproxy is as it was"
        save.done()


def test_what_is_no_file_is_left_alone() -> None:
    null = Path(os.devnull)
    before = mode(null)
    save = Save()
    with taddons.context(save) as context:
        context.master.addons.add(PrivateRecordings())
        context.configure(save, save_stream_file=os.devnull)
        assert mode(null) == before
        save.done()
