"""Which resolvers a system has."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsetup.resolvers import system_resolvers

STUB = "# a comment\nnameserver 127.0.0.53\noptions edns0\nsearch lan\n"


@pytest.mark.parametrize(
    ("resolv_conf", "resolved_conf", "found"),
    [
        ("nameserver 192.0.2.1\nnameserver  2001:db8::1\nnameserver 192.0.2.1\n", None, ["192.0.2.1", "2001:db8::1"]),
        ("nameserver 10.8.0.1 # kube-tunnel\nnameserver 192.0.2.1\n", None, ["192.0.2.1"]),
        ("nameserver 10.9.0.1 # kube-tunnel\nnameserver 192.0.2.1\n", None, ["192.0.2.1"]),  # of a network that is gone
        ("nameserver 10.9.0.1 # kube-tunnel\n# kube-tunnel- nameserver 192.0.2.1\n", None, ["192.0.2.1"]),
        (STUB, "nameserver 192.0.2.9\n", ["192.0.2.9"]),
        (STUB, "", ["127.0.0.53"]),
        (STUB, None, ["127.0.0.53"]),
        ("nameserver nonsense\nnameserver\nserver 192.0.2.1\n", None, []),
        (None, None, []),
    ],
)
def test_system_resolvers(tmp_path: Path, resolv_conf: str | None, resolved_conf: str | None, found: list[str]) -> None:
    for name, content in (("resolv.conf", resolv_conf), ("resolved.conf", resolved_conf)):
        if content is not None:
            (tmp_path / name).write_text(content)
    servers = system_resolvers(
        ["10.8.0.1"], resolv_conf=tmp_path / "resolv.conf", resolved_conf=tmp_path / "resolved.conf"
    )
    assert servers == tuple((address, 53) for address in found)
