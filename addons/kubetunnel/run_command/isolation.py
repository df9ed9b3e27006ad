"""Namespaces of CMD's own: a network of loopback alone, and another resolv.conf.

Sources: user_namespaces(7), mount_namespaces(7), network_namespaces(7).

Any user may make them where the system lets him. The user keeps his number, so CMD is nobody else than before and has
no rights by it; only one user and one group exist in there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DNS_ADDRESS = "127.0.0.53"  # as systemd-resolved's stub; free in a network of one's own
# getaddrinfo(3) finds no IPv4 address with AI_ADDRCONFIG where the machine has none but 127.0.0.1; nobody's (RFC 5737)
OWN_ADDRESS = "192.0.2.1"
NDOTS = 5  # kubelet's: `api.shop` is looked for in the search list first

# sys/mount.h
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
# linux/if.h, linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_IFREQ = struct.Struct("16sh22x")  # with the flags
_IFREQ_ADDRESS = struct.Struct("16sH2x4s16x")  # with a sockaddr_in

_RESOLV_CONF, _NSSWITCH = Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf")
_NSCD = Path("/run/nscd")  # answers for glibc what it has found outside


class IsolationError(Exception):
    """The system does not let this user have namespaces; the text says what it refused."""


def resolv_conf(namespace: str, zone: str) -> str:
    """resolv.conf(5) as a pod of the namespace has it."""
    search = f"{namespace}.svc.{zone} svc.{zone} {zone}"
    return f"nameserver {DNS_ADDRESS}\nsearch {search}\noptions ndots:{NDOTS}\n"


def nsswitch_conf(present: str) -> str:
    """nsswitch.conf(5) with host names by files and DNS alone: other ways (resolve, mdns4, sss) ask outside."""
    lines = [line for line in present.splitlines() if not line.lstrip().startswith("hosts:")]
    return "\n".join([*lines, "hosts: files dns", ""])


def isolate(namespace: str, zone: str) -> None:
    """Moves this process, which has to have a single thread, into namespaces of its own.

    Raises:
        IsolationError: it may not. The process is good for nothing more then.
    """
    if sys.platform != "linux":
        raise IsolationError("--isolate needs Linux.")
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(user, group)
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        _set_loopback_up()
        nsswitch = _NSSWITCH.read_text(encoding="utf-8") if _NSSWITCH.is_file() else None
        files = [(_RESOLV_CONF, resolv_conf(namespace, zone))]
        files += [(_NSSWITCH, nsswitch_conf(nsswitch))] if nsswitch is not None else []
        _replace_files(files)
        if _NSCD.is_dir():
            _call("mount", b"tmpfs", os.fsencode(_NSCD), b"tmpfs", 0, None)
    except OSError as e:
        raise IsolationError(
            f"The system refuses namespaces to this user: {e.filename or ''} {e.strerror}. See "
            "kernel.apparmor_restrict_unprivileged_userns, kernel.unprivileged_userns_clone, user.max_user_namespaces."
        ) from e


def _unshare(user: int, group: int) -> None:
    if sys.platform != "linux":
        raise AssertionError("unreachable")
    kinds = os.CLONE_NEWNS | os.CLONE_NEWNET
    if user == 0:
        try:
            os.unshare(kinds)
        except PermissionError:
            pass  # root of a container
        else:
            return  # root needs no user namespace, in which files of others would be closed to it
    os.unshare(kinds | os.CLONE_NEWUSER)
    # the group's map may be written only where nobody can drop a group by it (CVE-2014-8989)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(content, encoding="ascii")


def _replace_files(files: Sequence[tuple[Path, str]]) -> None:
    """Lays others over these files, for this mount namespace; nothing is left on the disk."""
    directory = tempfile.mkdtemp(prefix="kube-tunnel-run-")
    try:
        _call("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", 0, b"mode=755,size=64k")
        for path, content in files:
            own = Path(directory, path.name)
            own.write_text(content, encoding="utf-8")
            own.chmod(0o644)
            _call("mount", os.fsencode(own), os.fsencode(path), None, _MS_BIND, None)
        _call("umount2", os.fsencode(directory), _MNT_DETACH)
    finally:
        Path(directory).rmdir()


def _set_loopback_up() -> None:
    """netdevice(7): the link up, and an address beside 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
        for request, address in ((_SIOCSIFADDR, OWN_ADDRESS), (_SIOCSIFNETMASK, "255.255.255.255")):
            packed = _IFREQ_ADDRESS.pack(b"lo:0", socket.AF_INET, socket.inet_aton(address))
            fcntl.ioctl(control, request, packed)


def _call(name: str, *arguments: bytes | int | None) -> None:
    """mount(2) and umount2(2), which Python has not got. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_ulong(a) if isinstance(a, int) and name == "mount" else a for a in arguments]
    if getattr(libc, name)(*converted) != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number), name)
