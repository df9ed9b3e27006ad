"""What a Content-Type says (RFC 9110 section 8.3.1)."""

from __future__ import annotations


def media_type(content_type: str) -> str:
    """Without its parameters, in lower case: `application/grpc+proto`."""
    return content_type.partition(";")[0].strip().lower()


def is_grpc_type(content_type: str) -> bool:
    """Whether a message of this type is gRPC's, in HTTP/2 (gRPC over HTTP/2, Content-Type); grpc-web is not."""
    return media_type(content_type).partition("+")[0] == "application/grpc"
