"""The tunnel with virtual IPs for the tests, which stand in for DNS and for the machine's set-up.

`VIRTUAL` in the environment is JSON: `ranges` and `path` as those of VirtualAddresses; `shared`: proxy addresses;
`loopback`: names that listeners are opened for, each then logged with its address.
"""

from __future__ import annotations

import json
import logging
import os
from ipaddress import ip_address, ip_network
from pathlib import Path

from kubetunnel.app import KubeTunnel
from kubetunnel.core.names import PodName, ServiceName, parse_name
from kubetunnel.dns import ClusterNames
from kubetunnel.naming import Naming
from kubetunnel.naming_plan import NamingPlan
from kubetunnel.proxy.loopback import LoopbackListeners
from kubetunnel.proxy.mode import serve_connection
from kubetunnel.virtual_addresses import VirtualAddresses

logger = logging.getLogger(__name__)

VIRTUAL = json.loads(os.environ["VIRTUAL"])


class AskedNaming(Naming):
    """Makes what the environment says, once, whatever the plan is."""

    asked: ClusterNames | None = None

    async def apply(self, plan: NamingPlan) -> None:
        if self.asked is not None:
            return
        self._listeners = LoopbackListeners(serve_connection)
        shared = [ip_address(address) for address in VIRTUAL["shared"]]
        ranges = [ip_network(each) for each in VIRTUAL["ranges"]]
        addresses = VirtualAddresses(ranges, path=Path(VIRTUAL["path"]), reserved=shared)
        self._virtual.configure(addresses, shared=shared, service_port=self._listeners.service_port)
        self.asked = names = ClusterNames(self._clusters, addresses, listeners=self._listeners)
        for text in VIRTUAL["loopback"]:
            name = parse_name(text, zones=names.zones, default_namespace="")
            assert isinstance(name, ServiceName | PodName)
            state = await names.service(name.service if isinstance(name, PodName) else name)
            logger.info("%s is at %s.", text, await names.address_of(name, state))
        logger.info("Names are ready.")


class VirtualTunnel(KubeTunnel):
    """The addon, but for its naming."""

    def __init__(self) -> None:
        super().__init__()
        self.naming = AskedNaming(self.clusters, self.naming._virtual)


addons = [VirtualTunnel()]
