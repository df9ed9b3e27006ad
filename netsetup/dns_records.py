"""DNS questions and answers as data (RFC 1035 3.2, RFC 2782, RFC 3596), without a packet's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

type Address = IPv4Address | IPv6Address

CLASS_IN = 1


class RecordType(IntEnum):
    """The types that have a meaning here (IANA, DNS parameters); a question may have any number."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    TXT = 16
    AAAA = 28
    SRV = 33
    IXFR = 251
    AXFR = 252
    ANY = 255


class Rcode(IntEnum):
    """RFC 1035 4.1.1, RFC 6891 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """`labels` in the case that they came in; each character is an octet (a label may hold any, RFC 2181 11)."""

    labels: tuple[str, ...]
    type: int
    class_: int = CLASS_IN

    @property
    def text(self) -> str:
        """A dot within a label, which makes it another name, is written as in a zone file (RFC 1035 5.1)."""
        return ".".join(label.replace(".", "\\046") for label in self.labels)

    @property
    def name(self) -> str:
        """For comparing: lower-case, ASCII letters alone (RFC 4343 3)."""
        return self.text.encode("latin-1").lower().decode("latin-1")


@dataclass(frozen=True, slots=True)
class Srv:
    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Soa:
    """RFC 1035 3.3.13. There are no secondary servers, so serial and timers mean nothing; CoreDNS's timers."""

    name_server: str
    mailbox: str
    minimum_s: int
    serial: int = 1
    refresh_s: int = 7200
    retry_s: int = 1800
    expire_s: int = 86400


@dataclass(frozen=True, slots=True)
class Record:
    """`data`: an address, a name (CNAME, NS, PTR) or text (TXT), Srv, Soa."""

    name: str
    type: RecordType
    ttl_s: int
    data: Address | str | Srv | Soa


@dataclass(frozen=True, slots=True)
class Answer:
    """An authoritative answer, section by section."""

    rcode: Rcode = Rcode.NOERROR
    records: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
