"""Root for the network, the user for all else: credential plugins, the proxy and the DNS server run as the user."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Collection, Mapping, MutableMapping

from netsetup.errors import BadWishError, RootNeededError


def is_root() -> bool:
    return os.geteuid() == 0


def as_root(program: str, *words: str, keep: Collection[str] = ()) -> str:
    """A command line that runs a program of ours (`netsetup`, `kubetunnel`) as root.

    Args:
        keep: variables of the environment that sudo is to leave as they are, most of which it takes away.

    By the interpreter's path: sudo has a PATH of its own, on which an environment's programs are not. `-I`: root would
    import what lies in the working directory else, which may be anybody's (/tmp).
    """
    kept = [f"--preserve-env={','.join(keep)}"] if keep else []
    return shlex.join(["sudo", *kept, sys.executable, "-I", "-m", program, *words])


def settings_in(environ: Mapping[str, str], *others: str) -> list[str]:
    """The variables that say what the tunnel is to be; `others` count too, where they are set."""
    return sorted(name for name in environ if name.startswith("KTUN_") or name in others)


def invoking_user(environ: Mapping[str, str]) -> str | None:
    """Who has called sudo, doas or pkexec; None where root is root itself."""
    if name := environ.get("SUDO_USER") or environ.get("DOAS_USER"):
        return None if name == "root" else name
    if (uid := environ.get("PKEXEC_UID", "")).isdecimal() and int(uid) != 0:
        return find_user(int(uid)).pw_name
    return None


def find_user(user: str | int) -> pwd.struct_passwd:
    """The account of that name or number.

    Raises:
        BadWishError: there is none.
    """
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError as e:
        raise BadWishError(f"There is no user {user}.") from e


def drop_privileges(user: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Makes this process the user's for good: groups, group, user, and the environment that goes with them.

    Args:
        user: a name; not root's.
        environ: HOME, USER, LOGNAME and SHELL are set in it, the marks of sudo and root's runtime directories removed.

    Raises:
        BadWishError: there is no such user, or it is root.
        RootNeededError: the process is not root's.
    """
    account = find_user(user)
    if account.pw_uid == 0:
        raise BadWishError(f"{user} is root: name the user who is to run the tunnel.")
    if not is_root():
        raise RootNeededError("Only root can become another user.")
    os.initgroups(account.pw_name, account.pw_gid)
    # real, effective and saved, and the group first: after the user there is no right to
    os.setregid(account.pw_gid, account.pw_gid)
    os.setreuid(account.pw_uid, account.pw_uid)
    if os.getuid() != account.pw_uid or os.geteuid() != account.pw_uid or _can_go_back():
        raise RootNeededError(f"The process could not become {user}'s for good.")
    environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name, SHELL=account.pw_shell)
    for name in ("SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND", "DOAS_USER", "PKEXEC_UID", "MAIL"):
        environ.pop(name, None)
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        # sudo may have made them root's; the user's own follow from HOME
        environ.pop(name, None)


def _can_go_back() -> bool:
    try:
        os.seteuid(0)
    except PermissionError:
        return False
    return True
