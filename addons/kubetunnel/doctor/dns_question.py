"""One DNS question to one server (RFC 1035 4.1), and one to the system's resolver, both with an end to the waiting.

The question is for the name of the zone's own name server, `ns.dns.ZONE` (the Kubernetes DNS specification's record of
the zone's apex): it needs no cluster and no Service.
"""

from __future__ import annotations

import secrets
import socket
import struct
import subprocess
import sys

ANSWER_TIMEOUT_S = 1.0  # a server on this machine
SYSTEM_TIMEOUT_S = 4.0  # resolv.conf(5): 5 s an attempt; a zone that is routed to us is answered at once

_A, _IN = 1, 1
_RECURSION_DESIRED = 0x0100
_RESPONSE, _AUTHORITATIVE, _RCODE = 0x8000, 0x0400, 0x000F

_RESOLVE = """\
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], None, socket.AF_INET, socket.SOCK_STREAM)
except socket.gaierror:
    sys.exit(1)
print(*{sockaddr[0] for *_, sockaddr in found})
"""


def own_name(zone: str) -> str:
    return f"ns.dns.{zone}"


def dns_server_answers(host: str, port: int, zone: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Whether a server there has authority over the zone. Blocks for up to `timeout_s`."""
    question = _question(own_name(zone))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(timeout_s)
            asking.connect((host, port))
            asking.send(question)
            answer = asking.recv(4096)
    except OSError:
        return False
    if len(answer) < 12 or answer[:2] != question[:2]:
        return False
    flags, _, answers = struct.unpack_from("!HHH", answer, 2)
    return bool(flags & _RESPONSE and flags & _AUTHORITATIVE and not flags & _RCODE and answers)


def resolve(name: str, *, timeout_s: float = SYSTEM_TIMEOUT_S) -> tuple[str, ...]:
    """IPv4 addresses as every program on this machine gets them; none where there is no such name, or no answer.

    In a process of its own, since getaddrinfo(3) cannot be given up. Blocks for up to `timeout_s`.
    """
    command = [sys.executable, "-I", "-S", "-c", _RESOLVE, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return ()
    return tuple(sorted(done.stdout.split()))


def _question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("ascii").split(b"."))
    head = struct.pack("!HHHHHH", secrets.randbits(16), _RECURSION_DESIRED, 1, 0, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", _A, _IN)
