"""Loaded beside the addon by a test: makes routing fail in a way that nobody foresaw."""

from __future__ import annotations

from typing import Any

from kubetunnel.core.names import Name
from kubetunnel.core.ports import PortRequest
from kubetunnel.proxy.routing import Destination, Router

_find = Router.find


async def find(self: Router, name: Name, request: PortRequest, **more: Any) -> Destination:
    if "pair" in str(name):
        raise ZeroDivisionError("a defect")
    return await _find(self, name, request, **more)


async def open_upstream(self: Router, *_: Any, **__: Any) -> None:
    raise ZeroDivisionError("another defect")


Router.find = find  # type: ignore[method-assign]
Router.open = open_upstream  # type: ignore[assignment,method-assign]
