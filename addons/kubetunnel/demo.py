"""The simulated cluster as a child process, for those who have none at hand (`kube_demo`).

A process of its own, so that nothing it does disturbs the proxy, and what is shown is what a real cluster would show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path

from kubetunnel.core.errors import ClusterUnreachable
from kubetunnel.progress import telling

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])  # importable for the child also where nothing is installed


class Demo:
    """Starts `python -m kubetunnel.sim` at the first use and ends it with the proxy."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kube-tunnel-demo-")
        self._kubeconfig = Path(self._directory.name) / "kubeconfig"
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    async def kubeconfig(self) -> str:
        """The path of its kubeconfig, once it answers. Raises ClusterUnreachable."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                with telling(logger, "The simulated cluster is starting."):
                    self._process = await self._start()
        return str(self._kubeconfig)

    async def _start(self) -> asyncio.subprocess.Process:
        path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
        process = await asyncio.create_subprocess_exec(
            # -P: a module of that name in the working directory is not ours
            sys.executable, "-P", "-m", "kubetunnel.sim", "--with-parent", "--kubeconfig", str(self._kubeconfig),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for us, who end it after our own connections
        )  # fmt: skip
        ready = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    ready = await process.stdout.readline() if process.stdout else b""
        finally:
            if not ready:  # the tunnel may be ended before it is there, too
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if not ready:
            status = process.returncode
            raise ClusterUnreachable(f"The simulated cluster did not start (exit status {status}).")
        logger.info("The simulated cluster runs, its kubeconfig is %s.", self._kubeconfig)
        return process

    async def aclose(self) -> None:
        """Ends the process and removes its files."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._directory.cleanup()
