"""Answers of the tunnel's own pages, with the headers that each of them has.

Headers as OWASP's HTTP Security Response Headers Cheat Sheet asks for them. No page may be framed, cached, or read by
another origin; scripts and styles come from files of ours alone.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from mitmproxy import http

from kubetunnel.proxy.refusals import ERROR_HEADER

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Refused(Exception):  # noqa: N818 - an answer
    """A request is answered with a problem (RFC 9457).

    Args:
        reason: a word for programs.
        more: further members and headers.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        reason: str,
        members: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.members = members or {}
        self.headers = headers or {}


def reply(
    body: bytes, content_type: str, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> http.Response:
    return http.Response.make(status, body, {**_HEADERS, "Content-Type": content_type, **(headers or {})})


def json_reply(document: Any, status: int = HTTPStatus.OK) -> http.Response:
    return reply(_json(document), "application/json", status)


def problem_reply(refused: Refused) -> http.Response:
    problem = {
        "type": "about:blank",
        "title": refused.status.phrase,
        "status": int(refused.status),
        "detail": refused.detail,
        "reason": refused.reason,
        **refused.members,
    }
    headers = {ERROR_HEADER: refused.reason, **refused.headers}
    return reply(_json(problem), "application/problem+json", refused.status, headers)


def _json(document: Any) -> bytes:
    # "<" cannot end a script or begin a tag for whoever takes this for HTML
    text = json.dumps(document, ensure_ascii=False, indent=2).replace("<", "\\u003c")
    # bytes of a stranger that were no UTF-8 are lone surrogates, and have JSON's own escapes
    return text.encode(errors="backslashreplace") + b"\n"


def stream_reply(content_type: str) -> http.Response:
    """The head of a body that goes on."""
    response = reply(b"", content_type)
    del response.headers["Content-Length"]
    return response
