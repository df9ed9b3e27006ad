"""Whatever the ends of HTTP/2 streams do while they wait for each other: nobody is left waiting, nothing is kept."""

from __future__ import annotations

from h2.errors import ErrorCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proxy.http_playbook import H2Peer, Playbook, stream_bodies
from tests.proxy.test_http2_streams import GRPC, fill, leftovers, take, unread_bytes

STREAMS = (1, 3)
ENDS = ("client", "pod")
ACTS = ("fills", "takes", "ends", "resets")


class Exchange:
    """A client and a pod with some streams, of which the pod has sent the heads of its responses."""

    def __init__(self) -> None:
        self.book = Playbook(
            h2_client=True, h2_upstream=True, requestheaders=stream_bodies, responseheaders=stream_bodies
        )
        self.client = self.book.h2_client()
        for _ in STREAMS:
            self.client.request("/s/m", GRPC, method="POST", end=False)
        self.pod = self.book.h2_server()
        self.pod.flush()
        for stream_id in STREAMS:
            self.pod.respond(stream_id, GRPC, end=False)
        self.client.flush()

    def act(self, end: str, act: str, stream_id: int) -> None:
        """What this end cannot do, for the stream is over, it does not."""
        peer = self.client if end == "client" else self.pod
        if act == "takes":
            take(peer)
        elif self._may_send(peer, stream_id):
            if act == "fills":
                fill(peer, stream_id)
            elif act == "ends":
                peer.h2.end_stream(stream_id)
            else:
                peer.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
            peer.flush()

    def finish(self) -> None:
        """Both read all, and end what is open."""
        for _ in range(3):
            for end in ENDS:
                self.act(end, "takes", 0)
                for stream_id in STREAMS:
                    self.act(end, "ends", stream_id)

    def _may_send(self, peer: H2Peer, stream_id: int) -> bool:
        peer.flush()
        stream = peer.h2.streams.get(stream_id)
        return stream is not None and stream.state_machine.state.name in ("OPEN", "HALF_CLOSED_REMOTE")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(ENDS), st.sampled_from(ACTS), st.sampled_from(STREAMS)), max_size=12))
def test_nobody_is_left_waiting(acts: list[tuple[str, str, int]]) -> None:
    exchange = Exchange()
    for end, act, stream_id in acts:
        exchange.act(end, act, stream_id)
    exchange.finish()
    book = exchange.book
    assert not book.layer._throttled
    assert leftovers(book) == []
    for connection in (book.client, *book.upstreams):
        if connection in book.layer.connections:
            assert unread_bytes(book, connection) == 0
