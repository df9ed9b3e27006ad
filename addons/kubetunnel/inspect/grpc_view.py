"""The content view "gRPC Kubernetes": the messages of a body with the names of their fields.

Where a method's descriptors are not known the view steps back, and mitmproxy's own shows field numbers. The name is
made of letters and a space: mitmweb's addresses take nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mitmproxy import http
from mitmproxy.contentviews import Contentview, Metadata, SyntaxHighlight

from kubetunnel.inspect.grpc_descriptors import GrpcMethod
from kubetunnel.inspect.grpc_messages import GrpcMessage, has_protobuf_messages, parse_messages
from kubetunnel.inspect.reflected import Descriptors

MAX_SHOWN_MESSAGES = 1000
_PRIORITY = 2.0  # mitmproxy's own has 1


class GrpcView(Contentview):
    """Decodes with what `descriptors` knows."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors

    @property
    def name(self) -> str:
        return "gRPC Kubernetes"

    @property
    def syntax_highlight(self) -> SyntaxHighlight:
        return "yaml"

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        flow = _call(metadata)
        return _PRIORITY if data and flow and self._descriptors.method(flow) else -1

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        """YAML documents, one a message; a sentence where there are none. Raises ValueError: the framing is broken."""
        flow = _call(metadata)
        if flow is None:
            return "# This is no gRPC call."
        method = self._descriptors.method(flow)
        if method is None:
            return f"# {self._descriptors.why_unknown(flow)}"
        message = metadata.http_message or flow.response or flow.request
        descriptor = method.input_type if message is flow.request else method.output_type
        encoding = message.headers.get("grpc-encoding", "identity")
        return "\n".join(_documents(data, encoding, method, descriptor))


def _call(metadata: Metadata) -> http.HTTPFlow | None:
    flow = metadata.flow
    if isinstance(flow, http.HTTPFlow) and has_protobuf_messages(flow.request.headers.get("content-type", "")):
        return flow
    return None


def _documents(data: bytes, encoding: str, method: GrpcMethod, descriptor: Any) -> Iterator[str]:
    for number, message in enumerate(parse_messages(data, encoding), 1):
        if number > MAX_SHOWN_MESSAGES:
            yield f"# … and more: the first {MAX_SHOWN_MESSAGES} messages are shown"
            return
        if number > 1:
            yield "---"
        if message.trailers:
            yield "# trailers\n" + message.data.decode("utf-8", "backslashreplace").strip()
        elif message.missing_bytes:
            yield f"# message {number} is cut: {message.missing_bytes} bytes are missing"
        else:
            yield _heading(number, message, descriptor)
            yield _text(message.data, method, descriptor)


def _heading(number: int, message: GrpcMessage, descriptor: Any) -> str:
    compressed = ", compressed" if message.compressed else ""
    return f"# message {number}: {descriptor.full_name}, {len(message.data)} bytes{compressed}"


def _text(data: bytes, method: GrpcMethod, descriptor: Any) -> str:
    from google.protobuf import json_format, message_factory
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    message = message_factory.GetMessageClass(descriptor)()
    try:
        message.ParseFromString(data)
        decoded = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=method.pool)
    except (DecodeError, json_format.Error, TypeError, UnicodeDecodeError) as e:
        return f"# not a {descriptor.full_name}: {e}\n{json.dumps(data.hex())}"
    text = json.dumps(decoded, indent=2, ensure_ascii=False)
    unknown = sorted({field.field_number for field in UnknownFieldSet(message)})
    return f"{text}\n# fields without a name: {', '.join(map(str, unknown))}" if unknown else text
