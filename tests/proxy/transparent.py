"""`--mode transparent` inside a network namespace of its own; run by test_modes with `unshare --net`, as root."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import Tunnel, curl

SOMEBODY = "10.8.0.7"  # nobody has it: what is sent to its port 80 is the tunnel's
US = "10.8.0.1"
TUNNEL_PORT = 18080
RULES = f"""
    table ip transparent {{
        chain output {{
            type nat hook output priority -100
            ip daddr {SOMEBODY} tcp dport 80 redirect to :{TUNNEL_PORT}
        }}
    }}"""


async def main(directory: Path) -> None:
    async with SimCluster() as sim:
        kubeconfig = sim.kubeconfig(directory / "kubeconfig")
        options = ["--mode", "transparent", "--listen-host", "127.0.0.1", "-p", str(TUNNEL_PORT)]
        tunnel = await asyncio.to_thread(Tunnel, directory, kubeconfig=kubeconfig, options=options)
        try:
            for name in ("pair.demo.svc.cluster.local", "nothere.demo.svc.cluster.local"):
                found = ("--resolve", f"{name}:80:{SOMEBODY}", f"http://{name}/hostname")
                answer = await asyncio.to_thread(curl, *found, timeout_s=10)
                print(answer.text if answer.status == 200 else f"{answer.status} {answer.reason}\n", end="")
        finally:
            await asyncio.to_thread(tunnel.close)


def own_network() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{US}/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "route", "add", f"{SOMEBODY}/32", "dev", "lo", "src", US], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)


if __name__ == "__main__":
    own_network()
    asyncio.run(main(Path(sys.argv[1])))
