"""The network as wanted, the network as found -> the steps between. Pure.

The order is that of use: what names point to is there before a resolver is pointed at it, and undoing goes backwards.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from kubetunnel.core.names import TUNNEL_NAME
from netsetup.errors import LinkTakenError, StepError
from netsetup.found import Found, FoundLink
from netsetup.layout import Layout, Wanted, reverse_zones
from netsetup.operations import (
    AddAddress,
    AddAlias,
    AddLink,
    AddRoute,
    EditResolvConf,
    LinkResolvConf,
    MakeDirectory,
    Operation,
    Redirect,
    SetLinkResolver,
    WriteFile,
    link_mac,
)
from netsetup.resolv_conf import search_list

RESOLV_CONF = "/etc/resolv.conf"
RESOLVED_DIRECTORY = "/run/systemd/resolve"
STUB_FILE = "stub-resolv.conf"  # names systemd-resolved itself; beside it, resolv.conf names the servers that it asks
RESOLVER_DIRECTORY = "/etc/resolver"  # resolver(5) of macOS
DNSMASQ_FILE = "/etc/NetworkManager/dnsmasq.d/kube-tunnel.conf"
# makes NetworkManager start its dnsmasq again, which reads its files at the start only
RELOAD_NETWORK_MANAGER = ("nmcli", "general", "reload", "dns-full")
HEADING = "# Made by kube-tunnel (netsetup up); `netsetup down` removes it.\n"


def plan(wanted: Wanted, layout: Layout, found: Found) -> tuple[Operation, ...]:
    """The steps from `found` to `layout`, in order.

    Raises:
        LinkTakenError: there is a link of a wanted name already.
        StepError: nothing here can redirect.
    """
    return (*_addresses(wanted, layout, found), *_resolver(wanted, layout, found))


def notes(wanted: Wanted, layout: Layout, found: Found) -> tuple[str, ...]:
    """What the user should know of the plan, in words."""
    kind = found.resolver.kind
    told = list(layout.skipped)
    if layout.dns_port != wanted.dns_port:
        told.append(
            f"UDP port {wanted.dns_port} is another program's (mDNS?), so the DNS server's is {layout.dns_port}"
        )
    if wanted.search is not None and kind in ("NetworkManager", "resolver-directory"):
        told.append(f"the search list is left as it is ({kind}): short names do not resolve by --search")
    if kind == "resolv.conf" and found.resolver.asks_all_at_once:
        told.append("musl asks all nameservers at once, so ours is the only one: nothing resolves while no tunnel runs")
    return tuple(told)


def _addresses(wanted: Wanted, layout: Layout, found: Found) -> tuple[Operation, ...]:
    if found.aliases:
        return tuple(AddAlias(str(address.ip)) for address in (layout.dns_address, layout.proxy_address))
    for name, option in ((wanted.dns_link, "--dns-link"), (wanted.proxy_link, "--proxy-link")):
        for link in found.links:
            if link.name == name:
                raise _taken(link, option)
    if found.redirector is None:
        raise StepError("Neither nft nor iptables is on the PATH. Install nftables.")
    links = ((wanted.dns_link, layout.dns_address), (wanted.proxy_link, layout.proxy_address))
    resolved_link = wanted.dns_link if found.resolver.kind == "systemd-resolved" else None
    return (
        *(AddLink(name, link_mac(name), carrier=name == resolved_link) for name, _ in links),
        *(AddAddress(name, str(address)) for name, address in links),
        *(AddRoute(wanted.proxy_link, str(prefix), str(layout.proxy_address.ip)) for prefix in layout.ranges),
        Redirect(
            program=found.redirector,
            ranges=tuple(map(str, layout.ranges)),
            dns_ip=str(layout.dns_address.ip),
            proxy_ip=str(layout.proxy_address.ip),
            port=wanted.port,
            dns_port=layout.dns_port,
            forwarded=wanted.forwarded,
        ),
    )


def _taken(link: FoundLink, option: str) -> LinkTakenError:
    if link.mac == link_mac(link.name):
        return LinkTakenError(
            f"There is a link {link.name} already: netsetup has made it, but has no record of it any more. Remove it.",
            command=f"sudo ip link delete {link.name}",
        )
    setting = "network.dns_interface.name" if option == "--dns-link" else "network.proxy_interface.name"
    return LinkTakenError(
        f"There is a link {link.name} already, which netsetup has not made. Choose another name: {option} NAME (in the "
        f"tunnel's settings {setting}).",
        command=f"ip address show {link.name}",
    )


def _resolver(wanted: Wanted, layout: Layout, found: Found) -> tuple[Operation, ...]:
    dns_ip = str(layout.dns_address.ip)
    zones = tuple(dict.fromkeys([*(zone.lower().removesuffix(".") for zone in wanted.zones), TUNNEL_NAME]))
    zones += tuple(reverse for prefix in layout.ranges for reverse in reverse_zones(prefix))
    resolver, search = found.resolver, search_domains(wanted)
    match resolver.kind:
        case "systemd-resolved":
            # a domain without `~` is searched, and asked there as well
            domains = tuple(dict.fromkeys([*search, *(f"~{zone}" for zone in zones if zone not in search)]))
            ask_resolved = () if resolver.bypass is None else (_to_the_stub(resolver.bypass),)
            return (SetLinkResolver(wanted.dns_link, dns_ip, domains), *ask_resolved)
        case "NetworkManager":
            lines = HEADING + "".join(f"server=/{zone}/{dns_ip}\n" for zone in zones)
            return _file(found, DNSMASQ_FILE, lines, RELOAD_NETWORK_MANAGER)
        case "resolver-directory":
            # nothing redirects port 53 there, so the server is named where it listens
            lines = HEADING + f"nameserver 127.0.0.1\nport {layout.dns_port}\n"
            steps = [_file(found, f"{RESOLVER_DIRECTORY}/{zone}", lines) for zone in zones]
            return tuple(dict.fromkeys(step for each in steps for step in each))
        case _:
            before = resolver.resolv_conf
            if search and resolver.domain and search_list(before) is None:
                search = (resolver.domain, *search)
            alone = resolver.asks_all_at_once
            return (EditResolvConf(RESOLV_CONF, resolver.real, dns_ip, before, search, alone=alone),)


def _to_the_stub(link: str) -> LinkResolvConf:
    """`link` relative or not; through other links, absolute."""
    stub = f"{RESOLVED_DIRECTORY}/{STUB_FILE}"
    direct = link.endswith(f"{RESOLVED_DIRECTORY}/resolv.conf")
    return LinkResolvConf(RESOLV_CONF, str(PurePosixPath(link).with_name(STUB_FILE)) if direct else stub, link)


def search_domains(wanted: Wanted) -> tuple[str, ...]:
    """As the kubelet writes them into a pod's resolv.conf: `api`, `api.shop` and `api.shop.svc` are then found."""
    if wanted.search is None:
        return ()
    zone = wanted.zones[0].lower().removesuffix(".")
    return f"{wanted.search}.svc.{zone}", f"svc.{zone}", zone


def _file(found: Found, path: str, content: str, reload: tuple[str, ...] = ()) -> tuple[Operation, ...]:
    directory = str(PurePosixPath(path).parent)
    before = found.resolver.files.get(path)
    make = () if directory in found.resolver.directories else (MakeDirectory(directory),)
    return (*make, WriteFile(path, content.encode(), before, reload))
