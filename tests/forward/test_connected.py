"""Whether a pod's port has taken a connection: what a stream's `probably_connected` tells, over all three protocols."""

from __future__ import annotations

import asyncio

import pytest

from kubetunnel.core.errors import ConnectionRefused
from kubetunnel.forward import stream
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.pool import PortForwards
from tests.forward.apiserver import ECHO, GREETS, REFUSED, SPDY, TUNNEL, V4, Access, ApiServer
from tests.forward.test_streams import PROTOCOLS, Recorder, only, to

FOR_EVER_S = 3600.0


@PROTOCOLS
async def test_a_refusal_is_told_first(
    api: ApiServer, access: Access, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the sign finds the failure when it comes: not the time's end brought it."""
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", FOR_EVER_S)
    only(api, protocol)
    forwards = PortForwards(access)
    transport, protocol_ = await forwards.open(to(REFUSED), Recorder)
    await transport.get_extra_info("probably_connected")
    assert protocol_.lost.done()
    failure = protocol_.lost.result()
    assert isinstance(failure, StreamFailed)
    assert isinstance(failure.error, ConnectionRefused)
    assert transport.get_extra_info("probably_connected").done()
    await forwards.aclose()


@PROTOCOLS
async def test_the_pods_first_byte_tells(
    api: ApiServer, access: Access, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", FOR_EVER_S)
    only(api, protocol)
    forwards = PortForwards(access)
    transport, protocol_ = await forwards.open(to(GREETS), Recorder)
    await transport.get_extra_info("probably_connected")
    assert not protocol_.lost.done()
    transport.abort()
    await forwards.aclose()


@PROTOCOLS
async def test_silence_after_the_runtime_took_the_stream_tells(api: ApiServer, access: Access, protocol: str) -> None:
    only(api, protocol)
    forwards = PortForwards(access)
    transport, protocol_ = await forwards.open(to(ECHO), Recorder)
    await transport.get_extra_info("probably_connected")
    assert not protocol_.lost.done()
    transport.write(b"whole")
    while protocol_.received < len(b"whole"):  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0)
    transport.abort()
    await forwards.aclose()


@pytest.mark.parametrize("protocol", [TUNNEL, SPDY])
async def test_a_runtime_that_has_not_taken_the_stream_is_waited_for(
    api: ApiServer, access: Access, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", 0.0)
    only(api, protocol)
    forwards = PortForwards(access, spares=0)
    transport, _ = await forwards.open(to(ECHO), Recorder)
    session = api.sessions[-1]
    session.released.clear()
    sign = transport.get_extra_info("probably_connected")
    while not session.ports:  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0)
    assert not sign.done()
    session.released.set()
    await sign
    await forwards.aclose()


@pytest.mark.parametrize("protocol", [TUNNEL, SPDY, V4])
async def test_an_end_by_us_ends_the_wait(
    api: ApiServer, access: Access, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REFUSAL_GRACE_S", FOR_EVER_S)
    only(api, protocol)
    forwards = PortForwards(access)
    transport, _ = await forwards.open(to(ECHO), Recorder)
    sign = transport.get_extra_info("probably_connected")
    transport.close()
    await sign
    await forwards.aclose()
