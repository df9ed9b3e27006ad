"""mitmweb's list of flows shows the comment, where the pod is, unless the user chose the columns."""

from __future__ import annotations

from typing import Any

from mitmproxy import ctx

_OPTION = "web_columns"
_COMMENT = "comment"
_BEFORE = "method"


class ListColumns:
    """An addon."""

    name = "kubetunnel_list_columns"

    def load(self, loader: Any) -> None:
        options: Any = ctx.options
        if _OPTION not in options or options.has_changed(_OPTION):
            return  # mitmproxy and mitmdump have no such list
        columns = list(options.web_columns)
        if _COMMENT not in columns:
            position = columns.index(_BEFORE) if _BEFORE in columns else len(columns)
            options.update(web_columns=[*columns[:position], _COMMENT, *columns[position:]])
