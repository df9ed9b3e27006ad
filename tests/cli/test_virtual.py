"""`sudo kube-tunnel --virtual`, on a machine of the test's own: names resolve for every program, the tunnel is the
user's, and afterwards nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup.private_network import PROJECT, Machine, machine, why_not
from tests.netsetup.test_up_down import OUTLIVED, start_again

UID = 4242
USER = "tester"
API = "client.authentication.k8s.io/v1"
HOST = "echo.demo.svc.cluster.local"

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")


def closed_ancestor(path: Path) -> Path | None:
    """The topmost directory that other users may not enter."""
    return next((each for each in reversed(path.parents) if not each.stat().st_mode & 0o001), None)


@pytest.fixture
def home() -> Iterator[Path]:
    # pytest closes its own directories to other users, again and again
    with tempfile.TemporaryDirectory(prefix="kube-tunnel-home-") as directory:
        path = Path(directory)
        os.chown(path, UID, UID)
        yield path


@pytest.fixture
def ours(tmp_path: Path, home: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        with (made.etc / "passwd").open("a") as accounts:
            accounts.write(f"{USER}:x:{UID}:{UID}::{home}:/bin/sh\n")
        closed = closed_ancestor(Path(sys.base_prefix))
        if closed is not None:  # the interpreter is root's: shown to the user, in this mount namespace alone
            if PROJECT.is_relative_to(closed):
                pytest.skip(f"other users may not enter {closed}")
            show = 'mkdir -p "$1" && mount --bind "$2" "$1" && mount -t tmpfs -o mode=755 none "$3"'
            show += ' && mkdir -p "$2" && mount --bind "$1" "$2"'
            made.run("sh", "-c", show, "sh", str(tmp_path / "python"), sys.base_prefix, str(closed))
        made.environ |= {"SUDO_USER": USER, "SUDO_UID": str(UID), "HOME": "/root", "PYTHONUNBUFFERED": "1"}
        for name in ("KUBECONFIG", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            made.environ.pop(name, None)
        yield made


class Started:
    """kube-tunnel in the machine, and what it says."""

    def __init__(self, ours: Machine, *arguments: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        command = ours.command(sys.executable, "-m", "kubetunnel", *arguments)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ours.environ
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = 40) -> str:
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, "".join(self.lines)), timeout_s)
            assert found, "".join(self.lines)
            return found[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(20)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


def test_names_resolve_and_nothing_is_left(ours: Machine) -> None:
    before = ours.facts()
    started = Started(ours, "--virtual", "--demo")
    try:
        started.wait_for(f"Try:\n  curl http://{HOST}/\n")
        for url in (f"http://{HOST}/hostname", "http://echo-sts-0.echo-sts.demo.svc.cluster.local:8080/hostname"):
            answer = ours.run("curl", "-sS", "--max-time", "20", "--write-out", " %{http_code}", url)
            assert answer.stdout.endswith(" 200"), answer.stdout
        for url in ("http://kube-tunnel.internal/dashboard", "https://kube-tunnel.internal/api/v1/services"):
            answer = ours.run("curl", "-sSk", "--max-time", "20", "--write-out", " %{http_code} %{remote_ip}", url)
            assert answer.stdout.endswith(" 200 10.8.0.2"), answer.stdout
        assert ours.run("dig", "+short", "@10.8.0.1", HOST).stdout.startswith("10.")
        doctor = ours.run(sys.executable, "-m", "kubetunnel", "doctor", "--json", check=False).stdout
        found = {check["check"]: (check["level"], check["found"]) for check in json.loads(doctor)["checks"]}
        for check in ("tunnel's port", "DNS port", "DNS path", "tunnel's name", "interfaces", "redirection"):
            assert found[check][0] == "ok", found
        assert found["tunnel's name"][1] == "kube-tunnel.internal is 10.8.0.2"
        served = ours.run("ss", "-Hltnp", "sport = :8080").stdout
        pid = re.search(r"pid=(\d+)", served)
        assert pid is not None, served
        assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in Path(f"/proc/{pid[1]}/status").read_text()
    finally:
        status = started.end()
    assert status == 0, "".join(started.lines)
    assert ours.facts() == before


def test_what_outlived_the_network_is_told_of_at_the_start(ours: Machine, home: Path) -> None:
    ours.netsetup("up")
    ours.environ |= {"HOME": str(home), "XDG_STATE_HOME": str(home)}
    for is_of_before in (False, True):
        if is_of_before:
            start_again(ours)
        started = Started(ours, "--demo", "--dns-port", "0")
        try:
            started.wait_for("Try:")
        finally:
            assert started.end() == 0
        lines = [line for line in started.lines if OUTLIVED in line]
        assert len(lines) == is_of_before, started.lines
    (told,) = lines
    assert re.search(r"See: sudo .* -m kubetunnel netsetup up    \(or, .*: sudo .* -m netsetup down\)\n", told), told


def test_who_may_listen_on_port_80_listens_where_it_is_led_to(ours: Machine) -> None:
    ours.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start")
    before = ours.facts()
    started = Started(ours, "--virtual", "--demo", "--dns-port", "5300")
    try:
        started.wait_for("Try:")
        answer = ours.run("curl", "-sS", "--max-time", "20", "--write-out", " %{http_code}", f"http://{HOST}/hostname")
        assert answer.stdout.endswith(" 200"), answer.stdout
        assert "lead to" not in "".join(started.lines)
    finally:
        status = started.end(signal.SIGHUP)  # the terminal was closed
    assert status == 0, "".join(started.lines)
    assert ours.facts() == before


def test_the_tunnel_ends_with_a_killed_root_half(ours: Machine) -> None:
    before = ours.facts()
    started = Started(ours, "--virtual", "--demo")
    started.wait_for("Try:")
    started.process.kill()
    started.process.wait(10)  # its lock goes with it
    down = ours.netsetup("down")  # at once: the other half has no part in the lock
    assert down.stdout.endswith("Down.\n")
    assert ours.facts() == before
    started.end()  # reads to the end of what the other half says, so it has ended
    assert not ours.run("ss", "-Hltn", "sport = :8080").stdout


def test_a_network_that_is_there_is_used_and_left(ours: Machine) -> None:
    ours.netsetup("up", "--port", "8123", "--dns-port", "5300")
    during = ours.facts()
    started = Started(ours, "--virtual", "--demo")
    try:
        started.wait_for("Try:")
        assert "left as it is" in "".join(started.lines)
        answer = ours.run("curl", "-sS", "--max-time", "20", "--write-out", " %{http_code}", f"http://{HOST}/hostname")
        assert answer.stdout.endswith(" 200"), answer.stdout
    finally:
        assert started.end() == 0
    assert ours.facts() == during
    refused = ours.run(sys.executable, "-m", "kubetunnel", "--virtual", "--demo", "--port", "8124", check=False)
    assert refused.returncode == 1
    assert "the tunnel's port is 8123, not 8124" in refused.stderr
    assert ours.facts() == during


def test_a_range_of_ipv6(ours: Machine) -> None:
    before = ours.facts()
    ours.environ["KTUN_IP_RANGES"] = "fd00:8::/64"
    started = Started(ours, "--virtual", "--demo")
    try:
        started.wait_for("Try:")
        assert ours.run("dig", "+short", "@fd00:8::1", HOST, "AAAA").stdout.startswith("fd00:8::")
        answer = ours.run("curl", "-sS", "--max-time", "20", "--write-out", " %{http_code}", f"http://{HOST}/hostname")
        assert answer.stdout.endswith(" 200"), answer.stdout
        doctor = ours.run(sys.executable, "-m", "kubetunnel", "doctor", check=False).stdout
        assert len(re.findall(r"^ok +(?:DNS port|redirection|DNS path) ", doctor, re.MULTILINE)) == 3, doctor
    finally:
        status = started.end()
    assert status == 0, "".join(started.lines)
    assert ours.facts() == before


def test_credential_plugins_are_the_users(ours: Machine, home: Path) -> None:
    plugin = home / "plugin"
    plugin.write_text(f"#!/bin/sh\nid -u > {home}/ran\nexit 1\n")
    plugin.chmod(0o755)
    (home / ".kube").mkdir(mode=0o755)
    (home / ".kube" / "config").write_text(
        f"""
apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: here, cluster: {{server: "https://127.0.0.1:1"}}}}]
users: [{{name: me, user: {{exec: {{apiVersion: {API}, command: {plugin}, interactiveMode: Never}}}}}}]
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
"""
    )
    started = Started(ours, "--virtual")
    try:
        started.wait_for(f"Using the current cluster: {home}/.kube/config")
        started.wait_for("No cluster yet")
    finally:
        started.end()
    assert (home / "ran").read_text() == f"{UID}\n"


def test_a_python_that_the_user_may_not_read_is_told_of(ours: Machine) -> None:
    closed = closed_ancestor(Path(sys.base_prefix))
    if closed is None:
        pytest.skip("everybody may read this Python")
    ours.run("chmod", "700", str(closed))
    before = ours.facts()
    done = ours.run(sys.executable, "-m", "kubetunnel", "--virtual", "--demo", check=False)
    assert done.returncode == 1
    assert f"kube-tunnel: The tunnel is to run as {USER}, who may not read {closed}" in done.stderr
    assert "Traceback" not in done.stderr
    assert ours.facts() == before


def test_without_root_it_says_what_to_type(ours: Machine) -> None:
    drop = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    ours.environ |= {"KUBECONFIG": "/of-the-office", "KTUN_DNS_PORT": "5300"}
    done = ours.run(*drop, sys.executable, "-m", "kubetunnel", "--virtual", "--context", "a b", check=False)
    assert done.returncode == 1
    told = f"sudo --preserve-env=KTUN_DNS_PORT,KUBECONFIG {sys.executable} -I -m kubetunnel --virtual --context 'a b' "
    assert told in done.stderr
    assert "--loopback" in done.stderr
