"""From root to the user, for good."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from netsetup.errors import BadWishError
from netsetup.privileges import as_root, drop_privileges, invoking_user, settings_in

DROPPED = """
import json, os, sys
from netsetup.errors import RootNeededError
from netsetup.machine import boot_id
from netsetup.privileges import drop_privileges
here = boot_id()
os.setgroups([0, 12345])
drop_privileges(sys.argv[1])
try:
    drop_privileges(sys.argv[1])
    sys.exit("a user may become another")
except RootNeededError:
    pass
assert boot_id() == here  # what the state file is read with
try:
    os.seteuid(0)
    back = True
except PermissionError:
    back = False
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), back, dict(os.environ)]))
"""


@pytest.mark.parametrize(
    ("environ", "user"),
    [
        ({}, None),
        ({"SUDO_USER": "alice", "SUDO_UID": "1000"}, "alice"),
        ({"SUDO_USER": "root"}, None),
        ({"DOAS_USER": "bob"}, "bob"),
        ({"PKEXEC_UID": "0"}, None),
        ({"PKEXEC_UID": str(pwd.getpwnam("nobody").pw_uid)}, "nobody"),
    ],
)
def test_who_has_called(environ: dict[str, str], user: str | None) -> None:
    assert invoking_user(environ) == user


def test_root_imports_nothing_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('somebody else has put this here')")
    sudo, *words = shlex.split(as_root("netsetup", "up", "--help"))
    assert sudo == "sudo"
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stderr, "Usage: " in done.stdout) == (0, "", True)


def test_what_sudo_is_to_keep() -> None:
    kept = settings_in(
        {"KTUN_PORT": "1", "KTUN_DNS_PORT": "2", "KUBECONFIG": "c", "HOME": "/"}, "KUBECONFIG", "LOG_LEVEL"
    )
    assert as_root("kubetunnel", keep=kept).startswith("sudo --preserve-env=KTUN_DNS_PORT,KTUN_PORT,KUBECONFIG ")


def test_root_and_nobody_known_are_refused() -> None:
    with pytest.raises(BadWishError, match="is root"):
        drop_privileges("root")
    with pytest.raises(BadWishError, match="no user"):
        drop_privileges("no-such-user-here")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_dropped_for_good() -> None:
    account = pwd.getpwnam("nobody")
    environ = os.environ | {"SUDO_USER": "x", "SUDO_UID": "1", "XDG_RUNTIME_DIR": "/run/user/0", "HOME": "/of-root"}
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, "nobody"], capture_output=True, text=True, env=environ, check=True, timeout=20
    )
    uids, gids, groups, back, after = json.loads(done.stdout)
    assert uids == [account.pw_uid] * 3
    assert gids == [account.pw_gid] * 3
    assert not {0, 12345} & {*groups}
    assert back is False
    assert (after["HOME"], after["USER"], after["LOGNAME"]) == (account.pw_dir, "nobody", "nobody")
    assert not {"SUDO_USER", "SUDO_UID", "XDG_RUNTIME_DIR"} & {*after}
