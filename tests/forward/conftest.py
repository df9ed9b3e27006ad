from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kubetunnel.forward.pool import PortForwards
from tests.forward.apiserver import Access, ApiServer


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server:
        yield server


@pytest.fixture
def access(api: ApiServer) -> Access:
    return Access(api)


@pytest.fixture
async def forwards(access: Access) -> AsyncIterator[PortForwards]:
    pool = PortForwards(access, answer_timeout_s=2.0)
    yield pool
    await pool.aclose()
