"""Links, addresses and routes of Linux, by rtnetlink. The only import of pyroute2; its errors become ours here."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netsetup.errors import StepError
from netsetup.found import FoundLink, FoundRoute
from netsetup.operations import AddAddress, AddLink, AddRoute, link_mac

# linux/rtnetlink.h, linux/if_addr.h
RT_SCOPE_LINK = 253
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200
RT_TABLE_LOCAL = 255
RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 3, 4, 5

# a dummy has a carrier and nothing else; some kernels are built without it
LINK_KINDS = ("dummy", "bridge")

_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


def find_links() -> tuple[FoundLink, ...]:
    """All links with their addresses."""
    with _netlink("links") as netlink:
        addresses: dict[int, list[Any]] = {}
        for each in netlink.get_addr():
            # on a point-to-point link IFA_ADDRESS is the other side
            address = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
            addresses.setdefault(each["index"], []).append(ip_interface(f"{address}/{each['prefixlen']}"))
        return tuple(
            FoundLink(
                link.get_attr("IFLA_IFNAME"),
                link.get_attr("IFLA_ADDRESS") or "",
                tuple(addresses.get(link["index"], ())),
            )
            for link in netlink.get_links()
        )


def find_routes() -> tuple[FoundRoute, ...]:
    """The routes of all tables but the kernel's own for local addresses, which are the links' addresses once more."""
    with _netlink("routes") as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        return tuple(
            FoundRoute(_prefix(route), names.get(route.get_attr("RTA_OIF")))
            for route in netlink.get_routes()
            if route.get_attr("RTA_TABLE") != RT_TABLE_LOCAL
            and route["type"] not in (RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST)
        )


def add_link(step: AddLink) -> str:
    """Makes the link and sets it up; gives the kind that the kernel has."""
    with _netlink(step.text) as netlink:
        for kind in LINK_KINDS:
            try:
                netlink.link("add", ifname=step.name, kind=kind, address=step.mac)
            except NetlinkError as e:
                if e.code != errno.EOPNOTSUPP or kind == LINK_KINDS[-1]:
                    raise
                continue
            break
        index = _index(netlink, step.name)
        netlink.link("set", index=index, state="up")
        if kind == "bridge" and step.carrier:
            peer = f"{step.port}b"
            netlink.link("add", ifname=step.port, kind="veth", address=link_mac(step.port), peer={"ifname": peer})
            netlink.link("set", index=_index(netlink, step.port), master=index, state="up")
            netlink.link("set", ifname=peer, state="up")
        return kind


def remove_link(step: AddLink) -> bool:
    """Deletes our link, with its addresses and routes; False where it is gone, or one of the same name is not ours."""
    ours = {(step.name, step.mac), (step.port, link_mac(step.port))}
    with _netlink(step.text) as netlink:
        found = [
            link["index"]
            for link in netlink.get_links()
            if (link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_ADDRESS")) in ours
        ]
        for index in found:
            netlink.link("del", index=index)
        return bool(found)


def add_address(step: AddAddress) -> None:
    address = ip_interface(step.address)
    with _netlink(step.text) as netlink:
        netlink.addr(
            "add",
            index=_index(netlink, step.link),
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            # nobody else is on the link whose address could be the same
            flags=IFA_F_NOPREFIXROUTE | (IFA_F_NODAD if address.version == 6 else 0),
        )


def remove_address(step: AddAddress) -> bool:
    """False where it is gone."""
    address = ip_interface(step.address)
    with _netlink(step.text) as netlink, _gone_is_fine() as removal:
        netlink.addr(
            "del", index=_index(netlink, step.link), address=str(address.ip), prefixlen=address.network.prefixlen
        )
        removal.done = True
    return removal.done


def add_route(step: AddRoute) -> None:
    with _netlink(step.text) as netlink:
        netlink.route("add", **_route(netlink, step))


def remove_route(step: AddRoute) -> bool:
    """False where it is gone."""
    with _netlink(step.text) as netlink, _gone_is_fine() as removal:
        netlink.route("del", **_route(netlink, step))
        removal.done = True
    return removal.done


class _Removal:
    """Whether there was something to remove."""

    done = False


@contextmanager
def _gone_is_fine() -> Iterator[_Removal]:
    removal = _Removal()
    try:
        yield removal
    except NetlinkError as e:
        if e.code not in _GONE:
            raise


@contextmanager
def _netlink(what: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as e:
        raise StepError(f"The kernel refuses ({what}): {e.args[-1]}.") from e
    except OSError as e:
        raise StepError(f"The kernel refuses ({what}): {e.strerror or e}.") from e


def _index(netlink: IPRoute, name: str) -> int:
    """Our link of that name: one that a user has made in the place of ours is left alone."""
    for link in netlink.get_links():
        if link.get_attr("IFLA_IFNAME") == name and link.get_attr("IFLA_ADDRESS") == link_mac(name):
            return int(link["index"])
    raise NetlinkError(errno.ENODEV, f"there is no link {name} of ours")


def _route(netlink: IPRoute, step: AddRoute) -> dict[str, Any]:
    fields = {"dst": step.prefix, "oif": _index(netlink, step.link), "prefsrc": step.source}
    if ip_network(step.prefix).version == 4:
        return fields | {"scope": RT_SCOPE_LINK}
    return fields


def _prefix(route: Any) -> Any:
    nothing = "0.0.0.0" if route["family"] == 2 else "::"  # noqa: S104 - the default route's prefix
    return ip_network(f"{route.get_attr('RTA_DST') or nothing}/{route['dst_len']}")
