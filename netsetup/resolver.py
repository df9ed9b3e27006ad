"""Who resolves names on this machine, and how it is pointed at us for our zones alone, and back.

systemd-resolved (split DNS by link, resolvectl(1)), else NetworkManager's dnsmasq, else `/etc/resolver` of macOS
(resolver(5)), else /etc/resolv.conf itself: resolv.conf(5) knows no zones, so there our server is asked first for
everything and passes on what is not ours.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from netsetup.errors import StepError
from netsetup.found import FoundResolver
from netsetup.operations import EditResolvConf, MakeDirectory, SetLinkResolver, WriteFile
from netsetup.plan import DNSMASQ_FILE, HEADING, RESOLV_CONF, RESOLVED_DIRECTORY, RESOLVER_DIRECTORY, STUB_FILE
from netsetup.programs import find_program, run
from netsetup.resolv_conf import edited, is_edited, nameservers, restored, unmarked
from netsetup.resolvers import STUB_ADDRESSES

RESOLVED_SERVERS = f"{RESOLVED_DIRECTORY}/resolv.conf"


def find_resolver(*, macos: bool = False) -> FoundResolver:
    """Who resolves here, as it is now."""
    real = str(Path(RESOLV_CONF).resolve())
    content = unmarked(_read(RESOLV_CONF))
    servers = nameservers(content)
    if macos:
        return _with_files(FoundResolver("resolver-directory", servers, real, content), RESOLVER_DIRECTORY)
    # the stub is no server of its own; resolved names those that it asks
    behind = tuple(s for s in nameservers(_read(RESOLVED_SERVERS)) if s not in STUB_ADDRESSES)
    if find_program("resolvectl"):
        if STUB_ADDRESSES & {*servers}:
            return FoundResolver("systemd-resolved", behind or servers, real, content)
        # programs ask its servers in its place; without its stub (DNSStubListener=no) they cannot ask resolved at all
        if real == RESOLVED_SERVERS and STUB_ADDRESSES & {*nameservers(_read(f"{RESOLVED_DIRECTORY}/{STUB_FILE}"))}:
            past = os.fspath(Path(RESOLV_CONF).readlink())
            return FoundResolver("systemd-resolved", behind, real, content, bypass=past)
    if _network_manager_runs_dnsmasq():
        return _with_files(FoundResolver("NetworkManager", servers, real, content), str(Path(DNSMASQ_FILE).parent))
    domain = socket.gethostname().partition(".")[2]
    return FoundResolver("resolv.conf", servers, real, content, domain=domain, asks_all_at_once=_is_musl())


def set_link_resolver(step: SetLinkResolver) -> None:
    for words in resolvectl_commands(step):
        run(words)


def resolvectl_commands(step: SetLinkResolver) -> tuple[tuple[str, ...], ...]:
    """The server comes last: before it the link has none, and resolved asks nobody there."""
    link = step.link
    return (
        ("resolvectl", "domain", link, *step.domains),
        ("resolvectl", "default-route", link, "false"),
        # a user's strictness towards the Internet would refuse our answers, which are neither signed nor in TLS
        ("resolvectl", "dnssec", link, "no"),
        ("resolvectl", "dnsovertls", link, "no"),
        ("resolvectl", "llmnr", link, "no"),
        ("resolvectl", "mdns", link, "no"),
        ("resolvectl", "dns", link, step.dns_ip),
    )


def unset_link_resolver(step: SetLinkResolver) -> str:
    """Makes resolved forget what it was told of the link; says whether it did."""
    if not _link_exists(step.link):
        return "was gone already"
    try:
        run(("resolvectl", "revert", step.link))
    except StepError as e:
        # it may have been stopped; what it knows of a link ends with the link, which goes next
        return f"left to end with the link: {e.detail}"
    return "removed"


def has_link_resolver(step: SetLinkResolver) -> bool:
    if not _link_exists(step.link):
        return False
    # "Link 7 (kube-dns0): ~cluster.local …"
    servers, domains = (run(("resolvectl", what, step.link)).partition(":")[2].split() for what in ("dns", "domain"))
    return step.dns_ip in servers and set(step.domains) <= set(domains)


def make_directory(step: MakeDirectory) -> None:
    try:
        Path(step.path).mkdir(mode=0o755, exist_ok=True)
    except OSError as e:
        raise StepError(f"Could not make directory {step.path}: {e.strerror}.") from e


def has_directory(step: MakeDirectory) -> bool:
    return Path(step.path).is_dir()


def remove_directory(step: MakeDirectory) -> bool:
    """False where it is gone, or holds files of somebody else."""
    path = Path(step.path)
    try:
        if not path.is_dir() or any(path.iterdir()):
            return False
        path.rmdir()
    except OSError as e:
        raise StepError(f"Could not remove directory {step.path}: {e.strerror}.") from e
    return True


def write_file(step: WriteFile) -> None:
    _check_unchanged(step.path, _read(step.path), step.before)
    _write(step.path, step.content)
    if step.reload:
        run(step.reload)


def put_file_back(step: WriteFile) -> str:
    """Removes our file, or puts back what was there; says what it did."""
    current = _read(step.path)
    if current is None or current == step.before:
        said = "was gone already"
    elif current != step.content and not current.startswith(HEADING.encode()):
        said = "left: somebody else has written it since"
    else:
        _restore(step.path, step.before)
        said = "removed" if step.before is None else "put back"
    # also when it is gone already: a kill may have come before the reload
    if step.reload and _network_manager_runs():
        run(step.reload)
    return said


def has_file(step: WriteFile) -> bool:
    return _read(step.path) == step.content


def edit_resolv_conf(step: EditResolvConf) -> None:
    _check_unchanged(step.path, unmarked(_read(step.path)), step.before)
    _write(step.real, edited(step.before, step.wanted))


def put_resolv_conf_back(step: EditResolvConf) -> str:
    """Puts back what was there, or takes our line out of what is there now; says which.

    Where the symbolic link has been replaced meanwhile, our line may have been copied along: both are looked at.
    """
    if _put_missing_back(step):
        return "was gone: put back as it was before"
    said = "was gone already"
    for path in dict.fromkeys((step.real, str(Path(step.path).resolve()))):
        current = _read(path)
        if current is None:
            continue
        content = restored(current, step.wanted, step.before)
        if content == current:
            continue
        _restore(path, content)
        said = "put back" if content == step.before else "our line taken out, what others have written since is kept"
    return said


def _put_missing_back(step: EditResolvConf) -> bool:
    """Without the file nothing resolves, so what was there comes back; False where it is there, or there was none."""
    path, real = Path(step.path), Path(step.real)
    if path.exists() or step.before is None or not real.parent.is_dir():
        return False  # the directory of a link's target is gone after a reboot: its owner makes both anew
    current = _read(step.real)
    content = step.before if current is None else restored(current, step.wanted, step.before)
    _restore(step.real, content)
    if not path.is_symlink() and path != real:
        try:
            path.symlink_to(real)
        except OSError as e:
            raise StepError(f"Could not make the link {path}: {e.strerror}.") from e
    return True


def has_resolv_conf(step: EditResolvConf) -> bool:
    return is_edited(_read(step.path), step.nameserver)


def _network_manager_runs_dnsmasq() -> bool:
    if not _network_manager_runs() or find_program("NetworkManager") is None:
        return False
    settings = run(("NetworkManager", "--print-config")).splitlines()
    return "dns=dnsmasq" in (line.replace(" ", "") for line in settings)


def _network_manager_runs() -> bool:
    if find_program("nmcli") is None:
        return False
    try:
        return run(("nmcli", "-t", "-f", "RUNNING", "general")).strip() == "running"
    except StepError:
        return False  # installed, and not in use


def _is_musl() -> bool:
    """Whether the C library is another one than glibc, which alone knows this name of confstr(3)."""
    try:
        return not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return True


def _link_exists(name: str) -> bool:
    return any(name == each for _, each in socket.if_nameindex())


def _with_files(resolver: FoundResolver, directory: str) -> FoundResolver:
    if not Path(directory).is_dir():
        return resolver
    files = {
        str(path): content for path in Path(directory).iterdir() if path.is_file() and (content := _read(str(path)))
    }
    return replace(resolver, files=files, directories=frozenset([directory]))


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StepError(f"Could not read {path}: {e.strerror}.") from e


def _check_unchanged(path: str, current: bytes | None, before: bytes | None) -> None:
    """What is put back later must be what was there, so nobody else's writing may come between."""
    if current != before:
        raise StepError(f"{path} was changed by somebody else at this very moment. Try again.")


def _restore(path: str, content: bytes | None) -> None:
    if content is not None:
        _write(path, content)
        return
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as e:
        raise StepError(f"Could not remove {path}: {e.strerror}.") from e


def _write(path: str, content: bytes) -> None:
    """Writes in place, in one write, cut to length afterwards: readers never see it empty.

    Not a rename: the file may be a bind mount (containers), and keeps its owner, mode and security label.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            written = 0
            while written < len(content):  # a disk that fills takes a part, and refuses the next
                written += os.write(file, content[written:])
            os.ftruncate(file, len(content))
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as e:
        raise StepError(f"Could not write {path}: {e.strerror}.") from e
