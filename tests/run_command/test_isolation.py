"""Namespaces as a user without any right has them, and sockets that are handed over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kubetunnel.run_command import courier
from kubetunnel.run_command.courier import Courier, courier_pair

NOBODY = 65534

# all that it needs is imported before: the user that it becomes may not be able to read the interpreter's files
UNPRIVILEGED = f"""
import ctypes, encodings.ascii, encodings.utf_8, os
from kubetunnel.run_command.isolation import isolate
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as after an exec(3), /proc/self is one's own
isolate("shop", "cluster.local")
os.execv("/bin/sh", ["sh", "-c", '''
id -u; id -g; grep CapEff /proc/self/status | cut -f2; tail -n +3 /proc/net/dev | cut -d: -f1; head -2 /etc/resolv.conf
'''])
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user: needs root, on Linux")
def test_a_user_without_rights_stays_one() -> None:
    drop = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "unshare", "--user", "--mount", "--net", "true"]
    if subprocess.run(drop, capture_output=True, check=False).returncode != 0:
        pytest.skip("users may make no user namespaces here")
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        str(NOBODY), str(NOBODY), "0" * 16, "lo",
        "nameserver", "127.0.0.53", "search", "shop.svc.cluster.local", "svc.cluster.local", "cluster.local",
    ], done  # fmt: skip


@pytest.fixture
def asking() -> Iterator[socket.socket]:
    """The end that asks; the other is a process's, here in our own network."""
    ours, theirs = courier_pair()
    # pytest has threads: the process is forked out of one that has not
    code = (
        "import socket, sys; from kubetunnel.run_command.courier import start_maker;"
        "start_maker(socket.socket(fileno=int(sys.argv[1])))"
    )
    with ours, theirs:
        subprocess.run([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()], check=True)
        theirs.close()
        yield ours


async def test_sockets_are_handed_over(asking: socket.socket) -> None:
    courier = Courier(asking)
    first = await courier.bound("tcp", "127.77.0.1", 0)
    with first:
        assert (first.type, first.getsockname()[0]) == (socket.SOCK_STREAM, "127.77.0.1")
        with pytest.raises(OSError, match="Address already in use") as caught:
            await courier.bound("tcp", *first.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        accepting = asyncio.create_task(asyncio.get_running_loop().sock_accept(first))
        with socket.create_connection(first.getsockname()):
            accepted, _ = await accepting
            accepted.close()
    with await courier.bound("udp", "127.77.0.1", 0) as datagrams:
        assert datagrams.type == socket.SOCK_DGRAM


async def test_a_cancelled_question_does_not_mix_up_answers(asking: socket.socket) -> None:
    courier = Courier(asking)
    given_up = asyncio.create_task(courier.bound("tcp", "127.77.0.1", 0))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    for _ in range(3):
        with await courier.bound("udp", "127.77.0.2", 0) as found:
            assert (found.type, found.getsockname()[0]) == (socket.SOCK_DGRAM, "127.77.0.2")
    await courier.aclose()


async def test_a_late_answer_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "ANSWER_TIMEOUT_S", 0.01)
    ours, theirs = courier_pair()
    with ours, theirs:
        asking = Courier(ours)
        with pytest.raises(TimeoutError):
            await asking.bound("tcp", "127.77.0.1", 0)
        with socket.create_server(("127.77.0.1", 0)) as late, pytest.raises(OSError):
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(theirs, [b"0"], [late.fileno()])
            (await asking.bound("tcp", "127.77.0.2", 0)).close()


async def test_a_namespace_that_is_gone() -> None:
    ours, theirs = courier_pair()
    theirs.close()
    with ours, pytest.raises(OSError):
        await Courier(ours).bound("tcp", "127.0.0.1", 0)
