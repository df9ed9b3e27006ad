"""A request taken apart: which resource, which verb (apiserver's pkg/endpoints/request/requestinfo.go),
and the options of lists and watches (meta/v1 ListOptions).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

from kubetunnel.sim.resources import Resource
from kubetunnel.sim.selectors import FieldSelector, LabelSelector, parse_field_selector, parse_label_selector
from kubetunnel.sim.status import bad_request, invalid_list_option, invalid_revision

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_TRUE = ("1", "true", "True", "TRUE", "t", "T")
_CONTINUE_VERSION = "meta.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What a request is about; `resource` is "" where its path names none."""

    verb: str
    path: str
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""


def parse_request(method: str, path: str, query: Mapping[str, str]) -> RequestInfo:
    """`GET /api/v1/namespaces/demo/pods` → list pods in demo."""
    verb = _VERBS.get(method, method.lower())
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return RequestInfo(verb, path)
    watch = query.get("watch") in _TRUE
    if rest[0] == "watch" and len(rest) > 1:
        watch, rest = True, rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2:
            rest = rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if verb == "get" and not name:
        verb = "watch" if watch else "list"
        # a right to one object by its name covers a list or watch of just that object
        name = _exact_name(query.get("fieldSelector", ""))
    elif verb == "get" and watch:
        verb = "watch"
    return RequestInfo(verb, path, group, version, namespace, rest[0], subresource, name)


def _exact_name(field_selector: str) -> str:
    terms = (term.partition("=") for term in field_selector.split(","))
    return next((value.removeprefix("=") for key, _, value in terms if key == "metadata.name"), "")


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The query parameters of a list or a watch. `revision` is None where the client gave none."""

    labels: LabelSelector
    fields: FieldSelector
    revision: int | None
    exact: bool
    limit: int
    continue_token: str
    bookmarks: bool
    timeout_s: int | None


def parse_list_options(query: Mapping[str, str], resource: Resource, *, watch: bool) -> ListOptions:
    """Query → options; raises StatusError."""
    match = query.get("resourceVersionMatch", "")
    revision_text = query.get("resourceVersion", "")
    if watch and query.get("sendInitialEvents") in _TRUE:
        raise invalid_list_option("sendInitialEvents", "for watch unless the WatchList feature gate is enabled")
    if match and watch:
        raise invalid_list_option("resourceVersionMatch", "for watch")
    if match and not revision_text:
        raise invalid_list_option("resourceVersionMatch", "unless resourceVersion is provided")
    if revision_text and not (revision_text.isascii() and revision_text.isdigit()):
        raise invalid_revision(revision_text)
    limit = _number(query.get("limit", "")) or 0
    revision = int(revision_text) if revision_text else None
    # the legacy rule: a limit with a resourceVersion of its own means exactly that one
    exact = match == "Exact" or (match == "" and limit > 0 and bool(revision))
    return ListOptions(
        labels=parse_label_selector(query.get("labelSelector", "")),
        fields=parse_field_selector(query.get("fieldSelector", ""), resource.fields),
        revision=revision,
        exact=exact,
        limit=limit,
        continue_token=query.get("continue", ""),
        bookmarks=query.get("allowWatchBookmarks") in _TRUE,
        timeout_s=_number(query.get("timeoutSeconds", "")),
    )


def _number(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError as e:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from e


def encode_continue(revision: int, namespace: str, name: str) -> str:
    """A token that goes on after that object, at that revision (-1: at whatever is there by then)."""
    token = {"v": _CONTINUE_VERSION, "rv": revision, "start": f"{namespace}/{name}\0"}
    return base64.urlsafe_b64encode(json.dumps(token, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_continue(token: str) -> tuple[int, tuple[str, str]]:
    """Token → revision and the key of the last object seen; raises StatusError 400."""
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, separator, name = str(decoded["start"]).removesuffix("\0").partition("/")
        revision = int(decoded["rv"])
        known = decoded["v"] == _CONTINUE_VERSION and separator == "/"
    except (binascii.Error, ValueError, KeyError, TypeError) as e:
        raise bad_request(f"invalid continue token: continue key is not valid: {e}") from e
    if not known:
        raise bad_request("invalid continue token: continue key is not valid: server does not recognize this encoded "
                          "version")  # fmt: skip
    return revision, (namespace, name)
