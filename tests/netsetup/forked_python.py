"""Python that has netsetup imported already, forked for each run: the tests run it hundreds of times.

`python -m tests.netsetup.forked_python` reads a run as a line of JSON and writes what became of it, until its end of
input. A run is a process of its own in all that counts: its arguments, environment, namespaces, end by a signal.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
LIMIT_S = 30
PRELOADED = "import netsetup.__main__, netsetup.links, netsetup.setup"


class ForkedPython:
    """Starts the processes."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.netsetup.forked_python"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
        )  # fmt: skip

    def run(
        self, code: str, argv: tuple[str, ...], *, pid: int, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """`python -c code argv…`, in the network and mount namespaces of the process `pid`."""
        asked = {"code": code, "argv": argv, "pid": pid, "environ": dict(environ)}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        told = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess([sys.executable, "-c", code, *argv], **told)


@functools.cache
def forked_python() -> ForkedPython:
    """The one of this test run; it ends with it, as its input does."""
    return ForkedPython()


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    child = os.fork()
    if child == 0:
        _become(asked, outputs)
    _, status = os.waitpid(child, 0)
    told = []
    for output in outputs:
        with os.fdopen(output, "rb") as file:
            file.seek(0)
            told.append(file.read().decode())
    return {"returncode": os.waitstatus_to_exitcode(status), "stdout": told[0], "stderr": told[1]}


def _become(asked: dict[str, Any], outputs: list[int]) -> None:
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for standard, wanted in enumerate((nothing, *outputs)):
            os.dup2(wanted, standard)
        for kind in ("net", "mnt"):
            namespace = os.open(f"/proc/{asked['pid']}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            os.setns(namespace)
        os.chdir(PROJECT)  # as the mounts have it
        signal.alarm(LIMIT_S)
        os.environ.clear()
        os.environ.update(asked["environ"])
        sys.argv[:] = ["-c", *asked["argv"]]
        exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    exec(PRELOADED)  # noqa: S102
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
