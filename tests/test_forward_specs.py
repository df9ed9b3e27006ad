"""What people type for a local forward."""

from __future__ import annotations

import pytest

from kubetunnel.core.local_forward import Kind, ObjectRef, PortPair
from kubetunnel.forward_specs import ForwardSpec, parse_addresses, parse_entry, parse_forward, parse_pair


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("svc/api", Kind.SERVICE),
        ("Service/api", Kind.SERVICE),
        ("services/api", Kind.SERVICE),
        ("api", Kind.POD),
        ("po/api", Kind.POD),
        ("deploy/api", Kind.DEPLOYMENT),
        ("deployment.apps/api", Kind.DEPLOYMENT),
        ("sts/api", Kind.STATEFUL_SET),
        ("rs/api", Kind.REPLICA_SET),
        ("ds/api", Kind.DAEMON_SET),
        ("job/api", Kind.JOB),
    ],
)
def test_kinds_by_kubectls_names(target: str, kind: Kind) -> None:
    assert parse_forward(target, ["80"], "shop").ref == ObjectRef(kind, "shop", "api")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("5432", PortPair(None, 5432)),
        ("http", PortPair(None, "http")),
        ("8080:80", PortPair(8080, 80)),
        ("8080:http", PortPair(8080, "http")),
        (":80", PortPair(0, 80)),
        ("0:80", PortPair(0, 80)),
        ("tcp-7", PortPair(None, "tcp-7")),
    ],
)
def test_ports(text: str, pair: PortPair) -> None:
    assert parse_pair(text) == pair


@pytest.mark.parametrize("text", ["", "0", "65536", "80:", "a:80", "-1", "80:80:80", "7--7", "toolongaportname", "٣"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        parse_pair(text)


@pytest.mark.parametrize("target", ["cm/api", "svc/", "svc/Api", "/api", "a/b/c", ""])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(ValueError, match=r"none of|cannot be a name"):
        parse_forward(target, ["80"])


def test_a_port_is_needed() -> None:
    with pytest.raises(ValueError, match="give a port"):
        parse_forward("svc/api", [])


def test_entries_of_the_setting() -> None:
    pairs = (PortPair(None, 5432), PortPair(8080, "http"))
    expected = ForwardSpec(ObjectRef(Kind.SERVICE, "shop", "api"), pairs)
    assert parse_entry("svc/api -n shop 5432 8080:http") == expected
    assert parse_entry("--namespace shop svc/api 5432 8080:http") == expected
    assert parse_entry("svc/api 80").in_namespace("mine").ref.namespace == "mine"
    assert expected.in_namespace("mine").ref.namespace == "shop"


@pytest.mark.parametrize("entry", ["", "svc/api", "svc/api 80 -n", "svc/api 'x", "-n shop"])
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match=r"KIND/NAME|give a port|wants a namespace|No closing quotation"):
        parse_entry(entry)


def test_addresses() -> None:
    assert parse_addresses(["localhost"]) == ("127.0.0.1", "::1")
    assert parse_addresses(["localhost,127.0.0.2", "::1"]) == ("127.0.0.1", "::1", "127.0.0.2")
    with pytest.raises(ValueError, match="'example' is neither"):
        parse_addresses(["example"])
