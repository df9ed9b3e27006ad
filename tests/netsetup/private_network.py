"""A machine of the tests' own: network and mount namespaces, a private /etc, /run and /var/lib."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.netsetup.forked_python import PROJECT, forked_python

STATE = "/var/lib/kube-tunnel/netsetup.json"
# what the programs need of /etc: accounts, and Debian's links to iptables
NEEDED_OF_ETC = ("passwd", "group", "nsswitch.conf", "protocols", "services", "alternatives", "ld.so.cache")
RESOLV_CONF = b"# of the office\nsearch corp.example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions edns0\n"

_HOLD = """
set -e
mount --bind "$1" /etc
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
ip link set lo up
echo ready
read _
"""


def why_not() -> str | None:
    """Why no such machine can be made here."""
    if os.name != "posix" or not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("unshare", "nsenter", "ip", "mount", "nft"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", "ip link add probe type bridge && nft list ruleset"],
        capture_output=True,
        text=True,
    )
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """Runs programs inside."""

    def __init__(self, pid: int, etc: Path, work: Path) -> None:
        self.pid = pid
        self.etc = etc
        self.work = work
        self.environ = dict(os.environ)

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", f"--wd={PROJECT}", *argv]

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=30, env=self.environ, input=stdin
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*argv), stdout=subprocess.PIPE, text=True, env=self.environ)

    def python(self, code: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = forked_python().run(code, argv, pid=self.pid, environ=self.environ)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def netsetup(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.python("from netsetup.__main__ import main; main()", *argv, check=check)

    def listen(self, host: str, port: int) -> socket.socket:
        """A socket that listens in there, held by this process."""
        made: list[socket.socket] = []

        def make() -> None:
            namespace = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                os.setns(namespace, os.CLONE_NEWNET)  # of this thread alone, which ends at once
            finally:
                os.close(namespace)
            made.append(socket.create_server((host, port)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv).stdout or "[]")

    def stub(self, name: str, script: str) -> Path:
        """Puts a program before the others on the PATH; gives the file that it may log to as $LOG."""
        directory = self.work / "stubs"
        directory.mkdir(exist_ok=True)
        log = self.work / f"{name}.log"
        (directory / name).write_text(f"#!/bin/sh\nLOG={log}\n{script}")
        (directory / name).chmod(0o755)
        self.environ["PATH"] = f"{directory}:{os.environ['PATH']}"
        return log

    def facts(self) -> Mapping[str, Any]:
        """Everything that netsetup could change, as data."""
        lines = self.run("sh", "-c", " && echo && ".join(_FACTS)).stdout.splitlines()
        facts = dict(zip(_FACTS, (json.loads(line) for line in lines if line), strict=True))
        for link in facts["ip -j address"] + facts["ip -j link"]:
            # a bridge without ports loses its carrier some time after it is set up
            link["operstate"] = None
            link["flags"] = sorted({*link["flags"]} - {"NO-CARRIER", "LOWER_UP"})
        for route in facts["ip -j route show table all"] + facts["ip -j -6 route show table all"]:
            route["flags"] = []
        return facts | {
            "/var/lib": self.run("find", "/var/lib", "-mindepth", "1").stdout,
            "/etc": dict(_tree(self.etc)),
        }


_FACTS = (
    "ip -j address",
    "ip -j link",
    "ip -j route show table all",
    "ip -j -6 route show table all",
    "ip -j rule",
    "nft -j list ruleset",
    "cat /proc/sys/net/ipv4/ip_forward",
)


def _tree(root: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            yield str(path.relative_to(root)), ("link", str(path.readlink()))
        elif path.is_dir():
            yield str(path.relative_to(root)), ("directory", path.stat().st_mode)
        else:
            yield str(path.relative_to(root)), ("file", path.stat().st_mode, path.read_bytes())


@contextmanager
def machine(work: Path) -> Iterator[Machine]:
    etc = work / "etc"
    etc.mkdir()
    for name in NEEDED_OF_ETC:
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, etc / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, etc / name)
    (etc / "resolv.conf").write_bytes(RESOLV_CONF)
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", _HOLD, "sh", str(etc)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield Machine(holder.pid, etc, work)
        finally:
            holder.kill()
