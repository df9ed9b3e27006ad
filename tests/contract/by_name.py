"""A machine where the clusters' names resolve: network and DNS set up in a namespace of its own, the tunnel in it.

The API server of the host's loopback is reached through sockets that listen inside and are held outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.netsetup.dug import Dug, read
from tests.netsetup.private_network import Machine
from tests.relay import Relay

DNS_IP, PROXY_IP = "10.8.0.1", "10.8.0.2"
TUNNEL_PORT = 8080
# as a pod's, but for `ndots`: the C library's own is 1
RESOLV_CONF = "search demo.svc.cluster.local svc.cluster.local cluster.local\nnameserver 192.0.2.53\n"


@dataclass(frozen=True)
class Told:
    """What curl was told. `reason`: of a refusal of ours."""

    exit_code: int
    status: int
    http_version: str
    body: str
    reason: str | None
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Named:
    """A machine with names, and the clients on it.

    Attributes:
        settings: the tunnel's settings file; a change is taken up while it runs.
        lines: what the tunnel has said.
    """

    machine: Machine
    settings: Path
    confdir: Path
    lines: list[str] = field(default_factory=list)
    said: threading.Condition = field(default_factory=threading.Condition)

    @property
    def ca(self) -> Path:
        return self.confdir / "mitmproxy-ca-cert.pem"

    def curl(self, url: str, *arguments: str, timeout_s: float = 20) -> Told:
        """No proxy, no --resolve, no --connect-to: the name is all that it has."""
        written = "%{stderr}FACTS%{json}HEADERS%{header_json}"
        done = self.machine.run(
            "curl", "-q", "-sS", "--noproxy", "*", "--max-time", f"{timeout_s}", "-w", written, *arguments, url,
            check=False,
        )  # fmt: skip
        errors, _, facts = done.stderr.rpartition("FACTS")
        told, headers = (json.loads(part) for part in facts.split("HEADERS"))
        reason = headers.get("x-kube-tunnel-error", [None])[-1]
        return Told(done.returncode, told["http_code"], told["http_version"], done.stdout, reason, errors)

    def python(self, *argv: str) -> Any:
        """What a client of `by_name_clients` reports."""
        done = self.machine.run(sys.executable, "-m", "tests.contract.by_name_clients", *argv, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def dig(self, *words: str) -> Dug:
        """Empty where nobody answers: so it is for a moment while other settings are taken up."""
        done = self.machine.run("dig", f"@{DNS_IP}", "+time=2", "+tries=4", "+nocmd", *words, check=False)
        return read(done.stdout)

    def address(self, name: str) -> str:
        addresses = self.dig(name, "A").data
        assert len(addresses) == 1, addresses
        return addresses[0]

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def hear(self, lines: Iterable[str]) -> None:
        for line in lines:
            with self.said:
                self.lines.append(line)
                self.said.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = 40) -> None:
        with self.said:
            assert self.said.wait_for(lambda: re.search(pattern, self.log), timeout_s), self.log


def until(happened: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Asks again and again; what it asks takes its time."""
    deadline_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline_s


def why_not_reachable(kubeconfig: Path) -> str | None:
    """Why the API servers of this kubeconfig cannot be led into a namespace as they are."""
    foreign = [str(server.hostname) for server in _servers(kubeconfig) if server.hostname != "127.0.0.1"]
    return f"NOT TESTED: the API server is {foreign[0]}, not 127.0.0.1" if foreign else None


def _servers(kubeconfig: Path) -> list[Any]:
    document = yaml.safe_load(kubeconfig.read_text())
    return [urlsplit(cluster["cluster"]["server"]) for cluster in document["clusters"]]


class _Inward(Relay):
    """Listens at the same address as `port`'s, in a namespace."""

    def __init__(self, machine: Machine, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self._listening = machine.listen("127.0.0.1", port)

    async def listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=self._listening)


@contextlib.contextmanager
def reachable(machine: Machine, kubeconfigs: Sequence[Path]) -> Iterator[None]:
    """Leads 127.0.0.1:PORT of the machine to that of the host, for the ports of these kubeconfigs' API servers."""
    ports = {server.port or 443 for kubeconfig in kubeconfigs for server in _servers(kubeconfig)}
    loop, ready = asyncio.new_event_loop(), threading.Event()
    done = asyncio.Event()

    async def serve() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for port in ports:
                await stack.enter_async_context(_Inward(machine, port))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def named(machine: Machine, kubeconfigs: Sequence[Path], zones: Mapping[str, str], directory: Path) -> Iterator[Named]:
    """`sudo kube-tunnel --virtual` of root's own, until the end of the block; then all is as it was.

    Args:
        zones: of other clusters, zone -> context.
    """
    before = machine.facts()
    settings, confdir = directory / "kube-tunnel.yaml", directory / "confdir"
    settings.write_text(json.dumps({"zones": dict(zones)}))  # JSON is YAML
    for name in list(machine.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SUDO_", "KTUN_")):
            del machine.environ[name]
    machine.environ |= {
        "KUBECONFIG": ":".join(map(str, kubeconfigs)),
        "XDG_STATE_HOME": str(directory / "state"),
        "PYTHONUNBUFFERED": "1",
    }
    made = Named(machine, settings, confdir)
    command = machine.command(
        sys.executable, "-m", "kubetunnel", "--virtual", f"--port={TUNNEL_PORT}", f"--config={settings}",
        "--set", f"confdir={confdir}",
    )  # fmt: skip
    with (
        reachable(machine, kubeconfigs),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=machine.environ
        ) as tunnel,
    ):
        assert tunnel.stdout is not None
        reader = threading.Thread(target=made.hear, args=(tunnel.stdout,))
        reader.start()
        try:
            made.wait_for("Try:")
            yield made
        finally:
            tunnel.terminate()
            try:
                tunnel.wait(20)
            except subprocess.TimeoutExpired:
                tunnel.kill()
            reader.join(5)
    assert "Traceback" not in made.log, made.log
    assert machine.facts() == before
