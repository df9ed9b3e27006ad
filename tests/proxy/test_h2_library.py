"""The h2 library's connection, as far as it is ours."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, WindowUpdateFrame

from kubetunnel.proxy.http.h2_library import KubeH2Connection

FRAMES = 200
FRAME_BYTES = 10_000


def frames_of(data: bytes) -> list[Frame]:
    frames = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data)[:9])
        frame.parse_body(memoryview(data)[9 : 9 + length])
        frames.append(frame)
        data = data[9 + length :]
    return frames


def test_what_was_under_way_on_a_stream_that_we_reset_is_dropped_and_gives_its_window_back() -> None:
    """The library answers each frame with a RST_STREAM, for which some servers end the connection."""
    client = KubeH2Connection(H2Configuration())
    client.initiate_connection()
    client.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":authority", "api"), (":path", "/")])
    client.reset_stream(1, ErrorCodes.CANCEL)
    client.data_to_send()
    client._inbound_flow_control_window_manager.max_window_size = FRAMES * FRAME_BYTES
    client._inbound_flow_control_window_manager.current_window_size = FRAMES * FRAME_BYTES
    for _ in range(FRAMES):
        assert client.receive_data(DataFrame(1, bytes(FRAME_BYTES)).serialize()) == []
    answers = frames_of(client.data_to_send())
    assert {type(frame) for frame in answers} == {WindowUpdateFrame}
    assert sum(frame.window_increment for frame in answers) >= FRAMES * FRAME_BYTES // 2
