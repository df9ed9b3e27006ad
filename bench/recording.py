"""What recording a request for the metrics costs: `python -m bench.recording`."""

from __future__ import annotations

import gc
import random
import time

from mitmproxy.test import tflow

from kubetunnel.core.settings import Settings
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.recording import Recording
from kubetunnel.observe.traffic import Traffic
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

FLOWS = 1000
ROUNDS = 50
SERVICES = 200


def main() -> None:
    settings = Settings()
    router = Router(settings, Clusters(settings))
    recording = Recording(Traffic(), EventLog(), router, Upstreams(router))
    rng = random.Random(1)  # noqa: S311 - the same flows each time
    flows = []
    for _ in range(FLOWS):
        flow = tflow.tflow(resp=True)
        flow.live = True
        name = f"service-{rng.randrange(SERVICES)}.shop.svc.cluster.local"
        flow.metadata["kube"] = {"service": name, "port": 80, "pod": "api-0", "namespace": "shop"}
        flows.append(flow)
    costs_us = []
    gc.disable()
    for _ in range(ROUNDS):
        started = time.process_time()
        for flow in flows:
            recording.response(flow)
        costs_us.append((time.process_time() - started) / FLOWS * 1e6)
    costs_us.sort()
    print(f"recording a request: {costs_us[len(costs_us) // 2]:.1f} us (median), {costs_us[0]:.1f} us (least)")


if __name__ == "__main__":
    main()
