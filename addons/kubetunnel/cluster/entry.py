"""One mapping of a kubeconfig that knows the file and the key it stands at, so that every complaint can name both.

Field names and rules are those of the client configuration API (kubeconfig v1): a relative path counts from the
directory of the file that holds it; `X-data` is base64 and wins over the file named by `X`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubetunnel.core.errors import KubeconfigError


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key, with the place that they came from (for error texts)."""

    data: bytes = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A mapping in a kubeconfig. Every getter raises KubeconfigError, naming file and key, for a wrong type."""

    value: Mapping[str, object] = field(repr=False)
    file: Path
    key: str  # e.g. "users[name=admin].user"

    def at(self, key: str) -> str:
        """Where `key` of this mapping stands, e.g. "/home/me/.kube/config: users[name=admin].user.token"."""
        return f"{self.file}: {self.key}.{key}" if self.key else f"{self.file}: {key}"

    def wrong(self, key: str, what: str) -> KubeconfigError:
        return KubeconfigError(f"{self.at(key)} {what}")

    def text(self, key: str) -> str:
        """The string at `key`, "" where there is none."""
        found = self.value.get(key)
        if found is None:
            return ""
        if not isinstance(found, str):
            raise self.wrong(key, f"must be a string, and is of type {type(found).__name__}")
        if "\0" in found:
            raise self.wrong(key, "has a NUL character in it")  # no file name, argument or header can carry it
        return found

    def header(self, key: str) -> str:
        """The string at `key`, fit for a header, without the line end that a YAML block scalar leaves."""
        found = self.text(key).strip()
        if not found.isprintable():
            raise self.wrong(key, "has a control character in it, which no HTTP header can carry")
        return found

    def flag(self, key: str) -> bool:
        found = self.value.get(key)
        if found is None:
            return False
        if not isinstance(found, bool):
            raise self.wrong(key, "must be true or false")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of strings at `key`."""
        found = self.value.get(key)
        if found is None:
            return ()
        if not isinstance(found, list) or not all(isinstance(item, str) and "\0" not in item for item in found):
            raise self.wrong(key, "must be a list of strings")
        return tuple(found)

    def entry(self, key: str) -> Entry:
        """The mapping at `key`, an empty one where there is none."""
        found = self.value.get(key)
        path = f"{self.key}.{key}" if self.key else key
        if found is None:
            return Entry({}, self.file, path)
        if not isinstance(found, dict):
            raise self.wrong(key, "must be a mapping")
        return Entry(found, self.file, path)

    def entries(self, key: str) -> tuple[Entry, ...]:
        """The list of mappings at `key`."""
        found = self.value.get(key)
        if found is None:
            return ()
        if not isinstance(found, list):
            raise self.wrong(key, "must be a list")
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                raise self.wrong(f"{key}[{index}]", "must be a mapping")
        return tuple(
            Entry(item, self.file, f"{self.key}.{key}[{index}]" if self.key else f"{key}[{index}]")
            for index, item in enumerate(found)
        )

    def path(self, key: str) -> Path | None:
        """The file named at `key`, or None."""
        name = self.text(key)
        return self.file.parent / name if name else None

    def pem(self, key: str) -> Pem | None:
        """`key`-data decoded, else the content of the file named at `key`, else None."""
        if encoded := self.text(f"{key}-data"):
            try:
                return Pem(base64.b64decode("".join(encoded.split()), validate=True), self.at(f"{key}-data"))
            except ValueError:
                # not `from`: what is text beyond ASCII is quoted by the error's own arguments
                raise self.wrong(f"{key}-data", "is not base64") from None
        path = self.path(key)
        if path is None:
            return None
        try:
            return Pem(path.read_bytes(), f"{self.at(key)} ({path})")
        except OSError as error:
            raise self.wrong(key, f"names {path}, which cannot be read: {error.strerror}") from error
