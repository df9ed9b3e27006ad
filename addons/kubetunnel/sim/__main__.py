"""`python -m kubetunnel.sim`: the simulated cluster in the foreground, for a demo or for tests in other processes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kubetunnel.sim.cluster import SimCluster

PARENT_CHECK_INTERVAL_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="kube-tunnel-sim", description="A small simulated Kubernetes cluster.")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="where to write the kubeconfig")
    parser.add_argument("--user", default="admin", choices=("admin", "limited"), help="whose kubeconfig it is")
    parser.add_argument("--port", type=int, default=0, help="the API server's port; a free one by default")
    parser.add_argument("--with-parent", action="store_true", help="end when the parent process goes away")
    parser.add_argument("--verbose", action="store_true", help="log what happens in the cluster")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    with contextlib.ExitStack() as stack:
        path: Path | None = options.kubeconfig
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kube-tunnel-sim-")), "kubeconfig")
        try:
            asyncio.run(_serve(path.resolve(), options))
        except OSError as e:
            parser.exit(1, f"kube-tunnel-sim: {e}\n")
    return 0


async def _serve(path: Path, options: argparse.Namespace) -> None:
    parent = os.getppid()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with SimCluster(port=options.port) as cluster:
        cluster.kubeconfig(path, options.user)
        print(f"export KUBECONFIG={shlex.quote(str(path))}", flush=True)
        while not stop.is_set() and not (options.with_parent and os.getppid() != parent):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PARENT_CHECK_INTERVAL_S if options.with_parent else None):
                    await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
