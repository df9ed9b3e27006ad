"""The interfaces and redirections of netsetup, as its state file says and as they are; and who else uses the ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network

from kubetunnel.core.settings import NetworkSettings
from kubetunnel.doctor.verdict import Verdict, fail, ok, skip, warn
from kubetunnel.redirection import mending_what_outlived, setting_up
from netsetup.errors import NetsetupError, StateError
from netsetup.found import Found, FoundLink, Network, claim_on, without
from netsetup.machine import find
from netsetup.privileges import as_root
from netsetup.state import DEFAULT_STATE, State, read_state
from netsetup.status import Status, status, told_of_outlived
from netsetup.way_out import left_behind

INTERFACES, RANGES = "interfaces", "virtual IP ranges"
UP = setting_up()
# of OpenVPN, WireGuard, PPP, macOS, Tailscale, Cisco and Palo Alto
_VPN_LINK = re.compile(r"\b(tun|tap|wg|ppp|utun|tailscale|cscotun|gpd)\w*\b")


def judge_interfaces(found: Status, strangers: Sequence[FoundLink], lost: StateError | None = None) -> Verdict:
    """What netsetup made.

    Args:
        strangers: links that bear the names it would use, though nothing is set up.
        lost: tells of what netsetup has made, but has no record of any more.
    """
    record = found.record
    if record is None:
        if lost is not None:
            return warn(INTERFACES, lost.detail, lost.command or as_root("netsetup", "down"))
        if strangers:
            return warn(
                INTERFACES,
                f"somebody else has a link {strangers[0].name}: netsetup needs another name",
                setting_up("--dns-link", "kt-dns0", "--proxy-link", "kt-proxy0"),
            )
        return skip(INTERFACES, "not set up (netsetup up was not run)", UP)
    if found.outlived:
        return fail(INTERFACES, told_of_outlived(found.outlived, record), mending_what_outlived())
    missing = [piece.step.text for piece in found.pieces if piece.found is False]
    if not record.complete:
        return fail(INTERFACES, "netsetup up or down was cut in the middle", as_root("netsetup", "down"))
    if missing:
        return fail(INTERFACES, f"missing: {'; '.join(missing)}", UP)
    if found.conflicts:
        return fail(INTERFACES, "; ".join(found.conflicts), f"{UP}    (with other --ip-ranges)")
    unseen = sum(piece.found is None for piece in found.pieces)
    hidden = f" ({unseen} that only root can see)" if unseen else ""
    return ok(INTERFACES, f"{len(found.pieces)} pieces of netsetup are there{hidden}")


def judge_ranges(ranges: Sequence[Network], found: Found) -> Verdict:
    """Whether anybody else has a part of the ranges; netsetup's own are to be left out of `found`."""
    claims = {prefix: claim for prefix in ranges if (claim := claim_on(prefix, found))}
    if not claims:
        return ok(RANGES, f"{', '.join(map(str, ranges))}: nobody else's")
    taken = "; ".join(f"{prefix} is taken by {claim}" for prefix, claim in claims.items())
    if any(_VPN_LINK.search(claim) for claim in claims.values()):
        taken += " (a VPN)"
    mend = f"{UP} --ip-ranges 10.201.0.0/24,10.202.0.0/24    (or others that are nobody's)"
    if len(claims) == len(ranges):
        return fail(RANGES, taken, mend)
    return warn(RANGES, f"{taken}: the other is used", mend)


def check_network(wanted: NetworkSettings) -> list[Verdict]:
    """Interfaces and ranges: those that are set up, else those that would be. Needs no rights. Blocks for some ms."""
    try:
        found, looked = find(), status()
    except NetsetupError as e:
        return [fail(INTERFACES, e.detail, e.command or as_root("netsetup", "status"))]
    record = looked.record
    rest = without(found, record.operations) if record else found
    names = {wanted.dns_interface.name, wanted.proxy_interface.name}
    strangers = [link for link in rest.links if link.name in names]
    lost = None if record else left_behind(DEFAULT_STATE)
    ranges = record.wanted.ip_ranges if record else tuple(ip_network(text) for text in wanted.ip_ranges)
    return [judge_interfaces(looked, strangers, lost), judge_ranges(ranges, rest)]


def set_up() -> State | None:
    """What netsetup has made; None where there is nothing, or nothing that can be relied upon."""
    try:
        return read_state()
    except NetsetupError:
        return None  # `check_network` tells of it
