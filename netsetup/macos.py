"""The addresses and routes of macOS: aliases of `lo0` by ifconfig(8), routes read from netstat(1).

There is no redirection of ports here: the addresses exist, and the tunnel listens on them itself.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from netsetup.found import FoundLink, FoundRoute, Interface, Network
from netsetup.operations import AddAlias
from netsetup.programs import run


def find_aliases() -> tuple[FoundLink, ...]:
    """The interfaces with their addresses."""
    return read_ifconfig(run(("ifconfig", "-a")))


def find_routes() -> tuple[FoundRoute, ...]:
    return read_netstat(run(("netstat", "-rn")))


def add_alias(step: AddAlias) -> None:
    run(alias_command(step, "alias"))


def remove_alias(step: AddAlias) -> bool:
    """False where it is gone."""
    if not has_alias(step):
        return False
    run(alias_command(step, "-alias"))
    return True


def has_alias(step: AddAlias) -> bool:
    wanted = ip_address(step.address)
    return any(address.ip == wanted for link in find_aliases() if link.name == "lo0" for address in link.addresses)


def alias_command(step: AddAlias, what: str) -> tuple[str, ...]:
    if ip_address(step.address).version == 6:
        return ("ifconfig", "lo0", "inet6", step.address, "prefixlen", "128", what)
    if what == "alias":
        return ("ifconfig", "lo0", "alias", step.address, "netmask", "255.255.255.255")
    return ("ifconfig", "lo0", what, step.address)


def read_ifconfig(text: str) -> tuple[FoundLink, ...]:
    """`ifconfig -a` of macOS: names at the line's start, `inet 10.0.0.2 netmask 0xffffff00`, `inet6 … prefixlen 64`."""
    links: dict[str, tuple[str, list[Interface]]] = {}
    name = ""
    for line in text.splitlines():
        words = line.split()
        if words and not line[0].isspace():
            name = words[0].removesuffix(":")
            links[name] = ("", [])
        elif len(words) > 1 and words[0] == "ether":
            links[name] = (words[1], links[name][1])
        elif "netmask" in words[:-1] and words[0] == "inet":
            bits = int(words[words.index("netmask") + 1], 16).bit_count()
            links[name][1].append(ip_interface(f"{words[1]}/{bits}"))
        elif "prefixlen" in words[:-1] and words[0] == "inet6":
            length = words[words.index("prefixlen") + 1]
            links[name][1].append(ip_interface(f"{words[1].partition('%')[0]}/{length}"))
    return tuple(FoundLink(name, mac, tuple(addresses)) for name, (mac, addresses) in links.items())


def read_netstat(text: str) -> tuple[FoundRoute, ...]:
    """`netstat -rn` of macOS, which cuts zero octets off (`10.8/24`, `169.254`, `192.168.1`)."""
    routes = []
    column = None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["Destination"]:
            column = words.index("Netif") if "Netif" in words else None
        elif column is not None and len(words) > column and (prefix := _prefix(words[0])) is not None:
            routes.append(FoundRoute(prefix, words[column]))
    return tuple(routes)


def _prefix(text: str) -> Network | None:
    if text == "default":
        return None  # claims no range
    host, _, length = text.partition("/")
    host = host.partition("%")[0]
    if ":" not in host:
        octets = host.split(".")
        length = length or str(8 * len(octets))
        host = ".".join([*octets, *["0"] * (4 - len(octets))])
    try:
        return ip_network(f"{host}/{length or 128}", strict=False)
    except ValueError:
        return None  # a link-layer address, `link#5`
