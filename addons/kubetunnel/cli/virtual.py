"""`sudo kube-tunnel --virtual`: root sets the network up and takes it down again; the tunnel between is the user's.

Two processes, because what drops root for good cannot take the network down: this one stays root and waits, a child
becomes the invoking user and goes on with what was asked for. Credential plugins run in the child alone.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kubetunnel.core.settings import Settings


def run_with_network(settings: Settings, port: int, run: Callable[[], int]) -> int:
    """Runs `run` with the network set up, in a child that is the invoking user's.

    Where the network is set up already (`sudo netsetup up`), it is left as it is, and root is not needed.

    Returns:
        The exit status.
    """
    from netsetup.errors import NetsetupError
    from netsetup.layout import Wanted
    from netsetup.privileges import invoking_user, is_root
    from netsetup.setup import network
    from netsetup.state import read_state

    try:
        if not is_root():
            if read_state() is None:
                click.echo(_NEEDS_ROOT, err=True)
                return 1
            return run()
        user = invoking_user(os.environ)
        interfaces = settings.network
        wanted = Wanted(
            ip_ranges=tuple(ip_network(text) for text in interfaces.ip_ranges),
            dns_ip=ip_address(interfaces.dns_interface.ip) if interfaces.dns_interface.ip else None,
            proxy_ip=ip_address(interfaces.proxy_interface.ip) if interfaces.proxy_interface.ip else None,
            zones=(settings.cluster.zone, *(other.zone for other in settings.zones)),
            port=port, dns_port=settings.dns.port,
            dns_link=interfaces.dns_interface.name, proxy_link=interfaces.proxy_interface.name, user=user,
        )  # fmt: skip
        with network(wanted, tell=click.echo):
            return _run_as(user, run)
    except NetsetupError as e:
        click.echo(f"kube-tunnel: {e}", err=True)
        return 1


_NEEDS_ROOT = """\
kube-tunnel: --virtual sets interfaces and redirections up, which needs root. One of:
  sudo kube-tunnel --virtual            (the tunnel itself runs as you)
  sudo kube-tunnel netsetup up          (once; then kube-tunnel without --virtual)
  kube-tunnel --loopback                (no root: each Service at a loopback address)"""


def _run_as(user: str | None, run: Callable[[], int]) -> int:
    """Runs it in a child and waits for its end; signals for this process are for the child."""
    from netsetup.privileges import drop_privileges

    if user is None:
        click.echo("kube-tunnel: you are root itself, so the tunnel and credential plugins run as root.", err=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if user is not None:
                drop_privileges(user)
            status = run()
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else int(e.code is not None)
        except Exception:  # noqa: BLE001 - supervision point: the stack above is the parent's, who would not tell
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # what follows in the parent's stack is the parent's: it takes the network down

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
