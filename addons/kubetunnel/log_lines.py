"""The log as one JSON object a line (`log.format: json`), for programs that collect logs."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.utils import human

logger = logging.getLogger(__name__)

_LEVELS = {"WARNING": "warn", "CRITICAL": "error", "ALERT": "info"}
_REQUEST = "kube_request"  # the attribute of a record that has a request's facts


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …}`, and `client`, `exception` and a request's facts."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if client := getattr(record, "client", None):
            line["client"] = human.format_address(client)
        line |= getattr(record, _REQUEST, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class RequestLines:
    """A line for each request, where mitmdump's own, which are for people, are not shown.

    Never a header, a body or a query: these may have secrets.
    """

    name = "kubetunnel_request_lines"

    def __init__(self) -> None:
        self.enabled = False

    def response(self, flow: http.HTTPFlow) -> None:
        self._tell(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self._tell(flow)

    def _tell(self, flow: http.HTTPFlow) -> None:
        if not self.enabled:
            return
        request, response = flow.request, flow.response
        kube = flow.metadata.get("kube", {})
        path = request.path.partition("?")[0]
        facts = {
            "method": request.method,
            "host": request.pretty_host,
            "path": path,
            "status": response.status_code if response else None,
            "error": flow.error.msg if flow.error else None,
            "duration_s": round(time.time() - request.timestamp_start, 4),
            "service": kube.get("service"),
            "pod": kube.get("pod"),
            "client": human.format_address(flow.client_conn.peername),
        }
        facts = {name: value for name, value in facts.items() if value is not None}
        status = response.status_code if response else "no response"
        logger.info("%s %s%s: %s", request.method, request.pretty_host, path, status, extra={_REQUEST: facts})


def set_format(name: str) -> None:
    """Has mitmproxy's log on the terminal in this format, "text" or "json"; without effect where it has none."""
    termlog = ctx.master.addons.get("termlog")
    if termlog is None:
        return
    handler = termlog.logger
    if name == "json":
        handler.formatter = JsonFormatter()
    elif isinstance(handler.formatter, JsonFormatter):
        handler.formatter = type(handler)().formatter
