"""One DNS question to one server, and one to the system's resolver, both with an end to the waiting.

The server is asked for the zone's SOA, the system for the address of the zone's own name server, `ns.dns.ZONE` (the
Kubernetes DNS specification's record of the zone's apex): neither needs a cluster or a Service.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys

from netsetup.dns_packing import pack_question
from netsetup.dns_records import Rcode, RecordType
from netsetup.dns_wire import AA, EDNS_UDP_BYTES, is_reply, rcode_of

ANSWER_TIMEOUT_S = 1.0  # a server on this machine
SYSTEM_TIMEOUT_S = 4.0  # resolv.conf(5): 5 s an attempt; a zone that is routed to us is answered at once

_RESOLVE = """\
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)
except socket.gaierror:
    sys.exit(1)
print(*{sockaddr[0] for *_, sockaddr in found})
"""


def own_name(zone: str) -> str:
    return f"ns.dns.{zone}"


def dns_server_answers(host: str, port: int, zone: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Whether a server there has authority over the zone. Blocks for up to `timeout_s`."""
    question = secrets.token_bytes(2) + pack_question(zone.split("."), RecordType.SOA)[2:]
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(timeout_s)
            asking.connect((host, port))
            asking.send(question)
            answer = asking.recv(EDNS_UDP_BYTES)
    except OSError:
        return False
    if not is_reply(answer, question) or rcode_of(answer) != Rcode.NOERROR:
        return False
    flags, answers = int.from_bytes(answer[2:4]), int.from_bytes(answer[6:8])
    return bool(flags & AA and answers)


def resolve(name: str, *, timeout_s: float = SYSTEM_TIMEOUT_S) -> tuple[str, ...]:
    """Addresses as every program on this machine gets them; none where there is no such name, or no answer.

    In a process of its own, since getaddrinfo(3) cannot be given up. Blocks for up to `timeout_s`.
    """
    command = [sys.executable, "-I", "-S", "-c", _RESOLVE, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return ()
    return tuple(sorted(done.stdout.split()))
