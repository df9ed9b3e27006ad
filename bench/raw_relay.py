"""`python -m bench.raw_relay`: raw TCP through SOCKS5 from a pod that sends for ever, at full speed.

mitmproxy's TCP layer keeps every packet. Here the memory at the end is to be that of the beginning, whatever passed.
"""

from __future__ import annotations

import argparse
import time

from bench.processes import MIB, cpu_s, resident_bytes, tunnel_to_simulated_cluster
from tests.proxy.loopback import socks5

HOST, PORT = "echo.demo.svc.cluster.local", 9004
GIB = 1 << 30
LIMIT_S = 170.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0, help="how much; less where it takes longer than 170 s")
    wanted_bytes = int(parser.parse_args().gib * GIB)
    buffer = bytearray(MIB)
    with tunnel_to_simulated_cluster() as tunnel, socks5(tunnel.port, HOST, PORT) as connection:
        pid = tunnel.process.pid
        passed = connection.recv_into(buffer)
        resident, before_s, started_s = [resident_bytes(pid)], cpu_s(pid), time.monotonic()
        while passed < wanted_bytes and time.monotonic() - started_s < LIMIT_S:
            passed += connection.recv_into(buffer)
            if len(resident) == 1 and passed > wanted_bytes / 2:
                resident.append(resident_bytes(pid))
        elapsed_s, used_s = time.monotonic() - started_s, cpu_s(pid) - before_s
        resident.append(resident_bytes(pid))
    print(f"Raw TCP from a pod through SOCKS5: {passed / GIB:.1f} GiB of {wanted_bytes / GIB:.1f}")
    print(f"  speed: {passed / elapsed_s / 1e6:.0f} MB/s")
    print(f"  the tunnel's CPU: {used_s / (passed / GIB):.2f} s a GiB")
    sizes = ", ".join(f"{size / MIB:.0f} MiB" for size in resident)
    print(f"  the tunnel's memory at the beginning, in the middle (where it got there) and at the end: {sizes}")


if __name__ == "__main__":
    main()
