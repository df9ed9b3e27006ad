"""`kube-tunnel run -- CMD` with real programs: what they reach, what they are told, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import Tunnel, without_proxies

RUN = "from kubetunnel.cli.run import command; command(prog_name='kube-tunnel run')"
START_TIMEOUT_S = 40.0


def can_isolate() -> bool:
    if sys.platform != "linux":
        return False
    kinds = "--mount --net" if os.geteuid() == 0 else "--user --mount --net --map-current-user"
    done = subprocess.run(["unshare", *kinds.split(), "true"], capture_output=True, check=False)
    return done.returncode == 0


isolation = pytest.mark.skipif(not can_isolate(), reason="this user may make no network namespace here")


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("kube") / "kubeconfig"

    async def prepare(cluster: SimCluster) -> None:
        cluster.kubeconfig(path)

    with simulated(prepare):
        yield path


class Runner:
    """Starts `kube-tunnel run` with a directory of its own, by which all that belongs to it is found."""

    def __init__(self, directory: Path, kubeconfig: Path) -> None:
        self.directory = directory
        self.kubeconfig = kubeconfig
        self.seen: set[psutil.Process] = set()  # one that is ending has no command line any more, but its sockets
        self.environ = without_proxies() | {"XDG_STATE_HOME": str(directory / "state"), "KUBECONFIG": ""}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", RUN, "--confdir", str(self.directory / "confdir"), *arguments]

    def __call__(
        self, flags: Sequence[str], *command: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*flags, "--", *command), capture_output=True, text=True, input=stdin,
            timeout=START_TIMEOUT_S, env=self.environ | environ, check=False,
        )  # fmt: skip

    def own(self, *command: str, flags: Sequence[str] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self(("--kubeconfig", str(self.kubeconfig), *flags), *command, stdin=stdin)

    def isolated(self, script: str, *flags: str) -> subprocess.CompletedProcess[str]:
        return self.own("sh", "-c", script, flags=("--isolate", *flags))

    def processes(self) -> list[psutil.Process]:
        """All that have our directory in their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and str(self.directory) in " ".join(process.cmdline()):
                    found.append(process)
        self.seen |= set(found)
        return found

    def wait_for_nothing_left(self) -> None:
        _, alive = psutil.wait_procs({*self.seen, *self.processes()}, timeout=15)
        assert not alive, [process.cmdline() for process in alive]


@pytest.fixture
def run(tmp_path: Path, kubeconfig: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path, kubeconfig)
    yield runner
    try:
        runner.wait_for_nothing_left()
    finally:
        for process in runner.processes():
            process.kill()


OWN = r"kube-tunnel run: through a tunnel of its own at (127\.0\.0\.1:\d+) \(context sim, namespace demo\)\.\n"


# -- by proxy variables


def test_a_tunnel_of_its_own(run: Runner) -> None:
    done = run.own("curl", "-sS", "http://echo.demo/hostname", "http://echo.demo.svc.cluster.local/hostname")
    assert done.returncode == 0, done
    assert re.fullmatch(r"(echo-\w+-\w+\n){2}", done.stdout)
    assert re.fullmatch(OWN, done.stderr)


def test_no_command_line_of_ours_comes_between(run: Runner) -> None:
    done = run.own("sh", "-c", "cat; echo said >&2; exit 42", stdin="0\n1\n")
    assert (done.returncode, done.stdout) == (42, "0\n1\n")
    assert re.fullmatch(OWN + "said\n", done.stderr)


def test_the_command_takes_our_place(run: Runner) -> None:
    """Its process id, its children and its signals are those of a program that was started without us."""
    script = (
        "import json, os; status = open('/proc/self/status').read(); me = os.getpid();"
        "print(json.dumps([me, os.getsid(0), status.partition('SigIgn:')[2].split()[0],"
        " sorted(map(int, os.listdir('/proc/self/fd')))[:-1], open(f'/proc/self/task/{me}/children').read()]))"
    )
    command = run.command("--kubeconfig", str(run.kubeconfig), "-q", "--", sys.executable, "-c", script)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run.environ
    ) as process:
        out, err = process.communicate(timeout=START_TIMEOUT_S)
    without_us = subprocess.run(command[-3:], capture_output=True, text=True, env=run.environ, check=True)
    pid, *others = json.loads(out)
    assert (pid, others, err) == (process.pid, json.loads(without_us.stdout)[1:], "")


def test_a_pipe_that_is_closed_ends_the_command(run: Runner) -> None:
    script = "yes; echo $? >&2"
    command = run.command("--kubeconfig", str(run.kubeconfig), "-q", "--", "sh", "-c", script)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run.environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        process.wait(START_TIMEOUT_S)
        assert process.stderr is not None
        assert process.stderr.read() == f"{128 + signal.SIGPIPE}\n"


def test_a_tunnel_that_runs(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    with Tunnel(tmp_path / "running", kubeconfig=run.kubeconfig) as tunnel:
        for flags in (["--port", str(tunnel.port)], ["--proxy", f"http://127.0.0.1:{tunnel.port}/"]):
            done = run(flags, "curl", "-sS", "http://echo.demo/hostname")
            assert done.stdout.startswith("echo-")
            assert done.stderr == f"kube-tunnel run: through the tunnel that runs at 127.0.0.1:{tunnel.port}.\n"


def test_every_kind_of_client(run: Runner) -> None:
    grpc = (
        "import grpc; from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as stubs\n"
        "with grpc.insecure_channel('echo.demo.svc.cluster.local:9090') as channel:\n"
        "    print(stubs.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=10).status)"
    )
    urllib = "import urllib.request as u; print(u.urlopen('http://echo.demo/hostname', timeout=10).status)"
    socks = 'curl -sS -m 10 -x "$all_proxy" http://echo.demo:80/hostname -o /dev/null -w "%{http_code}"'
    script = f'{sys.executable} -c "$1"; {sys.executable} -c "$2"; {socks}'
    done = run.own("sh", "-c", script, "sh", grpc, urllib)
    assert done.stdout == "1\n200\n200", done


def test_the_demo_leaves_nothing(run: Runner) -> None:
    (run.directory / "tmp").mkdir()
    done = run(["--demo"], "curl", "-sS", "http://echo.demo/hostname", TMPDIR=str(run.directory / "tmp"))
    assert done.stdout.startswith("echo-"), done
    run.wait_for_nothing_left()
    assert list((run.directory / "tmp").iterdir()) == []


def test_what_is_not_for_the_tunnel(run: Runner) -> None:
    flags = ("--kubeconfig", str(run.kubeconfig), "--direct", "a.com, .b.com")
    done = run(flags, "sh", "-c", 'echo "$no_proxy"; echo "$NO_PROXY"', no_proxy="c.com")
    assert done.stdout == "localhost,127.0.0.1,::1,a.com,.b.com,c.com\n" * 2


def test_trust(run: Runner) -> None:
    untrusting = run.own("curl", "-sS", "https://echo.demo/hostname")
    assert untrusting.returncode == 60  # curl: the peer's certificate cannot be verified
    trusting = run.own("curl", "-sS", "https://echo.demo/hostname", flags=("--trust-ca",))
    assert trusting.stdout.startswith("echo-"), trusting
    bundle = (run.directory / "state" / "kube-tunnel" / "ca-bundle.pem").read_text()
    assert bundle.startswith((run.directory / "confdir" / "mitmproxy-ca-cert.pem").read_text().rstrip())
    assert bundle.count("BEGIN CERTIFICATE") > 20  # the usual ones


# -- what goes wrong


@pytest.mark.parametrize("flags", [(), ("--isolate",)])
def test_commands_that_are_none(run: Runner, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "plain").write_text("text")
    (tmp_path / "broken").write_bytes(b"\x7fELF no")
    (tmp_path / "broken").chmod(0o755)
    missing = run.own("no-such-program", flags=flags)
    assert (missing.returncode, missing.stderr) == (127, "kube-tunnel run: no-such-program: command not found.\n")
    plain = run.own(str(tmp_path / "plain"), flags=flags)
    assert (plain.returncode, plain.stderr) == (126, f"kube-tunnel run: {tmp_path / 'plain'} is not executable.\n")
    if not flags or can_isolate():
        broken = run.own(str(tmp_path / "broken"), flags=flags)
        assert (broken.returncode, "Exec format error" in broken.stderr) == (126, True)


def test_no_tunnel_where_one_was_named(run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = run(["--port", str(port)], "true")
    assert (done.returncode, f"No tunnel answers at 127.0.0.1:{port}" in done.stderr) == (125, True)


def test_no_kubeconfig(run: Runner) -> None:
    done = run(["--kubeconfig", str(run.directory / "nope")], "echo", "not reached")
    assert (done.returncode, done.stdout) == (125, "")
    assert "does not exist" in done.stderr


def test_a_setting_that_is_wrong(run: Runner) -> None:
    (run.directory / "config.yaml").write_text("retry: {max: 99}")
    done = run.own("true", flags=("--config", str(run.directory / "config.yaml")))
    assert (done.returncode, "retry.max" in done.stderr) == (125, True), done


@pytest.mark.parametrize(
    "flags",
    [("--proxy", "nowhere", "x"), ("--proxy", "a:1", "--port", "2", "x"), ("--port", "2", "--isolate", "x"), ()],
)
def test_usage(run: Runner, flags: tuple[str, ...]) -> None:
    done = subprocess.run(run.command(*flags), capture_output=True, text=True, env=run.environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")


# -- signals and ends

REPORTS = """\
import os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # kept for sigwait, also one that comes before it
print("ready", flush=True)
got = [signal.sigwait([signal.SIGINT])]
got.append(signal.sigtimedwait([signal.SIGINT], 0.3))  # for a second one that is not to come
proxy = os.environ.get("http_proxy", "http://echo:80").removeprefix("http://").split(":")
socket.create_connection(proxy, 5).close()  # the tunnel is there as long as the command is
print(*got, flush=True)
sys.exit(42)
"""


@contextlib.contextmanager
def waiting(run: Runner, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A command that waits for signals, in a process group of its own as a shell's job is."""
    command = run.command("--kubeconfig", str(run.kubeconfig), *flags, "--", sys.executable, "-c", REPORTS)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run.environ, process_group=0
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(run.processes()) >= 1
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("flags", [(), pytest.param(("--isolate",), marks=isolation)])
def test_ctrl_c_is_the_commands_and_ends_both(run: Runner, flags: tuple[str, ...]) -> None:
    with waiting(run, *flags) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=15)
    assert (process.returncode, out) == (42, "2 None\n")
    run.wait_for_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("flags", [(), pytest.param(("--isolate",), marks=isolation)])
def test_a_killed_command_leaves_nothing(run: Runner, number: signal.Signals, flags: tuple[str, ...]) -> None:
    with waiting(run, *flags) as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
    assert process.returncode == -number
    run.wait_for_nothing_left()
    if address := re.search(r"127\.0\.0\.1:(\d+)", err):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address[1])), timeout=2)


def test_ctrl_c_while_it_starts(run: Runner) -> None:
    command = run.command("--kubeconfig", str(run.kubeconfig), "--", "echo", "not reached")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=run.environ, process_group=0
    ) as process:
        deadline = time.monotonic() + 20
        while len(run.processes()) < 2 and process.poll() is None:  # itself, and what is to become the tunnel
            assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=15)
    assert (process.returncode != 0, out) == (True, "")
    run.wait_for_nothing_left()


# -- a network of its own


@isolation
def test_names_resolve_and_every_port_works(run: Runner) -> None:
    banner = "import socket; print(socket.create_connection(('echo', 9001), 5).recv(3).decode())"
    echoed = (
        "import socket; s = socket.create_connection(('echo.demo.svc', 7), 5); s.send(b'hello');"
        " print(s.recv(5, socket.MSG_WAITALL).decode())"
    )
    done = run.isolated(
        "curl -sS http://echo/hostname && curl -sS http://echo.demo.svc.cluster.local./hostname && "
        "curl -sSk https://echo.demo/hostname && curl -sS http://echo.other/hostname && "
        f'{sys.executable} -c "{echoed}"; {sys.executable} -c "{banner}"; env | grep -ci _proxy'
    )
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"(echo-\w+-\w+ ){3}echo hello 220 0", " ".join(lines)), done
    assert done.stderr == (
        "kube-tunnel run: isolated: loopback and the cluster's Services alone can be reached, by name "
        "(context sim, namespace demo).\n"
    )


@isolation
def test_what_dns_says_inside(run: Runner) -> None:
    done = run.isolated(
        "dig +short echo.demo.svc.cluster.local; dig +tcp +short echo.demo.svc.cluster.local; "
        "dig +short -x $(dig +short echo.demo.svc.cluster.local); "
        "dig nope.demo.svc.cluster.local | grep -o NXDOMAIN; dig example.com. | grep -o REFUSED | head -1; "
        "getent ahostsv4 echo | head -1 | cut -d' ' -f1; dig +short echo-sts.demo.svc.cluster.local | wc -l"
    )
    udp, tcp, reverse, nothing, foreign, getent, pods = done.stdout.split()
    assert re.fullmatch(r"127\.\d+\.\d+\.\d+", udp)
    assert (tcp, getent, reverse) == (udp, udp, "echo.demo.svc.cluster.local.")
    assert (nothing, foreign, pods) == ("NXDOMAIN", "REFUSED", "2")


@isolation
def test_the_tunnels_own_pages_inside(run: Runner) -> None:
    """Its port is the command's own until the name is asked for."""
    taken = "import socket; socket.create_server(('', 80)).close(); print('free')"
    done = run.isolated(
        f'{sys.executable} -c "{taken}"; '
        "curl -sS http://kube-tunnel.internal/dashboard -o /dev/null -w '%{http_code} '; "
        "curl -sS http://kube-tunnel.internal/api/v1/services -H 'Origin: http://evil.example' -w ' %{http_code} '; "
        "dig +short -x $(dig +short kube-tunnel.internal)"
    )
    assert done.stdout.startswith("free\n200 "), done
    assert "ForeignOrigin" in done.stdout, done
    assert done.stdout.endswith(" 403 kube-tunnel.internal.\n"), done


@isolation
def test_nothing_else_is_there(run: Runner, kubeconfig: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        done = run.isolated(
            f"curl -sS -m 5 http://127.0.0.1:{port}/; echo $?; curl -sS -m 5 http://198.51.100.1/; echo $?; "
            "curl -sS -m 5 http://echo:81/; echo $?; curl -sS -m 5 http://nope.demo/; echo $?; "
            "tail -n +3 /proc/net/dev | cut -d: -f1; id -u; exit 3"
        )
        assert done.stdout.split() == ["7", "7", "7", "6", "lo", str(os.geteuid())]
    assert done.returncode == 3


@isolation
def test_a_pods_port_that_refuses(run: Runner) -> None:
    # demo/echo has 9999, and its pods do not listen there: HTTP is told why, anything else is cut
    raw = "import socket; s = socket.create_connection(('echo', 9999), 5); s.send(b'SSH-2.0-x'); print(s.recv(9))"
    done = run.isolated(f'curl -sS -m 10 http://echo:9999/; {sys.executable} -c "{raw}"')
    assert '"reason": "ConnectionRefused"' in done.stdout
    assert "ConnectionResetError" in done.stderr or done.stdout.endswith("b''\n"), done


@isolation
def test_grpc_by_name(run: Runner) -> None:
    client = (
        "import grpc; from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as stubs\n"
        "with grpc.insecure_channel('echo:9090') as channel:\n"
        "    print(stubs.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=10).status)"
    )
    done = run.own(sys.executable, "-c", client, flags=("--isolate",))
    assert done.stdout == "1\n", done


@isolation
def test_bytes_are_not_changed(run: Runner) -> None:
    done = run.isolated(
        "head -c 20000000 /dev/zero | curl -sS -T - http://echo/upload -X POST; "
        "curl -sS 'http://echo/bytes?n=20000000' | wc -c"
    )
    assert "20000000" in done.stdout
    assert done.stdout.split()[-1] == "20000000"


@isolation
def test_trust_inside(run: Runner) -> None:
    done = run.isolated("curl -sS https://echo.demo.svc.cluster.local/hostname", "--trust-ca")
    assert done.stdout.startswith("echo-"), done


@isolation
def test_the_files_outside_are_as_they_were(run: Runner) -> None:
    files = [Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf")]
    before = [file.read_bytes() for file in files if file.exists()]
    mounts = Path("/proc/self/mountinfo").read_text()
    done = run.isolated("cat /etc/resolv.conf; grep hosts: /etc/nsswitch.conf")
    assert done.stdout == (
        "nameserver 127.0.0.53\nsearch demo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        "hosts: files dns\n"
    )
    assert [file.read_bytes() for file in files if file.exists()] == before
    assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.cluster
@isolation
def test_a_real_cluster(tmp_path: Path) -> None:
    run = Runner(tmp_path, Path(os.environ["KUBECONFIG"]))
    by_proxy = run.own("curl", "-sS", "http://echo.demo/hostname")
    assert re.fullmatch(r"echo-\w+-\w+\n", by_proxy.stdout), by_proxy
    inside = run.isolated("curl -sS http://echo/hostname; curl -sS http://echo-sts-0.echo-sts:8080/hostname")
    assert re.fullmatch(r"echo-\w+-\w+\necho-sts-0\n", inside.stdout), inside
    run.wait_for_nothing_left()
