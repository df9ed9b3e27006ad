"""Kubernetes Status answers (meta/v1 Status), worded as k8s.io/apimachinery's api/errors words them.

`StatusError` is what the simulated server answers, not what a user of kube-tunnel is told: it is no `KubeTunnelError`.
"""

from __future__ import annotations

from typing import Any

type Json = dict[str, Any]

# the same text for a list and a continue token (apiserver storage/etcd3: handleCompactedErrorForPaging)
LIST_TOO_OLD = "The resourceVersion for the provided list is too old."
CONTINUE_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


class StatusError(Exception):
    """An answer that is a failure.

    Args:
        code: the HTTP status.
        reason: the machine-readable reason, "" for none.
        message: the text that kubectl shows.
        details: kind, group, name, causes, retryAfterSeconds; None where Kubernetes leaves them out.
        continue_token: for an expired list: how to go on without consistency.
    """

    def __init__(
        self, code: int, reason: str, message: str, details: Json | None = None, *, continue_token: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.continue_token = continue_token

    def status(self) -> Json:
        """The Status object."""
        metadata = {"continue": self.continue_token} if self.continue_token else {}
        status: Json = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure"}
        status["message"] = self.message
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        return status | {"code": self.code}


def _qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def _details(resource: str, group: str, name: str) -> Json:
    return {key: value for key, value in (("name", name), ("group", group), ("kind", resource)) if value}


def bad_request(message: str) -> StatusError:
    """400, for what cannot be parsed."""
    return StatusError(400, "BadRequest", message)


def unauthorized() -> StatusError:
    """401: the credentials are no (longer) valid."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, path: str) -> StatusError:
    """403 for a path that is no resource."""
    return StatusError(403, "Forbidden", f'forbidden: User "{user}" cannot {verb} path "{path}"', {})


def forbidden_resource(
    user: str, verb: str, group: str, resource: str, *, subresource: str = "", name: str = "", namespace: str = ""
) -> StatusError:
    """403 for a resource (apiserver's handlers/responsewriters: forbiddenMessage)."""
    subject = _qualified(resource, group) + (f' "{name}"' if name else "")
    what = f"{resource}/{subresource}" if subresource else resource
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = f'{subject} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group "{group}" {where}'
    return StatusError(403, "Forbidden", message, _details(resource, group, name))


def no_such_resource() -> StatusError:
    """404 for a resource that the server has not got."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def not_found(resource: str, group: str, name: str) -> StatusError:
    """404 for an object."""
    message = f'{_qualified(resource, group)} "{name}" not found'
    return StatusError(404, "NotFound", message, _details(resource, group, name))


def method_not_allowed() -> StatusError:
    """405: the simulated cluster is changed by its switches, not through the API."""
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def not_acceptable() -> StatusError:
    """406: the client takes no JSON."""
    return StatusError(406, "NotAcceptable", "only the following media types are accepted: application/json")


def expired(message: str, *, continue_token: str = "") -> StatusError:
    """410 for a resourceVersion or a continue token older than the history that is kept."""
    return StatusError(410, "Expired", message, continue_token=continue_token)


def too_old(revision: int, oldest: int) -> StatusError:
    """410 as a watch words it."""
    return expired(f"too old resource version: {revision} ({oldest})")


def too_large(revision: int, current: int) -> StatusError:
    """504 for a list at a resourceVersion from the future."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {revision}, current: {current}"
    return StatusError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})


def invalid_list_option(field: str, problem: str) -> StatusError:
    """422 for options of a list or a watch that do not go together."""
    text = f"{field} is forbidden {problem}"
    cause = {"reason": "FieldValueForbidden", "message": f"Forbidden: {text}", "field": field}
    message = f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {text}'
    return StatusError(422, "Invalid", message, {"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]})


def invalid_revision(text: str) -> StatusError:
    """500, as Kubernetes has it, for a resourceVersion that is no number."""
    return StatusError(
        500, "", f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
    )
