"""What the benchmarks start and measure: the simulated cluster and a tunnel, each its own process. Linux: /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.tunnel import Tunnel

MIB = 1 << 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def tunnel_to_simulated_cluster(options: Sequence[str] = ()) -> Iterator[Tunnel]:
    """A mitmdump with the addon that prints no flows, and a cluster behind it."""
    with tempfile.TemporaryDirectory(prefix="kube-tunnel-bench-") as directory, contextlib.ExitStack() as stack:
        kubeconfig = Path(directory, "kubeconfig")
        command = [sys.executable, "-m", "kubetunnel.sim", "--with-parent", "--kubeconfig", str(kubeconfig)]
        cluster = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))  # noqa: S603 - ours
        stack.callback(cluster.terminate)
        if cluster.stdout is None or not cluster.stdout.readline():
            raise RuntimeError(f"the simulated cluster did not start (exit status {cluster.wait()})")
        tunnel = Tunnel(Path(directory), kubeconfig=kubeconfig, options=["--set", "flow_detail=0", *options])
        yield stack.enter_context(tunnel)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM (proc_pid_status(5), VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} is gone")


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
