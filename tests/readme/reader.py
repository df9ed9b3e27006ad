"""The reader's machine: a network of its own with a cluster in it, and somebody who types what a page says.

Ports are those of the pages, so no other tunnel of this machine is in the way. Who types has the rights of a user: port
80 may not be had. `stand_ins/` is first on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.netsetup.private_network import Machine, machine
from tests.tunnel import ROOT, without_proxies

COMMAND_TIMEOUT_S = 60.0
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
STAND_INS = Path(__file__).parent / "stand_ins"
# of a checkout: what the commands of the pages name
CHECKOUT = (
    "addons",
    "netsetup",
    "scripts",
    "deploy",
    "certs",
    "monitoring",
    "Makefile",
    "pyproject.toml",
    "Dockerfile",
)
CURLRC = "silent\nshow-error\nfail-with-body\nmax-time = 30\n"
# `host.docker.internal` as Docker Desktop has it; the gateway's Service
HOSTS = "127.0.0.1 localhost host.docker.internal\n172.17.0.1 kube-tunnel.kube-tunnel\n"
BRIDGE = "ip link add docker0 type bridge && ip address add 172.17.0.1/16 dev docker0 && ip link set docker0 up"
SUITE = """\
import unittest, urllib.request

class Api(unittest.TestCase):
    def test_it_answers(self):
        self.assertEqual(urllib.request.urlopen("http://api.shop/hostname", timeout=30).status, 200)
"""
AS_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root by number, without its rights


class Program:
    """Something that runs until it is stopped."""

    def __init__(self, command: list[str], environ: dict[str, str], directory: Path) -> None:
        self._changed = threading.Condition()
        self._text = ""
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ,
            cwd=directory, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._text += line
                self._changed.notify_all()

    @property
    def text(self) -> str:
        with self._changed:
            return self._text

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._changed:
            while not re.search(pattern, self._text):
                ended = self.process.poll()
                left_s = deadline - time.monotonic()
                assert left_s > 0 and (ended is None or self._reader.is_alive()), (
                    f"{pattern!r} did not come (exit status {ended}):\n{self._text}"
                )
                self._changed.wait(min(left_s, 0.1))

    def stop(self) -> int:
        """Ctrl-C. Returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(END_TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(5)
            assert self.process.stdout is not None
            self.process.stdout.close()


class Reader:
    """Types commands, each in a shell of its own."""

    def __init__(self, ours: Machine, home: Path) -> None:
        self._machine = ours
        self.home = home
        self.directory = home / "work"
        kept = {
            name: value for name, value in without_proxies().items() if not name.startswith(("KUBE", "KTUN_", "XDG_"))
        }
        path = f"{home / 'stand_ins'}:{Path(sys.executable).parent}:{kept['PATH']}"
        self._environ = {**kept, "HOME": str(home), "PATH": path, "PYTHONUNBUFFERED": "1", "BROWSER": "true"}
        self.tunnel: Program | None = None

    def run(self, text: str) -> tuple[int, str]:
        """Exit status and output."""
        command = self._shell(text, root=True)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=self._environ, timeout=COMMAND_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            said = e.stdout.decode() if isinstance(e.stdout, bytes) else e.stdout
            raise AssertionError(f"did not end in {COMMAND_TIMEOUT_S:.0f} s; is it a server?\n{said or ''}") from e
        return done.returncode, done.stdout

    def start(self, text: str) -> Program:
        return Program(self._shell(text, root=text.startswith("sudo ")), self._environ, self.directory)

    def _shell(self, text: str, *, root: bool) -> list[str]:
        shell = ["bash", "-o", "pipefail", "-c", f"cd {self.directory}; {text}"]
        return self._machine.command(*([] if root else AS_USER), *shell)

    def eventually(self, text: str, pattern: str) -> None:
        """Types it until it succeeds and says `pattern`, as long as a server may take to be ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            status, said = self.run(text)
            if status == 0 and re.search(pattern, said):
                return
            assert time.monotonic() < deadline, f"{text}: {status}, {said!r} instead of {pattern!r}"
            time.sleep(0.2)

    def stop_tunnel(self) -> None:
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            status = tunnel.stop()
            assert status == 0, f"Ctrl-C: exit status {status}\n{tunnel.text}"
            assert "Traceback" not in tunnel.text, tunnel.text


@contextlib.contextmanager
def reader(work: Path) -> Iterator[Reader]:
    with machine(work) as ours, tempfile.TemporaryDirectory(prefix="kube-tunnel-reader-") as temporary:
        home = Path(temporary)
        Path(home, "work", "integration").mkdir(parents=True)
        Path(home, "work", "integration", "test_api.py").write_text(SUITE)
        for name in CHECKOUT:
            Path(home, "work", name).symlink_to(ROOT / name)
        Path(home, "work", ".venv").symlink_to(sys.prefix)
        Path(home, "work", "config.yaml").write_text("retry: {max: 3}\n")
        Path(home, ".curlrc").write_text(CURLRC)
        shutil.copytree(STAND_INS, home / "stand_ins")
        (ours.etc / "hosts").write_text(HOSTS)
        ours.run("sh", "-c", BRIDGE)
        with cluster(ours, home):
            typing = Reader(ours, home)
            try:
                yield typing
            finally:
                typing.stop_tunnel()


@contextlib.contextmanager
def cluster(ours: Machine, home: Path) -> Iterator[None]:
    command = ours.command(sys.executable, "-m", "tests.readme.shop", str(home))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=without_proxies()
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
