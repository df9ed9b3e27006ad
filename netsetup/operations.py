"""The steps that change a machine's network, as data: each can be printed, kept in the state file, done and undone.

Addresses and prefixes are texts here, in the form that the state file keeps and the kernel's tools take. What was
there before a step (a file's bytes) is part of the step, so that a state file alone is enough to undo it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from netsetup.resolv_conf import Edit

# The first half of our links' MAC addresses: locally administered, then "kt".
MAC_PREFIX = "02:6b:74"


def link_mac(name: str) -> str:
    """The MAC address of our link `name`.

    It is given when the link is made, in the same request, so a link with this name and this address is ours even
    when we were killed right after; and udev leaves the address of such a link alone.
    """
    return MAC_PREFIX + "".join(f":{byte:02x}" for byte in hashlib.sha256(name.encode()).digest()[:3])


@dataclass(frozen=True, slots=True)
class AddLink:
    """A link that carries no traffic: `dummy`, else `bridge`; set up.

    `carrier`: it is to have one, as systemd-resolved asks of a link. A dummy has, a bridge only with a port that has.
    """

    name: str
    mac: str
    carrier: bool = False

    @property
    def port(self) -> str:
        """The name of a bridge's port, and, with `b` behind it, of the other end of the pair."""
        return f"ktp{self.mac.replace(':', '')[-6:]}"

    @property
    def text(self) -> str:
        return f"link {self.name}"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """An address with its prefix length, without the route that the kernel would add of itself."""

    link: str
    address: str

    @property
    def text(self) -> str:
        return f"address {self.address} of {self.link}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """A route to virtual IPs."""

    link: str
    prefix: str
    source: str

    @property
    def text(self) -> str:
        return f"route {self.prefix} to {self.link}"


@dataclass(frozen=True, slots=True)
class AddAlias:
    """macOS: another address of `lo0`."""

    address: str

    @property
    def text(self) -> str:
        return f"alias {self.address} of lo0"


@dataclass(frozen=True, slots=True)
class Redirect:
    """TCP to the virtual IPs goes to the tunnel, port 53 of the DNS address to the DNS server, other UDP is refused.

    Attributes:
        program: `nft` or `iptables`.
        ranges: the virtual IPs' prefixes.
        forwarded: also what other machines or containers send through this one.
    """

    program: str
    ranges: tuple[str, ...]
    dns_ip: str
    proxy_ip: str
    port: int
    dns_port: int
    forwarded: bool

    @property
    def text(self) -> str:
        source = "this machine's and forwarded" if self.forwarded else "this machine's"
        return (
            f"redirection ({self.program}): {source} TCP to {', '.join(self.ranges)} goes to port {self.port}, "
            f"{self.dns_ip} port 53 to port {self.dns_port}"
        )


@dataclass(frozen=True, slots=True)
class SetLinkResolver:
    """systemd-resolved: these domains, and no others, are asked at the link's server."""

    link: str
    dns_ip: str
    domains: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"systemd-resolved: {', '.join(self.domains)} asked at {self.dns_ip} on {self.link}"


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """A directory that a file of ours needs."""

    path: str

    @property
    def text(self) -> str:
        return f"directory {self.path}"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file of a resolver's configuration.

    Attributes:
        before: what the file held, None where there was none.
        reload: the command that makes the resolver read it; run after writing and after putting back.
    """

    path: str
    content: bytes
    before: bytes | None
    reload: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"file {self.path}" + (f", then {' '.join(self.reload)}" if self.reload else "")


@dataclass(frozen=True, slots=True)
class EditResolvConf:
    """Our server before the others in resolv.conf(5).

    Attributes:
        path: the file as programs name it.
        real: the file that a symbolic link there led to.
        before: what it held, None where there was none.
        search, alone: as of `resolv_conf.Edit`.
    """

    path: str
    real: str
    nameserver: str
    before: bytes | None
    search: tuple[str, ...] = ()
    alone: bool = False

    @property
    def wanted(self) -> Edit:
        return Edit(self.nameserver, self.search, self.alone)

    @property
    def text(self) -> str:
        led = f" ({self.real})" if self.real != self.path else ""
        search = f", search {' '.join(self.search)}" if self.search else ""
        place = "alone (musl asks all at once)" if self.alone else "first"
        return f"nameserver {self.nameserver} {place} in {self.path}{led}{search}"


@dataclass(frozen=True, slots=True)
class LinkResolvConf:
    """The symbolic link at resolv.conf(5) leads elsewhere: to systemd-resolved itself, in the place of its servers.

    Attributes:
        target, before: the link's texts.
    """

    path: str
    target: str
    before: str

    @property
    def text(self) -> str:
        return f"link {self.path} to {self.target}"


type Operation = (
    AddLink
    | AddAddress
    | AddRoute
    | AddAlias
    | Redirect
    | SetLinkResolver
    | MakeDirectory
    | WriteFile
    | EditResolvConf
    | LinkResolvConf
)

# By the names that the state file gives them.
OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (
        AddLink,
        AddAddress,
        AddRoute,
        AddAlias,
        Redirect,
        SetLinkResolver,
        MakeDirectory,
        WriteFile,
        EditResolvConf,
        LinkResolvConf,
    )
}
