"""A tunnel for the time of one command: mitmproxy with the addon in this process, silent, on a free port."""

# mypy: disallow-untyped-calls=False, implicit-reexport
# mitmproxy is typed in part

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import exceptions, hooks, options
from mitmproxy.tools.dump import DumpMaster

from kubetunnel.app import KubeTunnel
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.mode import KubeMode

HOST = "127.0.0.1"
END_TIMEOUT_S = 8.0  # the simulated cluster is given 5 s
_ENDING = "ending"  # the task of `KubeTunnel.done`


class TunnelFailed(Exception):  # noqa: N818 - it says what happened
    """The tunnel could not start; the text says why."""


@dataclass(frozen=True, slots=True)
class OwnTunnel:
    """A tunnel that runs. `port` is of HOST."""

    port: int
    clusters: Clusters


class _Started:
    """The addon that tells when all others run."""

    name = "kubetunnel_started"

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def running(self) -> None:
        self.event.set()


class _Errors(logging.Handler):
    """Keeps what is logged as an error while mitmproxy starts: that is how it says why it does not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.asynccontextmanager
async def own_tunnel(assignments: Sequence[str], confdir: Path) -> AsyncIterator[OwnTunnel]:
    """A tunnel for the time of the block.

    Args:
        assignments: options of mitmproxy, `kube_context=staging`.
        confdir: mitmproxy's, where its CA is.

    Raises:
        TunnelFailed
    """
    errors, started, addon = _Errors(), _Started(), KubeTunnel()
    logging.getLogger().addHandler(errors)
    opts = options.Options(confdir=str(confdir), mode=[f"{KubeMode.type_name}@{HOST}:0"])
    master = DumpMaster(opts, with_termlog=False, with_dumper=False)
    try:
        opts.set(*assignments, defer=True)
        _add(master, addon)
        master.addons.add(started)
    except (exceptions.OptionsError, exceptions.AddonManagerError) as e:
        raise TunnelFailed(str(e)) from e
    running = asyncio.create_task(_run(master), name="tunnel")
    waiting = asyncio.create_task(started.event.wait(), name="tunnel starts")
    try:
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not started.event.is_set() or errors.messages:
            raise TunnelFailed("; ".join(errors.messages) or "The tunnel ended at once.")
        logging.getLogger().removeHandler(errors)
        port = next(
            port for instance in master.addons.get("proxyserver").servers for _, port, *_ in instance.listen_addrs
        )
        yield OwnTunnel(port, addon.clusters)
    finally:
        logging.getLogger().removeHandler(errors)
        waiting.cancel()
        master.shutdown()
        await running
        # the addon's `done` cannot wait for what takes time, and this process ends at once
        ending = [task for task in asyncio.all_tasks() if task.get_name() == _ENDING]
        if ending:
            await asyncio.wait(ending, timeout=END_TIMEOUT_S)


def _add(master: DumpMaster, addon: KubeTunnel) -> None:
    """As mitmproxy's script loader does, and in its place: some addons behind it decide what nobody has before."""
    place = master.addons.chain.index(master.addons.get("scriptloader"))
    master.addons.chain.insert(place, master.addons.register(addon))
    # what was set before has had nobody to tell
    master.addons.invoke_addon_sync(addon, hooks.ConfigureHook(set(master.options.keys())))


async def _run(master: DumpMaster) -> None:
    # of its ErrorCheck, which saw what `_Errors` has; outside of a task it would end the event loop
    with contextlib.suppress(SystemExit):
        await master.run()
