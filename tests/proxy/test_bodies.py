"""Which bodies are held and which pass, and what is kept of those that pass."""

from __future__ import annotations

import pytest
from mitmproxy.test import tflow

from kubetunnel.proxy import bodies
from kubetunnel.proxy.bodies import MAX_COPY_BYTES, MAX_HELD_BYTES, BodyCopy


@pytest.mark.parametrize(
    ("headers", "streamed"),
    [
        ({"content-length": "0"}, False),
        ({"content-length": str(MAX_HELD_BYTES)}, False),
        ({"content-length": str(MAX_HELD_BYTES + 1)}, True),
        ({"transfer-encoding": "chunked"}, True),
        ({}, True),  # until the connection closes
    ],
)
def test_a_response_is_held_when_it_is_short(headers: dict[str, str], streamed: bool) -> None:
    flow = tflow.tflow(resp=True)
    assert flow.response
    flow.response.headers.clear()
    flow.response.headers.update(headers)
    bodies.stream_response(flow)
    assert bool(flow.response.stream) is streamed


@pytest.mark.parametrize(
    ("version", "headers", "streamed"),
    [
        ("HTTP/1.1", {}, False),  # no body
        ("HTTP/1.1", {"content-length": "5"}, False),
        ("HTTP/1.1", {"transfer-encoding": "chunked"}, True),
        ("HTTP/2.0", {}, True),  # gRPC: HTTP/2 needs no length
        ("HTTP/2.0", {"content-length": "5"}, False),
    ],
)
def test_a_request_is_held_when_it_is_short(version: str, headers: dict[str, str], streamed: bool) -> None:
    flow = tflow.tflow()
    flow.request.http_version = version
    flow.request.headers.clear()
    flow.request.headers.update(headers)
    bodies.stream_request(flow)
    assert bool(flow.request.stream) is streamed


def test_a_streamed_body_is_shown_when_all_of_it_was_kept() -> None:
    flow = tflow.tflow(resp=True)
    assert flow.response
    flow.response.stream = copy = BodyCopy()
    assert copy(b"ab") + copy(b"c") + copy(b"") == b"abc"
    bodies.keep_copy(flow.response)
    assert flow.response.raw_content == b"abc"


def test_what_is_kept_is_bounded_and_a_part_is_not_shown_as_the_whole() -> None:
    flow = tflow.tflow(resp=True)
    assert flow.response
    flow.response.data.content = None
    flow.response.stream = copy = BodyCopy()
    for _ in range(3):
        assert len(copy(bytes(MAX_COPY_BYTES // 2))) == MAX_COPY_BYTES // 2
    bodies.keep_copy(flow.response)
    assert copy.kept is None
    assert flow.response.raw_content is None
