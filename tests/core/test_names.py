"""core/names.py: the contract's table of names, and what no text may do."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import (
    MAX_NAME_CHARS,
    Name,
    PodAddressName,
    PodName,
    ServiceName,
    SrvName,
    dashed,
    parse_name,
    split_host_port,
)

ZONES = ("cluster.local", "prod.local", "k8s.example.com")
API = ServiceName("api", "shop", "cluster.local")
DB = ServiceName("db", "shop", "cluster.local")
POD_ADDRESS = PodAddressName(IPv4Address("10.244.0.16"), "shop", "cluster.local")


def parse(text: str, *, short_forms: bool = True) -> Name:
    return parse_name(text, zones=ZONES, default_namespace="dev", short_forms=short_forms)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("api.shop.svc.cluster.local", API),
        ("api.shop.svc.cluster.local.", API),
        ("API.Shop.SVC.Cluster.LOCAL", API),
        ("api.shop.svc", API),
        ("api.shop.svc.", API),
        ("api.shop", API),
        ("api", ServiceName("api", "dev", "cluster.local")),
        ("API.", ServiceName("api", "dev", "cluster.local")),
        ("3scale", ServiceName("3scale", "dev", "cluster.local")),
        ("api.svc", ServiceName("api", "svc", "cluster.local")),
        ("svc.svc.svc.cluster.local", ServiceName("svc", "svc", "cluster.local")),
        ("db-0.db.shop.svc.cluster.local", PodName("db-0", DB)),
        ("db-0.db.shop.svc", PodName("db-0", DB)),
        ("10-244-0-16.shop.pod.cluster.local", POD_ADDRESS),
        ("10-244-0-16.shop.pod", POD_ADDRESS),
        ("2001-db8--1.shop.pod.cluster.local", PodAddressName(IPv6Address("2001:db8::1"), "shop", "cluster.local")),
        ("2001-DB8-0-0-0-0-0-1.shop.pod", PodAddressName(IPv6Address("2001:db8::1"), "shop", "cluster.local")),
        ("0--1.shop.pod", PodAddressName(IPv6Address("::1"), "shop", "cluster.local")),
        ("_grpc._tcp.api.shop.svc.cluster.local", SrvName("grpc", "tcp", API)),
        ("_DNS._UDP.api.shop.svc", SrvName("dns", "udp", API)),
        ("_grpc._tcp.api.shop", SrvName("grpc", "tcp", API)),
        ("_grpc._tcp.svc", SrvName("grpc", "tcp", ServiceName("svc", "dev", "cluster.local"))),
        ("api.shop.svc.prod.local", ServiceName("api", "shop", "prod.local")),
        ("api.shop.svc.k8s.example.com", ServiceName("api", "shop", "k8s.example.com")),
        ("db-0.db.shop.svc.prod.local", PodName("db-0", ServiceName("db", "shop", "prod.local"))),
    ],
)
def test_names_of_the_contract(text: str, name: Name) -> None:
    assert parse(text) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "There is no name"),
        (".", "empty label"),
        ("api..shop", "empty label"),
        ("api.shop..", "empty label"),
        (".api", "empty label"),
        ("10.244.0.16", "is an address"),
        ("::1", "is an address"),
        ("[::1]", "is an address"),
        ("fe80::1%eth0", "is an address"),
        ("api:80", "not a label"),
        ("-api.shop", "not a label"),
        ("api-.shop", "not a label"),
        ("a_b.shop", "not a label"),
        ("_api.shop", "not a label"),
        ("api.shop\n", "not a label"),
        ("*.shop", "not a label"),
        ("bücher.shop", "not a label"),
        ("api.shop.svc.\u212aluster.local", "not a label"),  # KELVIN SIGN is k in lower case
        ("a" * 64 + ".shop", "63 characters"),
        ("a." * 127 + "a", "longer than 253"),
        ("localhost", "not the name of a Service"),
        ("www.example.com", "cluster.local, prod.local, k8s.example.com"),
        ("api.shop.svc.evil.com", "zone 'evil.com', which is none of ours"),
        ("api.shop.svc.evil.com", "cluster.local, prod.local, k8s.example.com"),
        ("api.shop.svc.cluster.local.evil.com", "none of ours"),
        ("Kube-Tunnel.internal.", "is the tunnel itself; a Service of that name is kube-tunnel.internal.svc."),
        ("api.shop.svc.notcluster.local", "none of ours"),
        ("api.shop.svc.local", "none of ours"),
        ("api.shop.svc.xprod.local", "none of ours"),
        ("db-0.db.shop", "not the name of a Service"),
        ("cluster.local", "in the zone cluster.local, but names neither"),
        ("api.shop.cluster.local", "SERVICE.NAMESPACE.svc.cluster.local"),
        ("svc.cluster.local", "names neither"),
        ("shop.svc.cluster.local", "names neither"),
        ("a.db-0.db.shop.svc.cluster.local", "names neither"),
        ("10-244-0-256.shop.pod.cluster.local", "names neither"),
        ("api.shop.pod.cluster.local", "names neither"),
        ("10-244-0-16.db.shop.pod.cluster.local", "names neither"),
        ("_grpc._http.api.shop.svc.cluster.local", "names neither"),
        ("_grpc._tcp.db-0.db.shop.svc.cluster.local", "names neither"),
        ("_grpc._tcp.10-0-0-1.shop.pod.cluster.local", "names neither"),
    ],
)
def test_what_is_none_of_ours_says_why(text: str, said: str) -> None:
    with pytest.raises(NotAServiceName) as caught:
        parse(text)
    assert said in caught.value.detail


@pytest.mark.parametrize("text", ["", "10.244.0.16"])
def test_who_gave_no_name_is_shown_where_the_names_are(text: str) -> None:
    with pytest.raises(NotAServiceName) as caught:
        parse(text)
    assert caught.value.command == "kubectl get services --all-namespaces"


@pytest.mark.parametrize("text", ["api.shop.svc", "api.shop", "api", "db-0.db.shop.svc", "10-244-0-16.shop.pod"])
def test_short_forms_can_be_refused(text: str) -> None:
    parse(text)
    with pytest.raises(NotAServiceName):
        parse(text, short_forms=False)
    full = str(parse(text))
    assert str(parse(full, short_forms=False)) == full


def test_a_zone_is_one_whatever_its_case_and_dot() -> None:
    name = parse_name("api.shop.svc.prod.local", zones=["Cluster.Local.", "PROD.local."], default_namespace="dev")
    assert name == ServiceName("api", "shop", "prod.local")
    assert parse_name("api", zones=["Cluster.Local."], default_namespace="dev").zone == "cluster.local"


def test_of_nested_zones_the_longest_that_makes_sense_is_taken() -> None:
    zones = ["example.com", "k8s.example.com"]
    inner = parse_name("api.shop.svc.k8s.example.com", zones=zones, default_namespace="dev")
    outer = parse_name("api.shop.svc.example.com", zones=zones, default_namespace="dev")
    assert (inner.zone, outer.zone) == ("k8s.example.com", "example.com")
    with pytest.raises(NotAServiceName, match=r"in the zone k8s\.example\.com"):
        parse_name("api.shop.k8s.example.com", zones=zones, default_namespace="dev")


def test_a_name_of_a_zone_is_never_taken_for_a_short_one() -> None:
    with pytest.raises(NotAServiceName):
        parse_name("api.local", zones=["local"], default_namespace="dev")


def test_without_a_known_namespace_only_a_service_alone_lacks_it() -> None:
    for text, namespace in [("api", ""), ("api.shop", "shop"), ("db-0.db.shop.svc", "shop"), ("_a._tcp.b.c", "c")]:
        assert parse_name(text, zones=ZONES, default_namespace="").namespace == namespace


def test_a_short_form_that_is_too_long_in_full_is_refused() -> None:
    longest_zone = ".".join(["z" * 63] * 3)
    with pytest.raises(NotAServiceName, match="with its zone is longer"):
        parse_name(f"{'a' * 63}.shop", zones=[longest_zone], default_namespace="dev")


def test_no_zone_at_all_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zone"):
        parse_name("api", zones=[], default_namespace="dev")


def test_an_error_shows_no_password_nor_control_characters() -> None:
    with pytest.raises(NotAServiceName) as caught:
        parse("user:hunter2@api\r\nX-Evil: 1")
    assert "hunter2" not in str(caught.value)
    assert "\r" not in str(caught.value)
    with pytest.raises(NotAServiceName) as caught:
        split_host_port("user:hunter2@api:80")
    assert "hunter2" not in str(caught.value)


labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
zones = st.sampled_from(ZONES)
services = st.builds(ServiceName, labels, labels, zones)
names: st.SearchStrategy[Name] = st.one_of(
    services,
    st.builds(PodName, labels, services),
    st.builds(PodAddressName, st.ip_addresses(), labels, zones),
    st.builds(SrvName, labels.filter(lambda label: len(label) < 63), st.sampled_from(["tcp", "udp", "sctp"]), services),
)


@given(names, st.booleans(), st.sets(st.integers(0, MAX_NAME_CHARS)))
@example(PodAddressName(IPv6Address("::ffff:1.2.3.4"), "shop", "cluster.local"), False, set())
@example(PodAddressName(IPv6Address("fd00::"), "shop", "cluster.local"), False, set())
def test_a_name_is_read_as_it_is_written(name: Name, dot: bool, upper: set[int]) -> None:
    assume(len(str(name)) <= MAX_NAME_CHARS)
    text = "".join(char.upper() if position in upper else char for position, char in enumerate(str(name)))
    assert parse(text + "." * dot, short_forms=False) == name


@given(names)
def test_every_label_of_a_name_is_one_of_rfc_1123_or_2782(name: Name) -> None:
    for label in str(name).split("."):
        assert 1 <= len(label) <= 63
        assert label.isascii()
        assert not label.startswith("-")
        assert not label.endswith("-")


@given(names, labels, labels)
def test_a_foreign_zone_is_never_ours(name: Name, first: str, second: str) -> None:
    foreign = f"{first}.{second}"
    assume(foreign not in ZONES)
    for text in (f"{name}.{foreign}", str(name).removesuffix(name.zone) + foreign):
        with pytest.raises(NotAServiceName):
            parse(text, short_forms=False)


name_like = st.text(st.sampled_from("aZ09-_.:[]@ ésvcpodlt\n\0\u212a"), max_size=40)
junk = st.one_of(
    st.text(),
    name_like,
    st.builds("{}.cluster.local".format, name_like),
    st.builds("{}.svc.cluster.local".format, name_like),
    st.text(st.sampled_from("ab.-"), min_size=200, max_size=400),
)


@given(junk, st.booleans())
def test_junk_is_refused_or_a_name_that_holds(text: str, short_forms: bool) -> None:
    try:
        name = parse(text, short_forms=short_forms)
    except NotAServiceName as e:
        assert e.detail.isprintable()
        assert e.detail.isascii()
    else:
        assert parse(str(name), short_forms=False) == name


@given(st.ip_addresses())
def test_an_address_alone_is_no_name(address: IPv4Address | IPv6Address) -> None:
    with pytest.raises(NotAServiceName, match="is an address"):
        parse(str(address))
    assert ip_address(dashed(address).replace("-", "." if address.version == 4 else ":")) == address


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        ("api.shop", "api.shop", None),
        ("api.shop:8080", "api.shop", 8080),
        ("API.shop.:1", "API.shop.", 1),
        ("api:", "api", None),
        ("api:0080", "api", 80),
        ("api:65535", "api", 65535),
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("[::1]", "::1", None),
        ("[::1]:", "::1", None),
        ("[::1]:443", "::1", 443),
        ("[2001:DB8::1]:443", "2001:DB8::1", 443),
    ],
)
def test_host_and_port_are_split(authority: str, host: str, port: int | None) -> None:
    assert split_host_port(authority) == (host, port)


@pytest.mark.parametrize(
    ("authority", "said"),
    [
        ("", "names no host"),
        (":80", "names no host"),
        ("api:0", "not a port"),
        ("api:65536", "not a port"),
        ("api:-1", "not a port"),
        ("api:+1", "not a port"),
        ("api: 80", "not a port"),
        ("api:http", "not a port"),
        ("api:\u0661", "not a port"),
        ("api:" + "9" * 5000, "not a port"),
        ("[::1]:x", "not a port"),
        ("::1", "more than one colon"),
        ("api:80:80", "more than one colon"),
        ("[::1", "not an IPv6 address in brackets"),
        ("[::1]80", "not an IPv6 address in brackets"),
        ("[]:80", "not an IPv6 address in brackets"),
        ("[api]:80", "not an IPv6 address in brackets"),
        ("[10.0.0.1]:80", "not an IPv6 address in brackets"),
        ("user@api", "no user name"),
    ],
)
def test_a_bad_authority_says_what_is_wrong(authority: str, said: str) -> None:
    with pytest.raises(NotAServiceName) as caught:
        split_host_port(authority)
    assert said in caught.value.detail


@given(labels, st.integers(1, 65535))
def test_what_is_joined_is_split_again(host: str, port: int) -> None:
    assert split_host_port(f"{host}:{port}") == (host, port)


@given(st.one_of(junk, st.builds("{}:{}".format, name_like, st.text(max_size=8))))
def test_a_junk_authority_is_refused_or_split(authority: str) -> None:
    try:
        host, port = split_host_port(authority)
    except NotAServiceName as e:
        assert e.detail.isprintable()
    else:
        assert host
        assert port is None or 1 <= port <= 65535
