"""`sudo kube-tunnel --virtual`: root sets the network up and takes it down again; the tunnel between is the user's.

Two processes, because what drops root for good cannot take the network down: this one stays root and waits, a child
becomes the invoking user and goes on with what was asked for. Credential plugins run in the child alone. The child is
made first, so that it has nothing of root's open (the state file's lock), and waits until the network is up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kubetunnel.core.settings import Settings
    from netsetup.layout import Wanted
    from netsetup.state import State

# a closed terminal is as good a reason to end as being asked to; Ctrl-C and Ctrl-\ reach the child by themselves
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_KEYS = (signal.SIGINT, signal.SIGQUIT)


def run_with_network(settings: Settings, port: int, run: Callable[[], int]) -> int:
    """Runs `run` with the network set up, in a child that is the invoking user's.

    Where the network is set up already (`sudo netsetup up`), it is left as it is, and root is not needed. What ports
    are redirected to is what `run` is told to listen on, by the environment, which is stronger than all other settings.

    Args:
        port: the tunnel's, where neither the settings nor the network that is set up say one.

    Returns:
        The exit status.
    """
    from netsetup.errors import NetsetupError
    from netsetup.privileges import invoking_user, is_root
    from netsetup.setup import network
    from netsetup.state import read_state

    try:
        there = read_state()
        if not is_root():
            if there is None:
                click.echo(needs_root(), err=True)
                return 1
            return run()
        user = invoking_user(os.environ)
        wanted = _wanted(settings, port, there, user)
        with _Child(user, run) as child, network(wanted, tell=click.echo) as state:
            return child.go(KTUN_PORT=str(state.proxy_port), KTUN_DNS_PORT=str(state.dns_port))
    except NetsetupError as e:
        click.echo(f"kube-tunnel: {e}", err=True)
        return 1


def needs_root() -> str:
    """What to type instead, as it stands: with what was typed, and with what the environment says."""
    from kubetunnel.redirection import setting_up
    from netsetup.privileges import as_root, settings_in

    again = as_root("kubetunnel", *sys.argv[1:], keep=settings_in(os.environ, "KUBECONFIG", "LOG_LEVEL"))
    return f"""\
kube-tunnel: --virtual sets interfaces and redirections up, which needs root. One of:
  {again}        # sudo kube-tunnel --virtual: the tunnel itself runs as you
  {setting_up()}        # sudo kube-tunnel netsetup up: once; then kube-tunnel without --virtual
  kube-tunnel --loopback        # no root: each Service at a loopback address"""


def _wanted(settings: Settings, port: int, there: State | None, user: str | None) -> Wanted:
    from kubetunnel.redirection import dns_port
    from netsetup.layout import Wanted

    interfaces = settings.network
    return Wanted(
        ip_ranges=tuple(ip_network(text) for text in interfaces.ip_ranges),
        dns_ip=ip_address(interfaces.dns_interface.ip) if interfaces.dns_interface.ip else None,
        proxy_ip=ip_address(interfaces.proxy_interface.ip) if interfaces.proxy_interface.ip else None,
        zones=(settings.cluster.zone, *(other.zone for other in settings.zones)),
        port=settings.proxy.port or (there.proxy_port if there is not None else port),
        dns_port=dns_port(settings, there),
        search=interfaces.search,
        dns_link=interfaces.dns_interface.name, proxy_link=interfaces.proxy_interface.name, user=user,
    )  # fmt: skip


class _Child:
    """The user's half, made at once, which runs when it is told to; it ends when the root half is gone.

    Within the block, signals that would end this process end it by an exception, so that what was set up is undone.
    """

    def __init__(self, user: str | None, run: Callable[[], int]) -> None:
        if user is None:
            click.echo("kube-tunnel: you are root itself, so the tunnel and credential plugins run as root.", err=True)
        self._user = user
        self._run = run
        self._pid = 0
        self._told = False
        self._pipe = -1

    def __enter__(self) -> _Child:
        sys.stdout.flush()
        reading, self._pipe = os.pipe()
        with _held():
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._pipe)
                _be_the_users_half(reading, self._user, self._run)
            os.close(reading)
            for number in _ENDING:
                signal.signal(number, _end)
        return self

    def go(self, **environ: str) -> int:
        """Lets it run and waits for its end; signals for this process are for it. Returns its exit status."""
        for number in _ENDING:
            signal.signal(number, self._pass_on)
        for number in _KEYS:
            signal.signal(number, signal.SIG_IGN)
        self._told = True
        with contextlib.suppress(BrokenPipeError):  # it was ended while it waited; its status says so
            os.write(self._pipe, _line(environ))
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code  # as shells tell of an end by a signal

    def _pass_on(self, _number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._pid, signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        if not self._told:  # the closed pipe is its end
            os.waitpid(self._pid, 0)


def _line(environ: dict[str, str]) -> bytes:
    return "\0".join(f"{name}={value}" for name, value in environ.items()).encode() + b"\n"


def _environ(line: bytes) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in line.decode().strip().split("\0"))
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """No signal of these comes between a fork and the handlers of either side."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _be_the_users_half(pipe: int, user: str | None, run: Callable[[], int]) -> None:
    """Does not return: what follows in the stack above is the root half's, which takes the network down."""
    from netsetup.errors import NetsetupError
    from netsetup.privileges import drop_privileges

    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        told = os.read(pipe, select.PIPE_BUF)
        if told:
            if user is not None:
                drop_privileges(user)
                _check_readable(user)
            # a terminal that closes tells both halves; the other one passes it on as a SIGTERM, which ends in order
            signal.signal(signal.SIGHUP, lambda *_: None)
            os.environ.update(_environ(told))
            threading.Thread(target=_end_with_the_root_half, args=(pipe,), name="root half", daemon=True).start()
            status = run()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except NetsetupError as e:
        click.echo(f"kube-tunnel: {e}", err=True)
    except Exception:  # noqa: BLE001 - supervision point: the stack above is the parent's, who would not tell
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _check_readable(user: str) -> None:
    """Python reads modules when they are wanted first: of an installation of root's the user gets none any more."""
    from netsetup.errors import BadWishError

    for file in (os.__file__, __file__):
        if not os.access(file, os.R_OK):
            raise BadWishError(
                f"The tunnel is to run as {user}, who may not read {file}: install kube-tunnel, and its Python, where "
                f"{user} may, not in a directory of root's.",
                command=f"namei -l {file}",
            )


def _end_with_the_root_half(pipe: int) -> None:
    """Waits for the pipe's end, which comes however the root half ends (SIGKILL too)."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)
