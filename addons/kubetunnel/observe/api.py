"""`/api/v1/…`: what the dashboard uses. openapi.json describes it, and a test holds the two together."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from mitmproxy import http

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.media_types import media_type
from kubetunnel.local_ports import LocalPorts
from kubetunnel.observe.documents import Documents
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.known_services import REFRESH_TIMEOUT_S, KnownServices
from kubetunnel.observe.replies import Refused, json_reply
from kubetunnel.observe.sources import Sessions
from kubetunnel.observe.traffic import ServiceKey

logger = logging.getLogger(__name__)

_AT_A_TIME = 16

type Handler = Callable[[http.Request, list[str]], Awaitable[http.Response]]


class Api:
    """Answers requests below /api/v1/. The event stream is not here."""

    def __init__(
        self,
        clusters: Sessions,
        documents: Documents,
        known: KnownServices,
        local_ports: LocalPorts,
        checks: HealthChecks,
        description: dict[str, Any],
    ) -> None:
        self._clusters = clusters
        self._documents = documents
        self._known = known
        self._local_ports = local_ports
        self._checks = checks
        self._description = description
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", "openapi.json"): self._get_description,
            ("GET", "tunnel"): self._get(documents.tunnel),
            ("GET", "services"): self._get(lambda: {"services": documents.services()}),
            ("GET", "services/*/*/*"): self._get_service,
            ("GET", "forwards"): self._get(lambda: {"forwards": documents.forwards()}),
            ("GET", "listeners"): self._get(lambda: {"listeners": documents.listeners()}),
            ("GET", "dns"): self._get(lambda: {"dns": documents.dns()}),
            ("GET", "flows"): self._get(documents.flows),
            ("POST", "forwards/close"): self._close_forward,
            ("POST", "listeners"): self._open_listener,
            ("DELETE", "listeners/*"): self._close_listener,
            ("POST", "refresh"): self._refresh,
        }

    def find(self, method: str, segments: list[str]) -> tuple[Handler | None, list[str]]:
        """The handler, None where there is none for this method; and the methods that go (none: no such path)."""
        methods: dict[str, Handler] = {}
        for (each, pattern), handler in self._handlers.items():
            if _fits(pattern.split("/"), segments):
                methods[each] = handler
        if "GET" in methods:
            methods["HEAD"] = methods["GET"]
        return methods.get(method), sorted(methods)

    def paths(self) -> list[str]:
        """All that can be read, as they are written in a list for people."""
        return sorted({f"/api/v1/{pattern}" for method, pattern in self._handlers if method == "GET"})

    def _get(self, document: Callable[[], Any]) -> Handler:
        async def answer(request: http.Request, segments: list[str]) -> http.Response:
            return json_reply(document())

        return answer

    async def _get_description(self, request: http.Request, segments: list[str]) -> http.Response:
        return json_reply(self._description)

    async def _get_service(self, request: http.Request, segments: list[str]) -> http.Response:
        key = ServiceKey(*segments[1:4])
        document = self._documents.service(key)
        if document is None:
            raise Refused(
                HTTPStatus.NOT_FOUND, f"{key.service} in {key.namespace}, {key.zone}, is not in use.", reason="NotInUse"
            )
        return json_reply(document)

    async def _close_forward(self, request: http.Request, segments: list[str]) -> http.Response:
        wanted = _body(request, {"namespace": str, "pod": str}, {"zone": str})
        namespace, pod = wanted["namespace"], wanted["pod"]
        closed = []
        for zone, session in self._clusters.sessions().items():
            if wanted.get("zone") in (None, zone):
                found = [f for f in session.forwards.forwards() if (f.namespace, f.pod) == (namespace, pod)]
                if found:
                    of_context = session.access.of_context
                    logger.info("The forward to %s/%s%s is closed on request.", namespace, pod, of_context)
                    session.forwards.drain(namespace, pod, "it was closed on request")
                    closed += found
        if not closed:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no forward to {namespace}/{pod}.", reason="NoForward")
        return json_reply(
            {"namespace": namespace, "pod": pod, "state": "draining", "streams": sum(f.streams for f in closed)}
        )

    async def _open_listener(self, request: http.Request, segments: list[str]) -> http.Response:
        wanted = _body(request, {"target": str, "ports": list}, {"namespace": str, "zone": str})
        zone = wanted.get("zone", "")
        if zone and zone not in self._clusters.zones:
            raise Refused(HTTPStatus.NOT_FOUND, f"{zone!r} is no zone of ours.", reason="NoSuchZone")
        ports = [port if isinstance(port, str) else str(int(port)) for port in wanted["ports"]]
        try:
            opened = await self._local_ports.open(zone, wanted.get("namespace", ""), wanted["target"], ports)
        except ValueError as e:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(e), reason="BadRequest") from e
        except KubeTunnelError as e:
            members = {"command": e.command} if e.command else {}
            raise Refused(HTTPStatus.CONFLICT, e.detail, reason=e.reason, members=members) from e
        except TimeoutError as e:
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, "The cluster does not answer.", reason="Timeout") from e
        except OSError as e:
            raise Refused(HTTPStatus.CONFLICT, e.strerror or str(e), reason="PortUnavailable") from e
        return json_reply({"listeners": [self._documents.listener(port) for port in opened]}, HTTPStatus.CREATED)

    async def _close_listener(self, request: http.Request, segments: list[str]) -> http.Response:
        ports = self._local_ports.ports()
        port = next((each for each in ports if each.id == segments[1]), None)
        if port is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no listener {segments[1]!r}.", reason="NoListener")
        if port.asked_by == "settings":
            detail = f"The setting forwards has {port.entry!r}: take it out of there."
            raise Refused(HTTPStatus.CONFLICT, detail, reason="OfTheSettings")
        closed = self._documents.listener(port)
        await self._local_ports.close(port)
        return json_reply(closed)

    async def _refresh(self, request: http.Request, segments: list[str]) -> http.Response:
        """Reads all Services in use anew; those that cannot be read are told."""
        limit = asyncio.Semaphore(_AT_A_TIME)

        async def refresh(key: ServiceKey) -> str | None:
            try:
                async with limit:
                    await self._known.refresh(key)
            except KubeTunnelError as e:
                return str(e)
            except TimeoutError:
                return f"{key.service} in {key.namespace}: no answer within {REFRESH_TIMEOUT_S:g} s"
            return None

        keys = list(self._known.states)
        failed = [text for text in await asyncio.gather(*map(refresh, keys)) if text is not None]
        self._checks.hurry()
        return json_reply({"services": len(keys), "failed": failed[:_AT_A_TIME]})


def _fits(pattern: list[str], segments: list[str]) -> bool:
    return len(pattern) == len(segments) and all(
        wanted in ("*", segment) and segment for wanted, segment in zip(pattern, segments, strict=True)
    )


def _is_whole(port: Any) -> bool:
    return isinstance(port, float) and port.is_integer()  # 80.0 is an integer in JSON Schema


def _body(request: http.Request, required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """The members of a JSON object. Raises Refused: what is missing, or is not what it should be."""
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is to be application/json.", reason="UnsupportedMediaType"
        )
    try:
        found = json.loads(request.content or b"")
    except (ValueError, RecursionError) as e:
        raise Refused(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {e}.", reason="BadRequest") from e
    if not isinstance(found, dict):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "The body is not a JSON object.", reason="BadRequest")
    members = {**required, **optional}
    for name in found.keys() - members.keys():
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name!r} is no member of it.", reason="BadRequest")
    for name, kind in members.items():
        if (name in required or name in found) and not isinstance(found.get(name), kind):
            text = f"{name!r} is to be a {'list' if kind is list else 'text'}."
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, text, reason="BadRequest")
    for port in found.get("ports", []):
        if isinstance(port, bool) or not (isinstance(port, str | int) or _is_whole(port)):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{port!r} is no port.", reason="BadRequest")
    return found
