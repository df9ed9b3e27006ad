"""Selectors, against the wording and the answers of a real API server (kube-apiserver 1.20 and 1.33)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.sim.selectors import equality, parse_field_selector, parse_label_selector
from kubetunnel.sim.status import StatusError

LABELS = {"app": "echo", "tier": "web", "example.org/team": "a"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app", True),
        ("nope", False),
        ("!app", False),
        ("! nope", True),
        ("app=echo", True),
        ("app==echo", True),
        ("app = echo", True),
        ("app=", False),
        ("app!=echo", False),
        ("app!=other", True),
        ("nope!=x", True),
        ("app in (echo,pair)", True),
        ("app in (pair)", False),
        ("app in ()", False),
        ("app notin (pair)", True),
        ("app notin (echo , pair)", False),
        ("nope notin (a)", True),
        ("nope in (a)", False),
        ("app=echo,tier=web", True),
        ("app=echo,tier=db", False),
        ("app in (echo),tier!=db,example.org/team,!nope", True),
    ],
)
def test_label_selector(text: str, matches: bool) -> None:
    assert parse_label_selector(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app=echo,", "found '', expected: identifier after ','"),
        (",", "found ',', expected: !, identifier, or 'end of string'"),
        ("a b", "unable to parse requirement: found 'b', expected: '=', '!=', '==', 'in', notin'"),
        ("a in", "unable to parse requirement: found '' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("!", "unable to parse requirement: found '', expected: identifier"),
    ],
)
def test_label_selector_refused(text: str, message: str) -> None:
    with pytest.raises(StatusError) as refused:
        parse_label_selector(text)
    assert (refused.value.code, refused.value.message) == (400, message)


names = st.text("abcz-./019", min_size=1, max_size=8)


@given(st.dictionaries(names, names), st.dictionaries(names, names))
def test_equality_is_what_the_text_says(selector: dict[str, str], labels: dict[str, str]) -> None:
    expected = selector.items() <= labels.items()
    assert equality(selector).matches(labels) is expected
    assert parse_label_selector(",".join(f"{k}={v}" for k, v in selector.items())).matches(labels) is expected


POD = {
    "metadata": {"name": "a", "namespace": "demo"},
    "spec": {"nodeName": "node1"},
    "status": {"phase": "Running", "podIP": "10.244.0.10"},
}
POD_FIELDS = ("spec.nodeName", "status.phase", "status.podIP")


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("metadata.name=a", True),
        ("metadata.name==a", True),
        ("metadata.name!=a", False),
        ("metadata.namespace=demo,status.phase!=Pending", True),
        ("status.podIP=10.244.0.11", False),
        ("spec.nodeName=node1,status.podIP=10.244.0.10", True),
    ],
)
def test_field_selector(text: str, matches: bool) -> None:
    assert parse_field_selector(text, POD_FIELDS).matches(POD) is matches


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "invalid selector: 'a'; can't understand 'a'"),
        ("spec.foo=a", '"spec.foo" is not a known field selector: only "metadata.name", "metadata.namespace"'),
    ],
)
def test_field_selector_refused(text: str, message: str) -> None:
    with pytest.raises(StatusError) as refused:
        parse_field_selector(text, ())
    assert (refused.value.code, refused.value.message) == (400, message)
