"""The state file: nothing is lost in it, and nothing is believed that others may have written."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from netsetup.errors import AnotherInstanceError, StateError
from netsetup.journal import open_journal
from netsetup.layout import Wanted, choose_layout
from netsetup.machine import boot_id
from netsetup.operations import (
    OPERATIONS,
    AddAddress,
    AddAlias,
    AddLink,
    AddRoute,
    EditResolvConf,
    LinkResolvConf,
    MakeDirectory,
    Operation,
    Redirect,
    SetLinkResolver,
    WriteFile,
)
from netsetup.state import Record, State, read_record, read_state
from tests.netsetup.machines import laptop

STEPS: tuple[Operation, ...] = (
    AddLink("kube-dns0", "02:6b:74:00:00:01", carrier=True),
    AddAddress("kube-dns0", "10.8.0.1/24"),
    AddRoute("kube-proxy0", "10.8.0.0/24", "10.8.0.2"),
    AddAlias("10.8.0.1"),
    Redirect("nft", ("10.8.0.0/24",), "10.8.0.1", "10.8.0.2", 8080, 5353, forwarded=False),
    SetLinkResolver("kube-dns0", "10.8.0.1", ("~cluster.local",)),
    MakeDirectory("/etc/resolver"),
    WriteFile("/etc/resolver/cluster.local", b"\x00\xff\n", b"\xfe", ("nmcli", "general")),
    WriteFile("/etc/resolver/prod.local", b"", None),
    EditResolvConf("/etc/resolv.conf", "/run/resolv.conf", "10.8.0.1", b"nameserver 192.0.2.1\r\n\xe4", ("a", "b")),
    LinkResolvConf("/etc/resolv.conf", "../run/stub-resolv.conf", "../run/resolv.conf"),
)

WANTED = Wanted(dns_ip=ip_address("10.8.0.1"), zones=("cluster.local", "prod.local"), port=80, user="alice")


def written(path: Path, *, complete: bool = True) -> Record:
    with open_journal(path) as journal:
        journal.begin(WANTED, choose_layout(WANTED, laptop()), ("192.0.2.1", "fe80::1%eth0"))
        for step in STEPS:
            journal.about_to_do(step)
        if complete:
            journal.complete()
        assert journal.record is not None
        return journal.record


def test_every_step_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    record = written(path)
    assert read_record(path) == record
    assert {type(step) for step in STEPS} == {*OPERATIONS.values()}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_of_before_has_the_dns_port_among_the_wishes_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    record = written(path)
    plain = json.loads(path.read_bytes())
    del plain["layout"]["dns_port"]
    path.write_text(json.dumps(plain))
    assert read_record(path) == record


def test_what_the_tunnel_reads(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_state(path) is None
    written(path)
    assert read_state(path) == State(
        dns_ip=ip_address("10.8.0.1"),
        proxy_ip=ip_address("10.8.0.2"),
        ranges=(ip_network("10.8.0.0/24"), ip_network("10.9.0.0/24")),
        zones=("cluster.local", "prod.local"),
        proxy_port=80,
        dns_port=5353,
        resolvers=(("192.0.2.1", 53), ("fe80::1%eth0", 53)),
        redirected=True,
        user="alice",
        resolv_conf=Path("/etc/resolv.conf"),
    )


def test_an_unfinished_network_is_none(tmp_path: Path) -> None:
    written(tmp_path / "state.json", complete=False)
    assert read_state(tmp_path / "state.json") is None


def test_a_network_of_another_boot_is_none(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    written(path)
    path.write_text(path.read_text().replace(boot_id(), "another"))
    assert read_state(path) is None
    assert read_record(path) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 1}', '"x"'])
def test_a_broken_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(StateError, match="is broken"):
        read_record(path)


@pytest.mark.parametrize(("key", "value"), [("name", 7), ("step", "Format"), ("mac", None)])
def test_a_broken_step(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "state.json"
    written(path)
    text = path.read_text()
    old = {"name": '"name": "kube-dns0"', "step": '"step": "AddLink"', "mac": '"mac": "02:6b:74:00:00:01"'}[key]
    new = {7: f'"{key}": 7', None: f'"{key}": null'}.get(value, f'"{key}": "{value}"')  # type: ignore[call-overload]
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StateError, match="is broken"):
        read_record(path)


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    written(path)
    path.chmod(0o666)
    with pytest.raises(StateError, match="can be written by others"):
        read_state(path)
    path.chmod(0o644)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(StateError, match="cannot be read"):
        read_state(tmp_path / "link.json")


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with open_journal(path), pytest.raises(AnotherInstanceError, match="Another netsetup"), open_journal(path):
        pass
    with open_journal(path):
        pass


def test_a_directory_of_its_own_goes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own" / "state.json"
    written(path)
    with open_journal(path) as journal:
        journal.end()
    assert not path.parent.exists()
    written(tmp_path / "state.json")
    with open_journal(tmp_path / "state.json") as journal:
        journal.end()
    assert tmp_path.exists()


def test_what_a_kill_left_of_a_write_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "own" / "state.json"
    written(path)
    left = path.with_name(f".{path.name}.new")
    (tmp_path / "elsewhere").touch()
    left.symlink_to(tmp_path / "elsewhere")
    with open_journal(path) as journal:
        journal.keep(temporary=True)  # writes
    assert (tmp_path / "elsewhere").read_bytes() == b""
    left.touch()
    with open_journal(path) as journal:
        journal.end()
    assert not path.parent.exists()
