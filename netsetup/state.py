"""The state file: what `netsetup up` has done and what was there before (`journal` writes it).

It alone is enough to undo everything, after a SIGKILL or a reboot too. It is root's, and trusted only so far as nobody
else can have written it: `down` writes files back from it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import msgspec

from netsetup.errors import StateError
from netsetup.found import Network
from netsetup.layout import Address, Layout, Wanted
from netsetup.machine import boot_id
from netsetup.operations import OPERATIONS, EditResolvConf, Operation, Redirect
from netsetup.way_out import undoing_commands

DEFAULT_STATE = Path("/var/lib/kube-tunnel/netsetup.json")
VERSION = 1


@dataclass(frozen=True, slots=True)
class State:
    """The network as it is set up now, for those who use it.

    Attributes:
        dns_ip: port 53 of it leads to the DNS server.
        proxy_ip: every TCP port of it leads to the tunnel; so does every one of `ranges`, the virtual IPs' prefixes.
        proxy_port, dns_port: the ports on loopback where the tunnel and the DNS server are awaited.
        resolvers: the servers that names were asked at before, (address, port).
        redirected: False where there is no redirection to the ports (macOS): the addresses exist, and no more.
        user: who runs the tunnel, if that was said.
        resolv_conf: the file that names `dns_ip` as its first server, where that is how names come to us.
    """

    dns_ip: Address
    proxy_ip: Address
    ranges: tuple[Network, ...]
    zones: tuple[str, ...]
    proxy_port: int
    dns_port: int
    resolvers: tuple[tuple[str, int], ...]
    redirected: bool
    user: str | None
    resolv_conf: Path | None = None


@dataclass(slots=True)
class Record:
    """The state file's content.

    `complete`: `up` came to its end. `temporary`: it is to end with the `kube-tunnel --virtual` that made it.
    """

    wanted: Wanted
    layout: Layout
    resolvers: tuple[str, ...]
    boot_id: str
    operations: list[Operation] = field(default_factory=list)
    complete: bool = False
    made_directory: bool = False
    temporary: bool = False

    @property
    def state(self) -> State:
        wanted, layout = self.wanted, self.layout
        return State(
            dns_ip=layout.dns_address.ip,
            proxy_ip=layout.proxy_address.ip,
            ranges=layout.ranges,
            zones=wanted.zones,
            proxy_port=wanted.port,
            dns_port=layout.dns_port,
            resolvers=tuple((server, 53) for server in self.resolvers),
            redirected=any(isinstance(step, Redirect) for step in self.operations),
            user=wanted.user,
            resolv_conf=next((Path(step.path) for step in self.operations if isinstance(step, EditResolvConf)), None),
        )


def read_state(path: Path = DEFAULT_STATE) -> State | None:
    """The network that `netsetup up` has made; None where there is none.

    Nor is there one where `up` did not come to its end, or the machine was started again since.

    Raises:
        StateError: the file is broken or not to be trusted.
    """
    record = read_record(path)
    if record is None or not record.complete or record.boot_id != boot_id():
        return None
    return record.state


def read_record(path: Path) -> Record | None:
    """What the state file says, whatever has happened since; None where there is none.

    Raises:
        StateError: as above.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StateError(f"The state file {path} cannot be read: {e.strerror}.") from e
    with os.fdopen(file, "rb") as opened:
        facts = os.fstat(file)
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StateError(
                f"The state file {path} can be written by others than root (ls -l {path}), so it is not relied upon. "
                "By hand, what netsetup makes goes with these commands.",
                command=undoing_commands(path),
            )
        content = opened.read()
    try:
        return _decode(content)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as e:
        raise StateError(
            f"The state file {path} is broken ({e}), so `netsetup down` does not know what to undo. By hand, what "
            "netsetup makes goes with these commands.",
            command=undoing_commands(path),
        ) from e


def encode(record: Record) -> bytes:
    """The file's content."""
    plain: dict[str, Any] = {each.name: getattr(record, each.name) for each in fields(record)}
    plain["operations"] = [{"step": type(step).__name__, **_plain(step)} for step in record.operations]
    encoded = msgspec.json.encode({"version": VERSION, **plain}, enc_hook=str)
    return msgspec.json.format(encoded, indent=1) + b"\n"


def _plain(step: Operation) -> dict[str, Any]:
    return {each.name: getattr(step, each.name) for each in fields(step)}


def _decode(content: bytes) -> Record:
    plain = msgspec.json.decode(content)
    if plain["version"] != VERSION:
        raise ValueError(f"version {plain['version']}, of another kube-tunnel")
    return Record(
        wanted=_wanted(plain["wanted"]),
        layout=_layout({"dns_port": plain["wanted"]["dns_port"]} | plain["layout"]),  # files of before have it there
        resolvers=msgspec.convert(plain["resolvers"], tuple[str, ...]),
        boot_id=msgspec.convert(plain["boot_id"], str),
        operations=[_operation(each) for each in plain["operations"]],
        complete=msgspec.convert(plain["complete"], bool),
        made_directory=msgspec.convert(plain["made_directory"], bool),
        temporary=msgspec.convert(plain.get("temporary", False), bool),  # files of before have it not
    )


def _operation(plain: dict[str, Any]) -> Operation:
    kind = OPERATIONS[plain.pop("step")]
    step: Operation = msgspec.convert(plain, kind)
    return step


def _wanted(plain: dict[str, Any]) -> Wanted:
    addresses = {key: None if plain[key] is None else ip_address(plain[key]) for key in ("dns_ip", "proxy_ip")}
    ranges = tuple(ip_network(each) for each in plain["ip_ranges"])
    return Wanted(**plain | addresses | {"ip_ranges": ranges, "zones": tuple(plain["zones"])})


def _layout(plain: dict[str, Any]) -> Layout:
    return Layout(
        ip_interface(plain["dns_address"]),
        ip_interface(plain["proxy_address"]),
        tuple(ip_network(each) for each in plain["ranges"]),
        tuple(plain["skipped"]),
        msgspec.convert(plain["dns_port"], int),
    )
