"""Redirection of virtual IPs to the tunnel: nftables in a table of our own, iptables where there is no nft.

The nat hook of OUTPUT changes the destination to loopback before the packet leaves, and conntrack keeps the first one,
which the tunnel reads with SO_ORIGINAL_DST. Only our own ranges are matched: what the tunnel sends to the API server
never comes back to it. IP forwarding is not touched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from netsetup.operations import Redirect
from netsetup.programs import find_program, run

FAMILY, TABLE = "inet", "kube_tunnel"
CHAIN = "KUBE_TUNNEL"  # iptables
# netfilter's places: destination NAT, and filtering after it (linux/netfilter_ipv4.h)
PRIORITY_DSTNAT, PRIORITY_FILTER = -100, 0
XTABLES_LOCK_WAIT_S = 5


def find_redirector() -> str | None:
    """nft, else iptables, else None."""
    return next((name for name in ("nft", "iptables") if find_program(name)), None)


def add_redirect(step: Redirect) -> None:
    """Puts the rules in place, in one transaction a table; rules of ours from before are replaced."""
    if step.program == "nft":
        run(("nft", "-j", "-f", "-"), stdin=json.dumps(nft_ruleset(step)))
        return
    remove_redirect(step)
    for table, rules in iptables_rules(step).items():
        lines = [f"*{table}", f":{CHAIN} - [0:0]", *rules, "COMMIT", ""]
        run(_restore(step), stdin="\n".join(lines))


def remove_redirect(step: Redirect) -> bool:
    """Takes our rules away; False where there were none."""
    if step.program == "nft":
        if not _nft_tables():
            return False
        run(("nft", "delete", "table", FAMILY, TABLE))
        return True
    removed = False
    for table in ("filter", "nat"):
        # jumps to the chain first, then the chain
        listed = _iptables_listed(step, table)
        removals = [f"-D {rule.removeprefix('-A ')}" for rule in listed if rule.endswith(f" -j {CHAIN}")]
        if f"-N {CHAIN}" in listed:
            removals += [f"-F {CHAIN}", f"-X {CHAIN}"]
        if removals:
            run(_restore(step), stdin="\n".join([f"*{table}", *removals, "COMMIT", ""]))
            removed = True
    return removed


def has_redirect(step: Redirect) -> bool:
    """Whether all of our rules are in place (by number: nobody else writes in our table)."""
    if step.program == "nft":
        if not _nft_tables():
            return False
        listed = json.loads(run(("nft", "-j", "list", "table", FAMILY, TABLE)))["nftables"]
        return _count_rules(listed) == _count_rules([each.get("add", {}) for each in nft_ruleset(step)["nftables"]])
    for table, rules in iptables_rules(step).items():
        ours = [rule for rule in _iptables_listed(step, table) if rule.split()[1] == CHAIN or rule.endswith(CHAIN)]
        if len(ours) != len(rules) + 1:  # and the chain's own line
            return False
    return True


def nft_ruleset(step: Redirect) -> dict[str, Any]:
    """The transaction for `nft -j -f -` (libnftables-json(5))."""
    table = {"family": FAMILY, "table": TABLE}
    ip = "ip" if ip_address(step.dns_ip).version == 4 else "ip6"
    daddr = {"payload": {"protocol": ip, "field": "daddr"}}
    to_dns, to_own = _is(daddr, step.dns_ip), _is(daddr, {"set": [step.dns_ip, step.proxy_ip]})
    prefixes = [{"prefix": {"addr": str(p.network_address), "len": p.prefixlen}} for p in _tunnelled(step)]
    to_virtual = _is(daddr, {"set": prefixes})
    tcp, udp = (_is({"meta": {"key": "l4proto"}}, name) for name in ("tcp", "udp"))
    redirections = [
        *(
            [to_dns, _is({"payload": {"protocol": p, "field": "dport"}}, 53), _to(step.dns_port)]
            for p in ("udp", "tcp")
        ),
        [to_dns, {"return": None}],
        [to_virtual, tcp, _to(step.port)],
    ]
    # what goes nowhere is refused at once: an HTTP/3 client falls back to TCP without waiting
    refusals = [[to_own, {"return": None}], [to_virtual, udp, {"reject": None}]]
    chains = {"output": ("output", redirections), "refuse": ("output", refusals)}
    if step.forwarded:
        chains |= {"prerouting": ("prerouting", redirections), "refuse_forwarded": ("forward", refusals)}
    commands: list[dict[str, Any]] = [
        # replaces, in the same transaction, what may be left of another run
        {"add": {"table": {"family": FAMILY, "name": TABLE}}},
        {"delete": {"table": {"family": FAMILY, "name": TABLE}}},
        {"add": {"table": {"family": FAMILY, "name": TABLE}}},
    ]
    for name, (hook, rules) in chains.items():
        nat = rules is redirections
        kind = {"type": "nat" if nat else "filter", "prio": PRIORITY_DSTNAT if nat else PRIORITY_FILTER}
        commands.append({"add": {"chain": {**table, "name": name, "hook": hook, "policy": "accept", **kind}}})
        commands += [{"add": {"rule": {**table, "chain": name, "expr": rule}}} for rule in rules]
    return {"nftables": commands}


def iptables_rules(step: Redirect) -> dict[str, list[str]]:
    """The rules of each table, in the form of iptables-restore(8)."""
    hooks, filtered = (["OUTPUT"], ["OUTPUT"])
    if step.forwarded:
        hooks, filtered = (["OUTPUT", "PREROUTING"], ["OUTPUT", "FORWARD"])
    nat = [
        *(
            f"-A {CHAIN} -d {step.dns_ip} -p {p} --dport 53 -j REDIRECT --to-ports {step.dns_port}"
            for p in ("udp", "tcp")
        ),
        f"-A {CHAIN} -d {step.dns_ip} -j RETURN",
        *(f"-A {CHAIN} -d {prefix} -p tcp -j REDIRECT --to-ports {step.port}" for prefix in _tunnelled(step)),
    ]
    refuse = [
        *(f"-A {CHAIN} -d {own} -j RETURN" for own in (step.dns_ip, step.proxy_ip)),
        *(f"-A {CHAIN} -d {prefix} -p udp -j REJECT" for prefix in _tunnelled(step)),
    ]
    return {
        "nat": [*nat, *(f"-I {hook} -j {CHAIN}" for hook in hooks)],
        "filter": [*refuse, *(f"-I {hook} -j {CHAIN}" for hook in filtered)],
    }


def _tunnelled(step: Redirect) -> list[Any]:
    """The virtual ranges, and the proxy's own address where it is in none of them."""
    prefixes = [ip_network(prefix) for prefix in step.ranges]
    if any(ip_address(step.proxy_ip) in prefix for prefix in prefixes):
        return prefixes
    return [*prefixes, ip_network(step.proxy_ip)]


def _is(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _to(port: int) -> dict[str, Any]:
    return {"redirect": {"port": port}}


def _nft_tables() -> bool:
    listed = json.loads(run(("nft", "-j", "list", "tables")))["nftables"]
    return any(
        (each["table"]["family"], each["table"]["name"]) == (FAMILY, TABLE) for each in listed if "table" in each
    )


def _count_rules(listed: Sequence[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in listed:
        if rule := each.get("rule"):
            counts[rule["chain"]] = counts.get(rule["chain"], 0) + 1
    return counts


def _iptables(step: Redirect) -> str:
    return "iptables" if ip_address(step.dns_ip).version == 4 else "ip6tables"


def _restore(step: Redirect) -> tuple[str, ...]:
    return (f"{_iptables(step)}-restore", "--wait", str(XTABLES_LOCK_WAIT_S), "--noflush")


def _iptables_listed(step: Redirect, table: str) -> list[str]:
    return run((_iptables(step), "--wait", str(XTABLES_LOCK_WAIT_S), "-t", table, "-S")).splitlines()
