"""What an API server's answer that is no 200 means to the person whose request waits for it.

Source: the API conventions (Status kind, HTTP status codes) and RFC 9110 10.2.3 (Retry-After).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec

from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.decode import ApiObject
from kubetunnel.cluster.resource import Query
from kubetunnel.core.errors import ClusterUnreachable, Forbidden, KubeTunnelError, Unauthenticated

_USER = re.compile(r'\bUser "([^"]{1,253})"')  # of the API server's own wording: User "x" cannot list resource …


class GoneError(Exception):
    """List again: the resourceVersion or the continue token is too old (410), or the watch ended in an error."""


class NotKubernetesError(ClusterUnreachable):
    """What came back is none of the Kubernetes API's: a login page, a cut object, another server."""


class CutError(ClusterUnreachable):
    """The connection ended before the answer did: worth another try."""


class Status(msgspec.Struct):
    """The `Status` that the API server explains a refusal with."""

    message: str = ""
    reason: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    body: bytes = field(repr=False)
    retry_after_s: float | None = None

    @property
    def worth_a_retry(self) -> bool:
        return self.status == 429 or self.status >= 500


def read_status(body: bytes) -> Status:
    """The Status in a body, an empty one where it is something else."""
    try:
        return msgspec.json.decode(body, type=Status)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Status()


def retry_after_s(header: str | None) -> float | None:
    """Retry-After in seconds. A date, which the API server never sends, counts as none."""
    return float(header) if header and header.isascii() and header.isdigit() else None


def refusal[T: ApiObject](access: ClusterAccess, verb: str, query: Query[T], answer: Answer) -> KubeTunnelError:
    """The error for an answer other than 200, 404 and 410."""
    status = read_status(answer.body)
    if answer.status == 403:
        return _forbidden(access, verb, query, status)
    if answer.status == 401:
        return Unauthenticated(
            f"The API server {access.server} refused the renewed credentials too (context {access.context}).",
            command=access.kubectl("auth", "whoami"),
        )
    said = f": {status.message[:300]}" if status.message else "."
    wait = f" It asks to wait {answer.retry_after_s:g} s." if answer.retry_after_s else ""
    return ClusterUnreachable(
        f"The API server {access.server} answered {answer.status} to {verb} {query.resource}{said}{wait}",
        command=access.kubectl("get", "--raw", "/readyz?verbose"),
    )


def _forbidden[T: ApiObject](access: ClusterAccess, verb: str, query: Query[T], status: Status) -> Forbidden:
    user = _USER.search(status.message)
    who = f"User {user[1]}" if user else f"The user of context {access.context}"
    where = f" in namespace {query.namespace}" if query.namespace else ""
    if status.message and not user:
        # an admission plugin or a front end words it in its own way
        where += f" ({status.message[:300]})"
    scope = ("-n", query.namespace) if query.namespace else ()
    return Forbidden(
        f"{who} may not {verb} {query.resource}{where}.",
        command=access.kubectl("auth", "can-i", verb, str(query.resource), *scope),
    )
