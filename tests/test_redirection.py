"""What the machine redirects to, and where the tunnel is: told where they differ, with the command that mends it."""

from __future__ import annotations

import sys

import pytest

from kubetunnel.redirection import Redirection

HERE = Redirection("10.8.0.1", 8080, 5353)
TUNNEL, DNS = ("127.0.0.1", 8080), ("127.0.0.1", 5353)
LISTEN = "kube-tunnel --set listen_host=127.0.0.1"
UP = f"{sys.executable} -I -m kubetunnel netsetup up"


@pytest.mark.parametrize(
    ("redirection", "listening", "dns"),
    [
        (HERE, [TUNNEL], DNS),
        (HERE, [("0.0.0.0", 8080)], DNS),
        (HERE, [("192.0.2.7", 8080), TUNNEL], None),
        (HERE, [TUNNEL], ("0.0.0.0", 5353)),
        (HERE, [], DNS),  # it does not listen yet
        (Redirection("10.8.0.1", None, 5353), [("127.0.0.1", 80)], DNS),  # no ports are redirected
        (Redirection("fd00::1", 8080, 5353, "::1"), [TUNNEL, ("::1", 8080)], DNS),
    ],
)
def test_it_fits(redirection: Redirection, listening: list[tuple[str, int]], dns: tuple[str, int] | None) -> None:
    assert redirection.problem(listening, dns) == ""


@pytest.mark.parametrize(
    ("redirection", "listening", "dns", "command"),
    [
        (HERE, [("127.0.0.1", 80)], DNS, f"{UP} --port 80"),
        (HERE, [("192.0.2.7", 8080)], DNS, LISTEN),
        (HERE, [("::", 8080)], DNS, LISTEN),
        (HERE, [TUNNEL], ("127.0.0.1", 5300), f"{UP} --dns-port 5300"),
        (HERE, [("127.0.0.1", 80)], ("127.0.0.1", 5300), f"{UP} --port 80 --dns-port 5300"),
        (Redirection("fd00::1", 8080, 5353, "::1"), [TUNNEL], DNS, LISTEN),  # of before netsetup up
        (HERE, [TUNNEL], ("127.0.0.9", 5353), "kube-tunnel --dns-ip 127.0.0.1"),
        (HERE, [("::", 8080)], ("127.0.0.9", 5353), f"{LISTEN} --dns-ip 127.0.0.1"),
        (Redirection("fd00::1", None, 5353, "::1"), [], ("0.0.0.0", 5353), "kube-tunnel --dns-ip 127.0.0.1"),
    ],
)
def test_it_does_not(
    redirection: Redirection, listening: list[tuple[str, int]], dns: tuple[str, int], command: str
) -> None:
    problem = redirection.problem(listening, dns)
    assert "See: sudo " in problem or not command.startswith(UP)
    assert problem.endswith(command)
    assert problem[0] in "V1f"
