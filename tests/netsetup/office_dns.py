"""The DNS server of the network that a test's machine is in: knows `www.example.com` alone.

`office_dns.py ADDRESS`, at port 53; prints `ready`.
"""

from __future__ import annotations

import socketserver
import sys

from dnslib import QTYPE, RCODE, RR, A, DNSRecord

KNOWN = "www.example.com."
ADDRESS = "192.0.2.80"


class OverUdp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        question, sock = self.request
        asked = DNSRecord.parse(question)
        reply = asked.reply()
        if str(asked.q.qname).lower() != KNOWN:
            reply.header.rcode = RCODE.NXDOMAIN
        elif asked.q.qtype == QTYPE.A:
            reply.add_answer(RR(asked.q.qname, QTYPE.A, rdata=A(ADDRESS), ttl=5))
        sock.sendto(bytes(reply.pack()), self.client_address)


def main() -> None:
    with socketserver.UDPServer((sys.argv[1], 53), OverUdp) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
