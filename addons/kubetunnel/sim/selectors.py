"""Label and field selectors, parsed as apimachinery parses them (pkg/labels/selector.go, pkg/fields/selector.go).

Errors are `StatusError` 400 with the server's words, where a client can cause them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kubetunnel.sim.status import bad_request

_WORD = re.compile(r"\s*(?:(==|!=|=|[(),!])|([^\s=!(),]+))")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term: `key operator values`, operator one of `in`, `notin`, `exists`, `absent`."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` fulfil it; a missing key fulfils `notin` and `!=` too."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "absent":
            return self.key not in labels
        found = self.key in labels and labels[self.key] in self.values
        return found if self.operator == "in" else not found


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold; none at all selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def equality(labels: Mapping[str, str]) -> LabelSelector:
    """The selector of a Service: every label equal."""
    return LabelSelector(tuple(Requirement(key, "in", frozenset([value])) for key, value in labels.items()))


def parse_label_selector(text: str) -> LabelSelector:
    """`a=b,c!=d,e in (f,g),h notin (i),j,!k` → selector; raises StatusError 400."""
    parser = _LabelParser(text)
    return LabelSelector(tuple(parser.requirements()))


class _LabelParser:
    """Recursive descent over the words; "" stands for the end of the text."""

    def __init__(self, text: str) -> None:
        self._words: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _WORD.match(text, position)
            if match is None:  # cannot be: the pattern takes any character but white space, of which the end has none
                break
            self._words.append(match[1] or match[2])
            position = match.end()
        self._next = 0

    def _peek(self) -> str:
        return self._words[self._next] if self._next < len(self._words) else ""

    def _take(self) -> str:
        word = self._peek()
        self._next += 1
        return word

    def requirements(self) -> list[Requirement]:
        found: list[Requirement] = []
        while word := self._peek():
            if not _is_name(word) and word != "!":
                raise bad_request(f"found '{word}', expected: !, identifier, or 'end of string'")
            found.append(self._requirement())
            separator = self._take()
            if separator not in ("", ","):
                raise bad_request(f"found '{separator}', expected: ',' or 'end of string'")
            if separator == "," and self._peek() == "":
                raise bad_request("found '', expected: identifier after ','")
        return found

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._take()
            return Requirement(self._key(), "absent")
        key = self._key()
        operator = self._peek()
        if operator in ("", ","):
            return Requirement(key, "exists")
        self._take()
        if operator in ("=", "==", "!="):
            value = self._take() if _is_name(self._peek()) else ""
            return Requirement(key, "notin" if operator == "!=" else "in", frozenset([value]))
        if operator in ("in", "notin"):
            return Requirement(key, operator, self._values())
        raise bad_request(f"unable to parse requirement: found '{operator}', expected: '=', '!=', '==', 'in', notin'")

    def _key(self) -> str:
        key = self._take()
        if not _is_name(key):
            raise bad_request(f"unable to parse requirement: found '{key}', expected: identifier")
        return key

    def _values(self) -> frozenset[str]:
        if (word := self._take()) != "(":
            raise bad_request(f"unable to parse requirement: found '{word}' expected: '('")
        values: set[str] = set()
        value = ""
        while (word := self._take()) != ")":
            if word != "," and not _is_name(word):
                raise bad_request(f"unable to parse requirement: found '{word}', expected: ',' or ')'")
            if word == ",":
                values.add(value)
            value = "" if word == "," else word
        return frozenset(values | {value})


def _is_name(word: str) -> bool:
    return word not in ("", "=", "==", "!=", "(", ")", ",", "!")


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """`(path, value, wanted)` terms: the field at `path` equals `value`, or must not."""

    terms: tuple[tuple[str, str, bool], ...] = ()

    def matches(self, item: Mapping[str, Any]) -> bool:
        return all((field_value(item, path) == value) == wanted for path, value, wanted in self.terms)


def parse_field_selector(text: str, fields: Collection[str]) -> FieldSelector:
    """`metadata.name=a,status.phase!=b` → selector; StatusError 400 for a field that the resource does not offer."""
    known = ("metadata.name", "metadata.namespace", *fields)
    terms = []
    for term in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=!]+)(==|!=|=)(.*)", term)
        if match is None:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        path, operator, value = match.groups()
        if path not in known:
            listed = ", ".join(f'"{name}"' for name in known)
            raise bad_request(f'"{path}" is not a known field selector: only {listed}')
        terms.append((path, value, operator in ("=", "==")))
    return FieldSelector(tuple(terms))


def field_value(item: Mapping[str, Any], path: str) -> str:
    """The field at a dotted path, "" where it is not set."""
    value: Any = item
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)
