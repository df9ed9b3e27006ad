"""Becomes CMD: finds it, finds or starts what it needs beside it, and takes its place in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kubetunnel.run_command.companion import CompanionError, Facts, Watched, start_companion
from kubetunnel.run_command.courier import Courier, courier_pair, start_maker
from kubetunnel.run_command.isolation import IsolationError, isolate
from kubetunnel.run_command.variables import through_proxy, trusting, without_proxy
from kubetunnel.running_tunnel import tunnel_answers

# as shells have it (POSIX XCU 2.8.2), and env(1), timeout(1) for failures of their own
NOT_FOUND, NOT_EXECUTABLE, OWN_FAILURE = 127, 126, 125

_IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ", "SIGXFZ")  # PyOS_InitSignals; exec(3) hands that on


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run, and how.

    Attributes:
        tunnel: (host, port) of a tunnel that shall be taken.
        must_run: it is an error where no tunnel runs there; else one is started.
        must_start: one is started in any case.
        assignments: mitmproxy's options for a tunnel of its own, `kube_context=staging`.
        direct: hosts that CMD shall reach by itself.
        bundle: PEM file that CMD shall trust, None for what it trusts anyway.
    """

    command: Sequence[str]
    tunnel: tuple[str, int]
    must_run: bool = False
    must_start: bool = False
    assignments: Sequence[str] = ()
    confdir: Path = Path("~/.mitmproxy")
    direct: Sequence[str] = ()
    bundle: Path | None = None
    isolated: bool = False
    verbose: bool = False
    quiet: bool = False


class CannotRun(Exception):  # noqa: N818 - it says what happened
    """The command is not run; `status` is the exit status."""

    def __init__(self, message: str, status: int = OWN_FAILURE) -> None:
        super().__init__(message)
        self.status = status


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The file that a shell would run. Raises CannotRun."""
    found = shutil.which(name, path=environ.get("PATH"))
    if found is not None:
        return found
    if os.sep in name and Path(name).exists():
        raise CannotRun(f"{name} is not executable.", NOT_EXECUTABLE)
    raise CannotRun(f"{name}: command not found.", NOT_FOUND)


def run(wanted: Wanted, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Takes the place of this process, which has to have a single thread.

    Raises:
        CannotRun
    """
    program = find_program(wanted.command[0], environ)
    try:
        told, variables = _isolated(wanted, environ) if wanted.isolated else _by_proxy(wanted, environ)
    except (CompanionError, IsolationError) as e:
        raise CannotRun(str(e)) from e
    if wanted.bundle is not None:
        variables = trusting(variables, str(wanted.bundle))
    if not wanted.quiet:
        sys.stderr.write(f"kube-tunnel run: {told}\n")
        sys.stderr.flush()
    for name in _IGNORED_BY_PYTHON:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # exec forgets what Python has noted and not yet raised: from here on Ctrl-C ends us itself
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execve(program, list(wanted.command), dict(variables))  # noqa: S606 - no shell is what is wanted
    except OSError as e:
        raise CannotRun(f"{program}: {e.strerror}.", NOT_EXECUTABLE) from e


def _by_proxy(wanted: Wanted, environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    host, port = wanted.tunnel
    if not wanted.must_start and tunnel_answers(host, port):
        address = _shown(host, port)
        return f"through the tunnel that runs at {address}.", through_proxy(environ, address, wanted.direct)
    if wanted.must_run:
        raise CannotRun(f"No tunnel answers at {_shown(host, port)}. Start one: kube-tunnel --port {port}")
    watched = Watched()
    companion = start_companion(lambda tell: _serve(wanted, watched, None, tell), talkative=wanted.verbose)
    facts = companion.next_facts()
    address = _shown("127.0.0.1", facts["port"])
    told = f"through a tunnel of its own at {address} (context {facts['context']}, namespace {facts['namespace']})."
    return told, through_proxy(environ, address, wanted.direct)


def _isolated(wanted: Wanted, environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    watched = Watched()
    asking, making = courier_pair()

    def body(tell: Callable[[Facts], None]) -> None:
        making.close()
        _serve(wanted, watched, asking, tell)

    companion = start_companion(body, talkative=wanted.verbose)
    asking.close()
    facts = companion.next_facts()
    isolate(facts["namespace"], facts["zone"])
    start_maker(making)
    making.close()
    companion.next_facts()
    told = (
        f"isolated: loopback and the cluster's Services alone can be reached, by name "
        f"(context {facts['context']}, namespace {facts['namespace']})."
    )
    return told, without_proxy(environ)


def _serve(wanted: Wanted, watched: Watched, asking: socket.socket | None, tell: Callable[[Facts], None]) -> None:
    """The companion's work: a tunnel until CMD ends, and where there is `asking`, DNS and listeners in its network."""
    logging.basicConfig(level=logging.INFO if wanted.verbose else logging.ERROR, format="kube-tunnel: %(message)s")
    asyncio.run(_serve_until_end(wanted, watched, asking, tell))


async def _serve_until_end(
    wanted: Wanted, watched: Watched, asking: socket.socket | None, tell: Callable[[Facts], None]
) -> None:
    ended = asyncio.create_task(watched.ended(), name="the command's end")
    serving = asyncio.create_task(_tunnel(wanted, asking, tell), name="the command's tunnel")
    try:
        await asyncio.wait((ended, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ended, serving):
            task.cancel()
        await asyncio.wait((ended, serving))
    if not serving.cancelled() and (error := serving.exception()) is not None:
        raise error


async def _tunnel(wanted: Wanted, asking: socket.socket | None, tell: Callable[[Facts], None]) -> None:
    from kubetunnel.run_command.inside import served_inside
    from kubetunnel.run_command.own_tunnel import HOST, own_tunnel

    async with own_tunnel(wanted.assignments, wanted.confdir) as tunnel:
        session = await tunnel.clusters.first.session()
        access = session.access
        facts = {"context": access.context, "namespace": access.namespace, "zone": tunnel.clusters.zones[0]}
        tell({"port": tunnel.port, **facts})
        if asking is None:
            await asyncio.Event().wait()
        else:
            async with served_inside(Courier(asking), tunnel.clusters, (HOST, tunnel.port)):
                tell({})
                await asyncio.Event().wait()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
