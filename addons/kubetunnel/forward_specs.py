"""What people type for a local forward, as for kubectl: `svc/api 5432`, `deploy/api 8080:http`, `api-0 80` (a Pod).

The setting `forwards` has the same in one text an entry: `svc/api -n shop 5432 8080:http`.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kubetunnel.core.local_forward import Kind, ObjectRef, PortPair
from kubetunnel.forward.local_sockets import LOOPBACK

# kubectl's names of each kind: singular, plural, short
_KINDS = {
    Kind.SERVICE: ("service", "services", "svc"),
    Kind.POD: ("pod", "pods", "po"),
    Kind.DEPLOYMENT: ("deployment", "deployments", "deploy", "deployment.apps", "deployments.apps"),
    Kind.STATEFUL_SET: ("statefulset", "statefulsets", "sts", "statefulset.apps", "statefulsets.apps"),
    Kind.REPLICA_SET: ("replicaset", "replicasets", "rs", "replicaset.apps", "replicasets.apps"),
    Kind.DAEMON_SET: ("daemonset", "daemonsets", "ds", "daemonset.apps", "daemonsets.apps"),
    Kind.JOB: ("job", "jobs", "job.batch", "jobs.batch"),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}
_NAME = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, which a Pod's name may be
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")  # IANA_SVC_NAME (RFC 6335 5.1)


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """What is forwarded: an object, and its ports. An empty namespace of `ref` means the context's."""

    ref: ObjectRef
    pairs: tuple[PortPair, ...]

    def in_namespace(self, namespace: str) -> ForwardSpec:
        """With this namespace where it names none."""
        return self if self.ref.namespace else replace(self, ref=replace(self.ref, namespace=namespace))


def parse_forward(target: str, ports: Sequence[str], namespace: str = "") -> ForwardSpec:
    """`svc/api` and `5432`, `5432:80`, `:80`, `http`, `8080:http`. Raises ValueError: what was given, what goes."""
    kind_word, slash, name = target.rpartition("/")
    kind = _KIND_OF.get(kind_word.lower()) if slash else Kind.POD
    if kind is None:
        raise ValueError(f"{target!r}: {kind_word!r} is none of svc, pod, deploy, sts, rs, ds, job")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{target!r} is not KIND/NAME: {name!r} cannot be a name in Kubernetes")
    if not ports:
        raise ValueError(f"{target}: give a port: 5432, 8080:80, :80 (any free local port), or a port's name")
    return ForwardSpec(ObjectRef(kind, namespace, name), tuple(parse_pair(port) for port in ports))


def parse_entry(entry: str) -> ForwardSpec:
    """An entry of the setting `forwards`: `svc/api -n shop 5432 8080:http`. Raises ValueError."""
    try:
        words = shlex.split(entry)
    except ValueError as error:
        raise ValueError(f"{entry!r}: {error}") from error
    namespace = ""
    for flag in ("-n", "--namespace"):
        if flag in words:
            position = words.index(flag)
            if position + 1 == len(words):
                raise ValueError(f"{entry!r}: {flag} wants a namespace")
            namespace = words[position + 1]
            del words[position : position + 2]
    if not words:
        raise ValueError(f"{entry!r} is not KIND/NAME [-n NAMESPACE] PORT …")
    return parse_forward(words[0], words[1:], namespace)


def parse_pair(text: str) -> PortPair:
    """`5432`, `5432:80`, `:80`, `http`, `8080:http`. Raises ValueError."""
    local, colon, remote = text.rpartition(":")
    if not colon:
        return PortPair(None, _remote(text, remote))
    if not local or local == "0":
        return PortPair(0, _remote(text, remote))
    number = _number(local)
    if number is None:
        raise ValueError(f"port {text!r}: the local port {local!r} is not a number from 0 to 65535")
    return PortPair(number, _remote(text, remote))


def parse_addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """Where to listen: IP addresses and `localhost`, separated by commas or given one by one. Raises ValueError."""
    found: list[str] = []
    for word in (word.strip() for text in texts for word in text.split(",")):
        if word == "localhost":
            found += LOOPBACK
            continue
        try:
            found.append(str(ipaddress.ip_address(word)))
        except ValueError as error:
            raise ValueError(f"address {word!r} is neither an IP address nor localhost") from error
    return tuple(dict.fromkeys(found))


def _remote(text: str, word: str) -> int | str:
    number = _number(word)
    if number is not None:
        return number
    if _PORT_NAME.fullmatch(word):
        return word
    raise ValueError(f"port {text!r}: {word!r} is neither a number from 1 to 65535 nor a port's name")


def _number(word: str) -> int | None:
    if word.isascii() and word.isdigit() and len(word) <= 5 and 1 <= int(word) <= 65535:
        return int(word)
    return None
