"""Where a client wanted to go; what a redirection says is seen in test_virtual_ips, within a network namespace."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from kubetunnel.proxy import original_destination as module
from kubetunnel.proxy.original_destination import OriginalDestination, original_destination


def accepted_at(listening: socket.socket, peer: tuple[str, int]) -> OriginalDestination:
    with listening, socket.create_connection(peer, 5):
        accepted, _ = listening.accept()
        with accepted:
            return original_destination(accepted)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.64.3.7"])
def test_without_a_redirection_it_is_our_own_address(host: str) -> None:
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    assert accepted_at(listening, (host, port)) == OriginalDestination(ip_address(host), port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6 sockets that take IPv4 clients")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_of_both_versions(host: str) -> None:
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = listening.getsockname()[1]
    assert accepted_at(listening, (host, port)) == OriginalDestination(ip_address(host), port)


class Redirected:
    """A socket that the kernel has redirected, as far as it is asked."""

    def __init__(self, name: str, answer: Callable[[int, int, int], bytes]) -> None:
        self.name = name
        self.getsockopt = answer

    @property
    def family(self) -> int:
        return socket.AF_INET6

    def getsockname(self) -> tuple[str, int]:
        return self.name, 8080


@pytest.mark.parametrize(
    ("own", "wanted", "level"),
    [
        ("127.0.0.1", "10.8.0.77", socket.SOL_IP),
        ("::ffff:127.0.0.1", "10.8.0.77", socket.SOL_IP),
        ("::1", "fd00:8::77", socket.IPPROTO_IPV6),
        ("fe80::1%eth0", "fd00:8::77", socket.IPPROTO_IPV6),
    ],
)
def test_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, own: str, wanted: str, level: int) -> None:
    """The layouts of struct sockaddr_in and sockaddr_in6: family, port, (flow,) address."""
    monkeypatch.setattr(module.sys, "platform", "linux")
    address = ip_address(wanted).packed

    def answer(asked_level: int, option: int, size: int) -> bytes:
        assert (asked_level, option) == (level, 80)
        flow = b"" if len(address) == 4 else bytes(4)
        raw = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 5432) + flow + address
        return raw.ljust(size, b"\0")

    assert original_destination(Redirected(own, answer)) == OriginalDestination(ip_address(wanted), 5432)


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")

    def answer(*_: int) -> bytes:
        raise AssertionError("the option has another meaning there")

    found = original_destination(Redirected("127.0.0.1", answer))
    assert found == OriginalDestination(ip_address("127.0.0.1"), 8080)
