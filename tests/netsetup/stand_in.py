"""Stands in for the tunnel and its DNS server inside a test's namespace: says where each connection wanted to go.

`stand_in.py PORT DNS_PORT [HOST]`; prints `ready`. HTTP is answered with `ADDRESS:PORT` as the body, any other first
bytes with the same in Redis' form; each DNS question with one A record.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import sys
import threading

from dnslib import QTYPE, RR, A, DNSRecord

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same number


def original_destination(connection: socket.socket) -> str:
    if connection.family == socket.AF_INET6 and not connection.getpeername()[0].startswith("::ffff:"):
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        return f"[{socket.inet_ntop(socket.AF_INET6, raw[8:24])}]:{struct.unpack_from('!H', raw, 2)[0]}"
    raw = connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
    return f"{socket.inet_ntoa(raw[4:8])}:{struct.unpack_from('!H', raw, 2)[0]}"


class Tunnel(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        first = self.request.recv(65536)
        said = original_destination(self.request).encode()
        if first.startswith(b"GET "):
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(said)
            self.request.sendall(head + said)
        else:
            self.request.sendall(b"+" + said + b"\r\n")


def answer(question: bytes) -> bytes:
    asked = DNSRecord.parse(question)
    reply = asked.reply()
    reply.add_answer(RR(asked.q.qname, QTYPE.A, rdata=A("10.8.0.77"), ttl=5))
    return bytes(reply.pack())


class DnsOverUdp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        question, sock = self.request
        sock.sendto(answer(question), self.client_address)


class DnsOverTcp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        length = struct.unpack("!H", self.request.recv(2))[0]
        reply = answer(self.request.recv(length))
        self.request.sendall(struct.pack("!H", len(reply)) + reply)


class Threaded(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class Threaded6(Threaded):
    address_family = socket.AF_INET6


def main() -> None:
    port, dns_port = map(int, sys.argv[1:3])
    host = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
    servers = [
        Threaded((host, port), Tunnel),
        Threaded6(("::1", port), Tunnel),
        Threaded(("127.0.0.1", dns_port), DnsOverTcp),
        socketserver.UDPServer(("127.0.0.1", dns_port), DnsOverUdp),
    ]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
