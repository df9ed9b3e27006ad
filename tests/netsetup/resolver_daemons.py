"""systemd-resolved and NetworkManager themselves in a test's own machine: installed, or from .ci/unpack-resolvers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.netsetup.private_network import Machine, why_not

UNPACKED = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "kube-tunnel-tests", "resolvers")
RESOLVED, BUS, NETWORK_MANAGER, DNSMASQ = (
    "/usr/lib/systemd/systemd-resolved", "/usr/bin/dbus-daemon", "/usr/sbin/NetworkManager", "/usr/sbin/dnsmasq",
)  # fmt: skip
LAY_OVER = ("mount", "-t", "overlay", "none", "-o", f"lowerdir={UNPACKED}/usr:/usr", "/usr")
START_LIMIT_S = 20
# whoever is in there may do all
BUS_SETTINGS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>"""
RESOLVED_USER = 64991


def why_not_with(*programs: str) -> str | None:
    """Why they cannot run here."""
    if (why := why_not()) is not None:
        return why
    missing = [program for program in programs if not Path(program).exists() and not _unpacked(program).exists()]
    if missing:
        return f"no {', '.join(missing)} (see .ci/unpack-resolvers)"
    if all(Path(program).exists() for program in programs):
        return None
    tried = subprocess.run(["unshare", "--mount", *LAY_OVER], capture_output=True, text=True, check=False)
    return f"nothing can be laid over /usr here: {tried.stderr.strip()}" if tried.returncode else None


def _unpacked(program: str) -> Path:
    return UNPACKED / program.removeprefix("/")


class Daemons:
    """Starts them in a machine, on a D-Bus of its own; they end with the block."""

    def __init__(self, own: Machine, running: ExitStack) -> None:
        self._own = own
        self._running = running

    def start_bus(self) -> None:
        self._own.run("mkdir", "-p", "/run/dbus")
        self._own.run("tee", "/run/bus.conf", stdin=BUS_SETTINGS)
        self._start(BUS, "--config-file=/run/bus.conf", "--nofork", "--nopidfile")
        self.wait_for("test", "-S", "/run/dbus/system_bus_socket")

    def start_resolved(self, settings: str) -> None:
        own = self._own
        with (own.etc / "passwd").open("a") as accounts, (own.etc / "group").open("a") as groups:
            accounts.write(f"systemd-resolve:x:{RESOLVED_USER}:{RESOLVED_USER}::/:/usr/sbin/nologin\n")
            groups.write(f"systemd-resolve:x:{RESOLVED_USER}:\n")
        (own.etc / "systemd").mkdir()
        (own.etc / "systemd" / "resolved.conf").write_text(settings)
        own.run("install", "-d", "-o", str(RESOLVED_USER), "-g", str(RESOLVED_USER), "/run/systemd/resolve")
        self._resolved = self._start(RESOLVED)
        self.wait_for("resolvectl")

    def restart_resolved(self) -> None:
        self._resolved.terminate()
        self._resolved.wait(START_LIMIT_S)
        self._resolved = self._start(RESOLVED)
        self.wait_for("resolvectl")

    def start_network_manager(self, settings: str) -> None:
        (self._own.etc / "NetworkManager").mkdir()
        (self._own.etc / "NetworkManager" / "NetworkManager.conf").write_text(settings)
        self._own.run("mkdir", "-p", "/var/lib/NetworkManager")
        self._start(NETWORK_MANAGER, "--debug")
        self.wait_for("sh", "-c", "nmcli -t -f RUNNING general | grep -qx running")

    def wait_for(self, *argv: str) -> None:
        """Until the program ends well."""
        deadline = time.monotonic() + START_LIMIT_S
        while (tried := self._own.run(*argv, check=False)).returncode != 0:
            assert time.monotonic() < deadline, tried
            time.sleep(0.05)

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        log = (self._own.work / f"{Path(argv[0]).name}.log").open("w")
        self._running.enter_context(log)
        daemon = subprocess.Popen(self._own.command(*argv), stdout=log, stderr=log, env=self._own.environ)
        self._running.enter_context(daemon)
        self._running.callback(daemon.kill)
        return daemon


def _kill_what_they_started(own: Machine) -> None:
    """NetworkManager leaves its dnsmasq running: what is in the machine's network and not its holder goes."""
    network = Path(f"/proc/{own.pid}/ns/net").readlink()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != own.pid and Path(f"/proc/{process.pid}/ns/net").readlink() == network:
                process.kill()


@contextmanager
def daemons(own: Machine) -> Iterator[Daemons]:
    if UNPACKED.exists():
        own.run(*LAY_OVER)
    with ExitStack() as running:
        running.callback(_kill_what_they_started, own)
        started = Daemons(own, running)
        started.start_bus()
        yield started
