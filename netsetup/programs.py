"""Runs the system's own tools (nft, iptables, resolvectl, nmcli, ifconfig): no shell, a time limit, errors as ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from netsetup.errors import StepError

# nft and resolvectl answer at once; nmcli waits for its dnsmasq to come up
TIME_LIMIT_S = 15.0
# where root's tools are, which a user's PATH may lack
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def find_program(name: str) -> str | None:
    """The program's path, None where it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def run(argv: Sequence[str], *, stdin: str = "") -> str:
    """Runs a program to its end and gives its standard output.

    Raises:
        StepError: it is not there, took too long, or failed; with its own words.
    """
    program = find_program(argv[0])
    command = " ".join(argv)
    if program is None:
        raise StepError(f"{argv[0]} is not on the PATH.")
    try:
        done = subprocess.run(  # noqa: S603 - a list of ours, no shell
            [program, *argv[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as e:
        raise StepError(f"`{command}` did not end within {TIME_LIMIT_S:g} s.") from e
    except OSError as e:
        raise StepError(f"`{command}` could not be run: {e.strerror}.") from e
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split()) or "no words"
        raise StepError(f"`{command}` failed ({done.returncode}): {words}")
    return done.stdout
