"""What a Content-Type says."""

from __future__ import annotations

import pytest

from kubetunnel.core.media_types import is_grpc_type, media_type


@pytest.mark.parametrize("text", ["application/json", "Application/JSON ; charset=utf-8", " application/json;"])
def test_a_media_type_is_without_parameters_and_in_lower_case(text: str) -> None:
    assert media_type(text) == "application/json"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+json", True),
        ("Application/GRPC; charset=utf-8", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_grpc(content_type: str, expected: bool) -> None:
    assert is_grpc_type(content_type) is expected
