"""What mitmweb keeps is bounded, in flows and in bytes, the first finished first: mitmproxy's own View, driven."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from mitmproxy import flow as flows
from mitmproxy import http, tcp
from mitmproxy.addons.view import View
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketData

from kubetunnel.inspect.kept_flows import FLOW_BYTES, KeptFlows


@pytest.fixture
def view() -> Iterator[View]:
    view = View()
    with taddons.context(view):
        yield view


def kept(view: View, *, flows: int = 1000, size: int = 1 << 30) -> KeptFlows:
    found = KeptFlows(keep_flows=flows, keep_bytes=size)
    found.watch(view)
    return found


def begin(view: View, body: bytes = b"") -> http.HTTPFlow:
    flow: http.HTTPFlow = tflow.tflow(resp=True)
    flow.live = True
    assert flow.response
    flow.request.content, flow.response.content = b"", body
    view.requestheaders(flow)
    return flow


def finish(kept: KeptFlows, flow: http.HTTPFlow) -> None:
    """In mitmproxy's order: the hook, then it lives no more."""
    kept.response(flow)
    flow.live = False


def exchange(view: View, kept: KeptFlows, body: bytes = b"") -> http.HTTPFlow:
    flow = begin(view, body)
    finish(kept, flow)
    return flow


def there(view: View) -> list[flows.Flow]:
    found: list[flows.Flow] = view.resolve("@all")
    return found


def test_the_oldest_go_first(view: View) -> None:
    keeper = kept(view, flows=3)
    made = [exchange(view, keeper) for _ in range(5)]
    assert there(view) == made[2:]
    assert list(view) == made[2:]
    assert len(keeper) == 3


def test_a_live_one_never_goes(view: View) -> None:
    keeper = kept(view, flows=2)
    live = begin(view)
    made = [exchange(view, keeper) for _ in range(4)]
    assert there(view) == [live, *made[2:]]
    finish(keeper, live)
    exchange(view, keeper)
    assert live in there(view), "it has only just finished"


def test_one_that_waits_to_be_resumed_does_not_go(view: View) -> None:
    keeper = kept(view, flows=1)
    waiting = begin(view)
    keeper.response(waiting)
    waiting.live = False
    waiting.intercepted = True
    for _ in range(3):
        last = exchange(view, keeper)
    assert there(view) == [waiting, last]


def test_by_bytes(view: View) -> None:
    keeper = kept(view, size=3 * FLOW_BYTES + 2000)
    made = [exchange(view, keeper, b"x" * 1000) for _ in range(5)]
    assert there(view) == made[3:]
    large = exchange(view, keeper, b"x" * 100_000)
    assert there(view) == [large], "it was live at its own end"
    last = exchange(view, keeper)
    assert there(view) == [last]
    assert keeper.bytes == FLOW_BYTES


def test_messages_of_raw_connections_and_websockets_count(view: View) -> None:
    keeper = kept(view)
    raw: tcp.TCPFlow = tflow.ttcpflow()
    raw.live = True
    view.tcp_start(raw)
    keeper.tcp_end(raw)
    socket: http.HTTPFlow = tflow.twebsocketflow()
    socket.live = True
    assert isinstance(socket.websocket, WebSocketData)
    view.requestheaders(socket)
    keeper.response(socket)
    assert len(keeper) == 1, "it goes on"
    keeper.websocket_end(socket)
    bodies = sum(len(message.content) for message in (*raw.messages, *socket.websocket.messages))
    bodies += len(socket.request.raw_content or b"") + len((socket.response and socket.response.raw_content) or b"")
    assert keeper.bytes == 2 * FLOW_BYTES + bodies


def test_a_replay_makes_it_the_last_one(view: View) -> None:
    keeper = kept(view, flows=2)
    first, second = exchange(view, keeper), exchange(view, keeper)
    first.live = True
    finish(keeper, first)
    third = exchange(view, keeper)
    assert there(view) == [first, third]
    assert second not in view
    assert len(keeper) == 2


def test_what_was_read_from_a_file_stays(view: View) -> None:
    keeper = kept(view, flows=1)
    read: http.HTTPFlow = tflow.tflow(resp=True)
    read.live = False
    view.requestheaders(read)
    keeper.response(read)
    for _ in range(3):
        last = exchange(view, keeper)
    assert there(view) == [read, last]


def test_what_the_user_removes_counts_no_more(view: View) -> None:
    keeper = kept(view, flows=3)
    made = [exchange(view, keeper, b"x" * 10) for _ in range(3)]
    view.remove([made[1]])
    assert (len(keeper), keeper.bytes) == (2, 2 * (FLOW_BYTES + 10))
    view.clear()
    assert (len(keeper), keeper.bytes) == (0, 0)


def test_other_limits_hold_at_once(view: View) -> None:
    keeper = kept(view)
    made = [exchange(view, keeper) for _ in range(5)]
    keeper.configure_limits(keep_flows=2, keep_bytes=1 << 30)
    assert there(view) == made[3:]


def test_without_a_view_nothing_is_remembered() -> None:
    keeper = KeptFlows(keep_flows=1)
    keeper.watch(None)
    flow: http.HTTPFlow = tflow.tflow(resp=True)
    flow.live = True
    keeper.response(flow)
    assert len(keeper) == 0


def test_memory_stays_where_it_is(view: View) -> None:
    keeper = kept(view, flows=500)
    tracemalloc.start()
    try:
        for _ in range(700):
            exchange(view, keeper, bytes(4000))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2000):
            exchange(view, keeper, bytes(4000))
        gc.collect()  # flows are parts of cycles
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(there(view)) == 500
    assert after - before < 200 * 4000, "two thousand more bodies, of which none may stay"
