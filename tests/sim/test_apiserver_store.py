"""The store as a state machine: what a list at an old resourceVersion shows is what was there then."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.sim import store as store_module
from kubetunnel.sim.store import FIRST_REVISION, RevisionExpired, Store

steps = st.lists(st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abc"), st.integers(0, 2)), max_size=30)


def item(name: str, value: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "demo", "name": name}, "value": value}


def values(items: list[dict[str, Any]]) -> dict[str, int]:
    return {found["metadata"]["name"]: found["value"] for found in items}


@given(steps)
def test_history_gives_back_every_state(actions: list[tuple[str, str, int]]) -> None:
    store = Store()
    states: dict[int, dict[str, int]] = {FIRST_REVISION: {}}
    model: dict[str, int] = {}
    for action, name, value in actions:
        if action == "put":
            store.put("things", item(name, value))
            model[name] = value
        else:
            store.delete("things", "demo", name)
            model.pop(name, None)
        store.put("noise", item(name, store.revision))
        states[store.revision] = dict(model)
    for revision, expected in states.items():
        assert values(store.items_at("things", revision)) == expected
    assert [change.revision for change in store.changes_after(FIRST_REVISION)] == list(
        range(FIRST_REVISION + 1, store.revision + 1)
    )


@given(steps)
def test_changes_replayed_give_the_present(actions: list[tuple[str, str, int]]) -> None:
    store, replayed = Store(), {}
    for action, name, value in actions:
        if action == "put":
            store.put("things", item(name, value))
        else:
            store.delete("things", "demo", name)
    for change in store.changes_after(FIRST_REVISION):
        assert (change.before is None) == (change.type == "ADDED")
        assert change.item["metadata"]["resourceVersion"] == str(change.revision)
        if change.type == "DELETED":
            del replayed[change.key[1]]
        else:
            replayed[change.key[1]] = change.item["value"]
    assert replayed == values(store.items("things"))


def test_putting_the_same_again_is_no_change() -> None:
    store = Store()
    first = store.put("things", item("a", 1))
    assert store.put("things", item("a", 1)) is first
    assert store.revision == FIRST_REVISION + 1


def test_compaction_expires_what_is_older() -> None:
    store = Store()
    store.put("things", item("a", 1))
    before = store.revision
    store.put("things", item("a", 2))
    store.compact()
    assert store.changes_after(store.revision) == []
    with pytest.raises(RevisionExpired):
        store.changes_after(before)
    with pytest.raises(RevisionExpired):
        store.items_at("things", before)


def test_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEPT_CHANGES", 10)
    store = Store()
    for value in range(100):
        store.put("things", item("a", value))
    assert len(store.changes_after(store.oldest)) <= 10
    assert [change.item["value"] for change in store.changes_after(store.revision - 3)] == [97, 98, 99]


def test_subscribers_hear_of_changes_until_they_leave() -> None:
    store = Store()
    heard: list[int] = []
    unsubscribe = store.subscribe(lambda: heard.append(store.revision))
    store.put("things", item("a", 1))
    store.delete("things", "demo", "nope")
    unsubscribe()
    unsubscribe()
    store.put("things", item("a", 2))
    assert heard == [FIRST_REVISION + 1]
