"""Lists: consistent pages with `limit` and `continue`, at the resourceVersion asked for (Kubernetes API Concepts:
Retrieving large results sets in chunks; Semantics for get and list).
"""

from __future__ import annotations

from kubetunnel.sim.listoptions import ListOptions, decode_continue, encode_continue
from kubetunnel.sim.pods import Json
from kubetunnel.sim.resources import Resource
from kubetunnel.sim.status import CONTINUE_TOO_OLD, LIST_TOO_OLD, expired, too_large
from kubetunnel.sim.store import Key, RevisionExpired, Store, key_of

_ANY_REVISION = -1  # in a continue token: go on with what is there now


def list_page(store: Store, resource: Resource, namespace: str, options: ListOptions) -> tuple[list[Json], Json]:
    """The objects of one page and the list's metadata; raises StatusError (410, 504, 400)."""
    revision, after = store.revision, None
    if options.continue_token:
        token_revision, after = decode_continue(options.continue_token)
        revision = store.revision if token_revision == _ANY_REVISION else token_revision
    elif options.revision is not None:
        if options.revision > store.revision:
            raise too_large(options.revision, store.revision)
        if options.exact:
            revision = options.revision
    found = [item for item in _items(store, resource, revision, after) if namespace in ("", key_of(item)[0])]
    selective = bool(options.labels.requirements or options.fields.terms)
    matching = [item for item in found if _selects(options, item)]
    page = matching[: options.limit] if options.limit > 0 else matching
    metadata: Json = {"resourceVersion": str(revision)}
    if len(page) < len(matching):
        metadata["continue"] = encode_continue(revision, *key_of(page[-1]))
        if not selective:  # the server does not count what a selector would leave out
            metadata["remainingItemCount"] = len(matching) - len(page)
    return page, metadata


def _items(store: Store, resource: Resource, revision: int, after: Key | None) -> list[Json]:
    try:
        items = store.items_at(resource.name, revision)
    except RevisionExpired as e:
        if after is None:
            raise expired(LIST_TOO_OLD) from e
        raise expired(CONTINUE_TOO_OLD, continue_token=encode_continue(_ANY_REVISION, *after)) from e
    return items if after is None else [item for item in items if key_of(item) > after]


def _selects(options: ListOptions, item: Json) -> bool:
    return options.labels.matches(item["metadata"].get("labels", {})) and options.fields.matches(item)
