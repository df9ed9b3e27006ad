"""Just enough of Kubernetes' protobuf to read a posted review: kubectl sends `auth can-i` in it, whatever it may get.

The envelope is "k8s\\0" and a runtime.Unknown (apimachinery's pkg/runtime/serializer/protobuf); field numbers are those
of k8s.io/api's authorization/v1/generated.proto. Only strings and nested messages are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

from kubetunnel.sim.pods import Json

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}  # wire types of fixed64 and fixed32

_RESOURCE_FIELDS = {1: "namespace", 2: "verb", 3: "group", 4: "version", 5: "resource", 6: "subresource", 7: "name"}
_PATH_FIELDS = {1: "path", 2: "verb"}


def decode_review(data: bytes) -> Json:
    """A SelfSubjectAccessReview or SelfSubjectRulesReview (or SelfSubjectReview) as JSON has it; raises ValueError."""
    if not data.startswith(_MAGIC):
        raise ValueError("no Kubernetes protobuf")
    envelope = dict(_messages(data[len(_MAGIC) :]))
    kind = _strings(envelope.get(1, b""), {1: "apiVersion", 2: "kind"})
    spec = dict(_messages(dict(_messages(envelope.get(2, b""))).get(2, b"")))
    if kind.get("kind") == "SelfSubjectRulesReview":
        return kind | {"spec": {"namespace": spec.get(1, b"").decode()}}
    review: Json = {}
    if 1 in spec:
        review["resourceAttributes"] = _strings(spec[1], _RESOURCE_FIELDS)
    if 2 in spec:
        review["nonResourceAttributes"] = _strings(spec[2], _PATH_FIELDS)
    return kind | {"spec": review}


def _strings(data: bytes, names: dict[int, str]) -> Json:
    return {names[number]: value.decode() for number, value in _messages(data) if number in names}


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message, by field number; others are stepped over."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, position = _varint(data, position)
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
        elif wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(data):
            raise ValueError("the message is cut short")
        if wire_type == _LENGTH_DELIMITED:
            yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("the message is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
