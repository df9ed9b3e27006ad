"""The environments and the files that a command gets, as data."""

from __future__ import annotations

from kubetunnel.run_command.isolation import nsswitch_conf, resolv_conf
from kubetunnel.run_command.variables import through_proxy, trusting, without_proxy

PRESENT = {"PATH": "/bin", "HTTP_PROXY": "http://corp:3128", "no_proxy": "a.com, 127.0.0.1", "NO_PROXY": "ignored"}


def test_through_proxy() -> None:
    found = through_proxy(PRESENT, "127.0.0.1:9", ["b.com"])
    exempt = "localhost,127.0.0.1,::1,b.com,a.com"
    assert found == {
        "PATH": "/bin",
        **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("all_proxy", "ALL_PROXY"), "socks5h://127.0.0.1:9"),
        **dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy"), exempt),
        "NODE_USE_ENV_PROXY": "1",
    }


def test_no_proxy_in_capitals_counts_where_there_is_no_other() -> None:
    assert through_proxy({"NO_PROXY": "x"}, "h:1")["no_proxy"].endswith(",x")


def test_without_proxy() -> None:
    assert without_proxy(through_proxy(PRESENT, "127.0.0.1:9")) == {"PATH": "/bin"}


def test_trusting() -> None:
    found = trusting({"PATH": "/bin", "SSL_CERT_FILE": "/usual"}, "/bundle")
    assert found.pop("PATH") == "/bin"
    assert set(found.values()) == {"/bundle"}
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} <= set(found)


def test_resolv_conf() -> None:
    assert resolv_conf("shop", "prod.local") == (
        "nameserver 127.0.0.53\nsearch shop.svc.prod.local svc.prod.local prod.local\noptions ndots:5\n"
    )


def test_nsswitch_conf() -> None:
    present = "passwd: files\n  hosts: files mdns4_minimal [NOTFOUND=return] resolve dns\nnetworks: files\n"
    assert nsswitch_conf(present) == "passwd: files\nnetworks: files\nhosts: files dns\n"
