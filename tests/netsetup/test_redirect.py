"""The rules as data: what they match, and that they match nothing else."""

from __future__ import annotations

import pytest

from netsetup.operations import Redirect
from netsetup.redirect import iptables_rules, nft_ruleset

STEP = Redirect("nft", ("10.8.0.0/24",), "10.8.0.1", "172.31.0.9", 8080, 5353, forwarded=False)


def test_the_transaction_replaces_the_table_whole() -> None:
    first = nft_ruleset(STEP)["nftables"][:3]
    assert [next(iter(command)) for command in first] == ["add", "delete", "add"]
    assert all(c["table"] == {"family": "inet", "name": "kube_tunnel"} for command in first for c in command.values())


@pytest.mark.parametrize("forwarded", [False, True])
def test_every_rule_matches_our_addresses_first(forwarded: bool) -> None:
    step = Redirect("nft", STEP.ranges, STEP.dns_ip, STEP.proxy_ip, 8080, 5353, forwarded)
    rules = [c["add"]["rule"] for c in nft_ruleset(step)["nftables"] if "rule" in c.get("add", {})]
    assert len(rules) == (12 if forwarded else 6)
    for rule in rules:
        assert rule["expr"][0]["match"]["left"] == {"payload": {"protocol": "ip", "field": "daddr"}}
    hooks = [c["add"]["chain"]["hook"] for c in nft_ruleset(step)["nftables"] if "chain" in c.get("add", {})]
    assert hooks == ["output", "output", *(["prerouting", "forward"] if forwarded else [])]


def test_iptables() -> None:
    assert iptables_rules(STEP) == {
        "nat": [
            "-A KUBE_TUNNEL -d 10.8.0.1 -p udp --dport 53 -j REDIRECT --to-ports 5353",
            "-A KUBE_TUNNEL -d 10.8.0.1 -p tcp --dport 53 -j REDIRECT --to-ports 5353",
            "-A KUBE_TUNNEL -d 10.8.0.1 -j RETURN",
            "-A KUBE_TUNNEL -d 10.8.0.0/24 -p tcp -j REDIRECT --to-ports 8080",
            "-A KUBE_TUNNEL -d 172.31.0.9/32 -p tcp -j REDIRECT --to-ports 8080",
            "-I OUTPUT -j KUBE_TUNNEL",
        ],
        "filter": [
            "-A KUBE_TUNNEL -d 10.8.0.1 -j RETURN",
            "-A KUBE_TUNNEL -d 172.31.0.9 -j RETURN",
            "-A KUBE_TUNNEL -d 10.8.0.0/24 -p udp -j REJECT",
            "-A KUBE_TUNNEL -d 172.31.0.9/32 -p udp -j REJECT",
            "-I OUTPUT -j KUBE_TUNNEL",
        ],
    }
