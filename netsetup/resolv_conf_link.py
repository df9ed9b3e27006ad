"""The symbolic link at /etc/resolv.conf, led elsewhere in one step, and back: no moment without the file."""

from __future__ import annotations

import os
from pathlib import Path

from netsetup.errors import StepError
from netsetup.operations import LinkResolvConf


def link_resolv_conf(step: LinkResolvConf) -> None:
    if _target(step.path) != step.before:
        raise StepError(f"{step.path} was changed by somebody else at this very moment. Try again.")
    _link(step.path, step.target)


def put_link_back(step: LinkResolvConf) -> str:
    """Leads it where it led before, unless somebody else has led it elsewhere since; says what it did."""
    try:
        _new(step.path).unlink(missing_ok=True)  # of a run that was killed in between
    except OSError as e:
        raise StepError(f"Could not remove {_new(step.path)}: {e.strerror}.") from e
    found = _target(step.path)
    if found == step.before:
        return "was gone already"
    if found != step.target and os.path.lexists(step.path):
        return "left: somebody else has written it since"
    _link(step.path, step.before)
    return "put back"


def has_link(step: LinkResolvConf) -> bool:
    return _target(step.path) == step.target


def _target(path: str) -> str | None:
    """The link's text, None where there is no link."""
    try:
        return os.fspath(Path(path).readlink())
    except OSError:
        return None


def _link(path: str, target: str) -> None:
    try:
        _new(path).unlink(missing_ok=True)
        _new(path).symlink_to(target)
        _new(path).replace(path)
    except OSError as e:
        raise StepError(f"Could not lead the link {path} to {target}: {e.strerror}.") from e


def _new(path: str) -> Path:
    return Path(path).with_name(f".{Path(path).name}.kube-tunnel")
