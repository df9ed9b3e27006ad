"""The command as a process: the first screen, what is wrong in a line, the end in order, and the log as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import curl, without_proxies

TIMEOUT_S = 60.0


class Command:
    """`kube-tunnel` on free ports; `log` is what it has said."""

    def __init__(self, directory: Path, kubeconfig: Path, *flags: str) -> None:
        command = [
            sys.executable, "-m", "kubetunnel", "--port=0", "-dns-port=0", "--kubeconfig", str(kubeconfig), *flags,
            "--set", f"confdir={directory / 'confdir'}",
        ]  # fmt: skip
        env = {**without_proxies(), "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(directory)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory, env=env
        )
        self.log = ""
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.log += line
                self._said.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + TIMEOUT_S
        with self._said:
            while not (found := re.search(pattern, self.log)):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{pattern!r} did not come:\n{self.log}"
                assert self._reader.is_alive(), f"{pattern!r} did not come:\n{self.log}"
                self._said.wait(min(left_s, 0.2))
            return found

    @property
    def port(self) -> int:
        return int(self.wait_for(r"listening at 127\.0\.0\.1:(\d+)")[1])

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not re.search("Traceback|excepthook", self.log), self.log


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    async def nothing(_: SimCluster) -> None:
        pass

    with simulated(nothing) as sim:
        yield sim.kubeconfig(tmp_path_factory.mktemp("sim") / "kubeconfig")


@pytest.fixture
def start(tmp_path: Path, kubeconfig: Path) -> Iterator[type[Command]]:
    with contextlib.ExitStack() as stack:

        def started(*flags: str) -> Command:
            command = Command(tmp_path, kubeconfig, *flags)
            stack.callback(command.close)
            return command

        yield started  # type: ignore[misc]


def test_the_first_screen(start: type[Command], tmp_path: Path) -> None:
    command = start()
    command.wait_for(r"Try:\n  curl .*\n  curl ")
    assert f"Making a certificate authority in {tmp_path}/confdir, once.\n" in command.log
    screen = command.log[command.log.index("kube-tunnel 0") :].splitlines()
    port = command.port
    patterns = [
        r"kube-tunnel \S+ is ready\.", r"  Cluster:   https://\S+ \(context sim, namespace demo, as admin\)",
        rf"  Proxy:     127\.0\.0\.1:{port} for ", r"  DNS:       127\.0\.0\.1 port \d+, for cluster\.local",
        rf"  Dashboard: http://127\.0\.0\.1:{port}/dashboard#token=\S+",
        rf"  HTTPS:     curl --cacert {tmp_path}/confdir/mitmproxy-ca-cert\.pem ", r"  End:       Ctrl-C", "Try:",
    ]  # fmt: skip
    for line, pattern in zip(screen[: len(patterns)], patterns, strict=True):
        assert re.match(pattern, line), line
    assert (tmp_path / "confdir" / "mitmproxy-ca-cert.pem").exists()
    words = next(line for line in screen if line.startswith("  curl -H")).replace("'", "").split("Host: ")[1].split()
    assert curl("-H", f"Host: {words[0]}", words[1] + "hostname").status == 200
    assert command.end(signal.SIGINT) == 0


def test_a_port_that_is_taken_says_by_whom_and_which_instead(start: type[Command]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = start(f"--port={port}")
        assert command.wait() == 1
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use, by {name} (pid {os.getpid()})" in command.log
    assert f"Another port: --port {port + 2}" in command.log or f"--port {port - 2}" in command.log


def slow_request(port: int) -> socket.socket:
    """One whose response has begun: a byte a second, for half a minute."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    connection.sendall(b"GET /stream?n=30&interval=1 HTTP/1.1\r\nHost: echo.demo\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    return connection


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
    except OSError:
        return True
    return False


def test_what_is_under_way_is_finished_and_nothing_new_is_taken(start: type[Command]) -> None:
    command = start()
    port = command.port
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as uploading:
        uploading.sendall(b"POST /upload HTTP/1.1\r\nHost: echo.demo\r\nContent-Length: 4\r\n\r\nab")
        command.wait_for(r"Service demo/echo is watched")
        command.process.send_signal(signal.SIGTERM)
        command.wait_for(r"Ending: 1 requests or connections are under way, and have 60 s")
        command.wait_for(r"stopped\.")
        assert refuses(port)
        assert command.process.poll() is None
        uploading.sendall(b"cd")
        answer = b""
        while piece := uploading.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert command.wait() == 0


def test_a_second_signal_ends_at_once(start: type[Command]) -> None:
    command = start()
    with slow_request(command.port):
        command.process.send_signal(signal.SIGINT)
        command.wait_for("Ending: 1 ")
        assert command.end(signal.SIGINT) == 128 + signal.SIGINT


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="runs under nohup")
def test_a_closed_terminal_ends_it_in_order(start: type[Command]) -> None:
    command = start()
    command.wait_for("is ready")
    assert command.end(signal.SIGHUP) == 0


@pytest.mark.parametrize(("host", "told"), [("127.0.0.2", True), ("0.0.0.0", False)])
def test_the_token_is_in_no_log_of_a_tunnel_that_others_reach(start: type[Command], host: str, told: bool) -> None:
    command = start("--no-dns", "--", f"--listen-host={host}")
    command.wait_for("is ready")
    command.wait_for(r"Dashboard: http://\S+/dashboard")
    assert ("#token=" in command.log) is told
    assert command.end() == 0


def test_json_lines(start: type[Command]) -> None:
    command = start("--log-format=json")
    port = command.port
    command.wait_for("is ready")
    answer = curl("-H", "Host: echo.demo", f"http://127.0.0.1:{port}/status?code=404&secret=token")
    command.wait_for('"status": ')
    assert command.end() == 0
    lines = [json.loads(line) for line in command.log.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
    request = next(line for line in lines if "status" in line)
    assert (request["method"], request["path"], request["status"]) == ("GET", "/status", answer.status)
    assert (request["service"], request["level"]) == ("echo.demo.svc.cluster.local", "info")
    assert "token" not in command.log


def test_a_changed_file_is_taken_whole_or_refused_whole(start: type[Command], tmp_path: Path) -> None:
    config = tmp_path / "kube-tunnel.yaml"
    config.write_text("retry: {max: 1}\n")

    def change(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(config)

    command = start()
    command.wait_for("is ready")
    change("retry: {max: 3}\nnetwork: {virtual: true, dns_interface: {name: other0}}\n")
    command.wait_for(
        r"is not taken: the settings stay as they are\.\n"
        r"network\.virtual, network\.dns_interface\.name: cannot change while the tunnel runs\. End it and start"
    )
    change("retry: {max: many, delay: soon}\n")
    command.wait_for(r"yaml: retry\.max: 'many' is not a whole number\n.*yaml: retry\.delay: 'soon' is not a duration")
    assert "retry.max from" not in command.log
    change("retry: {max: 4}\nhealth: {interval: 9s}\n")
    command.wait_for(r"was changed: retry\.max from 1 to 4, health\.interval from '30s' to '9s'\.")
    assert command.end() == 0
