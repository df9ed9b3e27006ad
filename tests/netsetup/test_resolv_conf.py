"""The text of resolv.conf: edited, and put back byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.resolv_conf import Edit, edited, is_edited, nameservers, restored, search_list, unmarked

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


line = st.sampled_from([
    b"search corp lab", b"domain home.example", b"nameserver 192.0.2.1", b"nameserver\tfe80::1%eth0", b"options rotate",
    b"options edns0 rotate ndots:2", b"options ndots:2", b"# rotate", b"", b"\xff\xfe",
])  # fmt: skip
texts = st.builds(
    lambda lines, end, last: end.join(lines) + (end if last else b""),
    st.lists(line, max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.booleans(),
)  # fmt: skip
files = st.none() | st.binary(max_size=80) | texts
edits = st.builds(
    Edit, st.just("10.8.0.1"), st.sampled_from([(), ("shop.svc.cluster.local", "cluster.local")]), st.booleans()
)


@given(files, edits)
def test_put_back_byte_for_byte(before: bytes | None, wanted: Edit) -> None:
    ours = edited(before, wanted)
    assert ours.startswith(OURS)
    assert is_edited(ours, "10.8.0.1")
    assert restored(ours, wanted, before) == before
    # once more: nothing of ours is left to take out
    if before is not None:
        assert restored(before, wanted, before) == before


@given(texts, edits)
def test_the_file_itself_tells_what_it_was(before: bytes, wanted: Edit) -> None:
    assert unmarked(edited(before, wanted)) == (before or None)


@given(files, edits)
def test_a_restore_that_was_killed_before_the_cut_is_finished(before: bytes | None, wanted: Edit) -> None:
    ours = edited(before, wanted)
    half_done = (before or b"") + ours[len(before or b"") :]
    assert restored(half_done, wanted, before) == before


@given(texts, edits)
def test_what_clients_read_in_it(before: bytes, wanted: Edit) -> None:
    ours = edited(before, wanted)
    assert nameservers(ours) == ("10.8.0.1", *(() if wanted.alone else nameservers(before)))
    assert search_list(ours) == (
        tuple(dict.fromkeys([*(search_list(before) or ()), *wanted.search])) if wanted.search else search_list(before)
    )
    options = [word for each in ours.splitlines() if each.startswith(b"options") for word in each.split()]
    assert b"rotate" not in options
    assert (b"ndots:2" in options) == (b"ndots:2" in before.split())


ROTATING = b"search corp\noptions edns0 rotate\nnameserver 192.0.2.1\n"


def test_all_that_is_held() -> None:
    ours = edited(ROTATING, Edit("10.8.0.1", ("shop.svc.cluster.local",), alone=True))
    assert ours == (
        b"nameserver 10.8.0.1 # kube-tunnel\n"
        b"# kube-tunnel+ search corp shop.svc.cluster.local\n"
        b"search corp shop.svc.cluster.local\n"
        b"# kube-tunnel- search corp\n"
        b"# kube-tunnel+ options edns0\n"
        b"options edns0\n"
        b"# kube-tunnel- options edns0 rotate\n"
        b"# kube-tunnel- nameserver 192.0.2.1\n"
    )


def test_edited_by_somebody_else_what_is_held_comes_back() -> None:
    wanted = Edit("10.8.0.1", ("shop.svc.cluster.local",), alone=True)
    changed = edited(ROTATING, wanted).replace(b"options edns0\n", b"options edns0 timeout:1\n", 2)
    changed = changed.replace(b"+ options edns0 timeout:1", b"+ options edns0") + b"nameserver 192.0.2.9\n"
    # the line that is not ours any more stays
    assert restored(changed, wanted, ROTATING) == (
        b"search corp\noptions edns0 timeout:1\noptions edns0 rotate\nnameserver 192.0.2.1\nnameserver 192.0.2.9\n"
    )


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
    assert restored(current, Edit("10.8.0.1"), b"nameserver 192.0.2.1\n") == kept


def test_there_was_no_file() -> None:
    assert restored(OURS, Edit("10.8.0.1"), None) is None
    assert restored(OURS + b"search x\n", Edit("10.8.0.1"), None) == b"search x\n"


def test_a_file_that_was_emptied_but_for_our_line_stays() -> None:
    assert restored(OURS, Edit("10.8.0.1"), b"nameserver 192.0.2.1\n") == b""


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
