"""mitmdump and mitmweb with all that they import imported already, forked for each start, most of which is imports.

`python -m tests.forked_mitmproxy FD` gets a start as a line of JSON over the socket FD, with descriptors beside it for
standard output and for what becomes of it, until the socket ends. Each is a process of its own in all that counts: its
arguments, environment, directory, end by a signal. The installed command itself is started where `Tunnel` is told so.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
START_TIMEOUT_S = 30.0
PRELOADED = (
    "mitmproxy.tools.dump",
    "mitmproxy.tools.web.master",
    "kubetunnel.app",
    "kubetunnel.cluster.http_client",
)
_MAX_REQUEST_BYTES = 1 << 20


class ForkedProcess:
    """As much of `subprocess.Popen` as a tunnel needs, with standard error in standard output."""

    def __init__(self, args: Sequence[str], told: int, stdout: int) -> None:
        self.args = list(args)
        self.stdout: io.TextIOWrapper | None = os.fdopen(stdout)
        self.returncode: int | None = None
        self._told = os.fdopen(told)
        if not select.select([self._told], [], [], START_TIMEOUT_S)[0]:
            raise TimeoutError("the server forks none")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """Starts the processes."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_mitmproxy", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=PROJECT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def start(self, args: Sequence[str], *, cwd: Path, env: dict[str, str]) -> ForkedProcess:
        asked = json.dumps({"args": args, "cwd": str(cwd), "env": env}).encode()
        assert len(asked) < _MAX_REQUEST_BYTES
        output, their_output = os.pipe()
        told, their_told = os.pipe()
        socket.send_fds(self._socket, [asked], [their_output, their_told])
        os.close(their_output)
        os.close(their_told)
        return ForkedProcess(args, told, output)


@functools.cache
def server() -> Server:
    """The one of this test run; it ends with it, as its socket does."""
    return Server()


def _run(asked: dict[str, Any], output: int, told: int) -> None:
    """Forks, and tells the process id and the exit status."""
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(asked, output)
    os.close(output)
    os.write(told, b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # the tests have ended
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(asked: dict[str, Any], output: int) -> None:
    status = 1
    try:
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        time.tzset()
        sys.argv[:] = asked["args"]
        program = getattr(importlib.import_module("mitmproxy.tools.main"), Path(sys.argv[0]).name)
        status = program() or 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, "a process with threads is not to be forked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for a child
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        while True:
            line, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 2)
            if not line:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                requests.close()
                _run(json.loads(line), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    main()
