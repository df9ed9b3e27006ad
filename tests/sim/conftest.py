from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.sim.api import Api


@pytest.fixture
async def cluster() -> AsyncIterator[SimCluster]:
    async with SimCluster(seed=1) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: SimCluster) -> AsyncIterator[Api]:
    """The API as admin."""
    async with Api(cluster, cluster.token()) as api:
        yield api
