"""What macOS' ifconfig(8) and netstat(1) print, and the commands for aliases."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from netsetup.found import FoundLink, FoundRoute
from netsetup.macos import alias_command, read_ifconfig, read_netstat
from netsetup.operations import AddAlias

IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
\tnd6 options=201<PERFORMNUD,DAD>
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 88:66:5a:00:00:01
\tinet 192.168.1.20 netmask 0xffffff00 broadcast 192.168.1.255
\tstatus: active
utun4: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
\tinet 10.8.0.6 --> 10.8.0.5 netmask 0xffffffff
"""

NETSTAT = """\
Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.1.1        UGScg                 en0
10.8/24            10.8.0.5           UGSc                utun4
127                127.0.0.1          UCS                   lo0
192.168.1          link#11            UCS                   en0      !
192.168.1.1/32     link#11            UCS                   en0      !
128.0/1            10.8.0.5           UGSc                utun4

Internet6:
Destination                             Gateway                         Flags         Netif Expire
default                                 fe80::%utun0                    UGcIg         utun0
::1                                     ::1                             UHL             lo0
fe80::%lo0/64                           fe80::1%lo0                     UcI             lo0
fd00:8::/64                             link#20                         UC            utun4
"""


def test_ifconfig() -> None:
    assert read_ifconfig(IFCONFIG) == (
        FoundLink("lo0", "", tuple(map(ip_interface, ("127.0.0.1/8", "::1/128", "fe80::1/64")))),
        FoundLink("en0", "88:66:5a:00:00:01", (ip_interface("192.168.1.20/24"),)),
        FoundLink("utun4", "", (ip_interface("10.8.0.6/32"),)),
    )


def test_netstat() -> None:
    assert read_netstat(NETSTAT) == tuple(
        FoundRoute(ip_network(prefix), link)
        for prefix, link in (
            ("10.8.0.0/24", "utun4"),
            ("127.0.0.0/8", "lo0"),
            ("192.168.1.0/24", "en0"),
            ("192.168.1.1/32", "en0"),
            ("128.0.0.0/1", "utun4"),
            ("::1/128", "lo0"),
            ("fe80::/64", "lo0"),
            ("fd00:8::/64", "utun4"),
        )
    )


def test_aliases() -> None:
    step = AddAlias("10.8.0.1")
    assert alias_command(step, "alias") == ("ifconfig", "lo0", "alias", "10.8.0.1", "netmask", "255.255.255.255")
    assert alias_command(step, "-alias") == ("ifconfig", "lo0", "-alias", "10.8.0.1")
    six = alias_command(AddAlias("fd00:8::1"), "alias")
    assert six == ("ifconfig", "lo0", "inet6", "fd00:8::1", "prefixlen", "128", "alias")
