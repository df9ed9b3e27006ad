"""The text of resolv.conf: edited, and put back byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.resolv_conf import edited, is_edited, nameservers, restored, unmarked

OURS = b"nameserver 10.8.0.1 # kube-tunnel\n"


@pytest.mark.parametrize(
    ("content", "servers"),
    [
        (None, ()),
        (b"", ()),
        (b"search a b\nnameserver 192.0.2.1\n nameserver\tfe80::1%eth0  \r\n", ("192.0.2.1", "fe80::1%eth0")),
        (b"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\nnameserver\n", ()),
        (b"nameserver 192.0.2.1 # home\n\xff\xfe", ("192.0.2.1",)),
    ],
)
def test_nameservers(content: bytes | None, servers: tuple[str, ...]) -> None:
    assert nameservers(content) == servers


files = st.none() | st.binary(max_size=80) | st.just(b"search corp\nnameserver 192.0.2.1\noptions ndots:2")


@given(files)
def test_put_back_byte_for_byte(before: bytes | None) -> None:
    ours = edited(before, "10.8.0.1")
    assert ours.startswith(OURS)
    assert is_edited(ours, "10.8.0.1")
    assert restored(ours, "10.8.0.1", before) == before
    # once more: nothing of ours is left to take out
    if before is not None:
        assert restored(before, "10.8.0.1", before) == before


@given(st.binary(max_size=80))
def test_a_restore_that_was_killed_before_the_cut_is_finished(before: bytes) -> None:
    ours = edited(before, "10.8.0.1")
    half_done = before + ours[len(before) :]
    assert restored(half_done, "10.8.0.1", before) == before


@pytest.mark.parametrize(
    ("current", "kept"),
    [
        (OURS + b"nameserver 192.0.2.9\n", b"nameserver 192.0.2.9\n"),
        (b"search x\n" + OURS + b"nameserver 192.0.2.1\n", b"search x\nnameserver 192.0.2.1\n"),
        (b"nameserver 192.0.2.1", b"nameserver 192.0.2.1"),
        (b"nameserver 10.8.0.1\n", b"nameserver 10.8.0.1\n"),  # a VPN's own
        (b"search x\r\n" + OURS.replace(b"\n", b"\r\n"), b"search x\r\n"),
    ],
)
def test_edited_by_somebody_else_only_our_line_goes(current: bytes, kept: bytes) -> None:
    assert restored(current, "10.8.0.1", b"nameserver 192.0.2.1\n") == kept


def test_there_was_no_file() -> None:
    assert restored(OURS, "10.8.0.1", None) is None
    assert restored(OURS + b"search x\n", "10.8.0.1", None) == b"search x\n"


def test_our_server_must_be_the_first() -> None:
    assert not is_edited(None, "10.8.0.1")
    assert not is_edited(b"nameserver 192.0.2.1\n" + OURS, "10.8.0.1")
    assert not is_edited(b"nameserver 10.8.0.1\n", "10.8.0.1")
    assert not is_edited(b"# " + OURS, "10.8.0.1")


def test_lines_of_a_run_whose_state_was_lost() -> None:
    assert unmarked(OURS + b"search x\n") == b"search x\n"
    assert unmarked(OURS) is None
    assert unmarked(b"") == b""
    assert unmarked(None) is None
