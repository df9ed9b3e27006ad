"""From a query's bytes to a reply's: what is ours is decided and looked up, the rest is passed on."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.names import PodAddressName, PodName, ServiceName, SrvName
from netsetup.answers import Authority, HostName, Names, NamespaceName, ProtocolName, Wanted, addressed
from netsetup.dns_cache import AnswerCache
from netsetup.dns_lookups import FAILURE_MEMORY_S, Lookups, Missing
from netsetup.dns_packing import pack_answer, pack_question, pack_refusal
from netsetup.dns_records import Address, Answer, Question, Rcode, RecordType
from netsetup.dns_upstreams import NoUpstreamAnswered, Upstreams
from netsetup.dns_wire import Query, is_truncated, rcode_of, read_addresses, read_query, truncated
from netsetup.reverse_names import ReverseName

logger = logging.getLogger(__name__)

MAX_QUERIES = 100  # that are remembered
MAX_ALIASES = 8  # an ExternalName that leads to another one; unbound allows 11, BIND 16
_FOLLOWED = (RecordType.A, RecordType.AAAA)

type FindAddress = Callable[[], Awaitable[Address]]


@dataclass(frozen=True, slots=True)
class DnsFacts:
    """What the server has done so far.

    `answers`: by the question's type (one of RecordType, else `other`) and the reply's code. `cached` and `forwarded`
    are among them. `dropped`: packets that got no reply. `limited`: refused because too many questions were open.
    """

    answers: Mapping[tuple[str, str], int]
    cached: int
    forwarded: int
    dropped: int
    limited: int


@dataclass(frozen=True, slots=True)
class DnsQuery:
    """One question and the reply's code. `at`: Unix seconds; `type` and `code` as in DnsFacts."""

    at: float
    name: str
    type: str
    code: str


class Responder:
    """Answers packets.

    Args:
        authority: which names are ours; its zones are those of `names` at any time.
        hosts: what finds the addresses of the authority's hosts; may raise KubeTunnelError.
        rng: for the order of equal records.
        max_forwarded: how many questions may wait for the upstreams.
    """

    def __init__(
        self,
        names: Names,
        lookups: Lookups,
        upstreams: Upstreams,
        authority: Authority,
        hosts: Mapping[str, FindAddress],
        rng: random.Random,
        *,
        max_forwarded: int,
    ) -> None:
        self._names = names
        self._lookups = lookups
        self._upstreams = upstreams
        self._authority = authority
        self._hosts = hosts
        self._rng = rng
        self._caches = {False: AnswerCache(), True: AnswerCache()}
        self._answers: Counter[tuple[str, str]] = Counter()
        self._queries: deque[DnsQuery] = deque(maxlen=MAX_QUERIES)
        self._cached = self._forwarded = self._dropped = self._limited = 0
        self._max_forwarded, self._forwarding = max_forwarded, 0
        self._now = asyncio.get_running_loop().time

    def facts(self) -> DnsFacts:
        return DnsFacts(dict(self._answers), self._cached, self._forwarded, self._dropped, self._limited)

    def queries(self) -> tuple[DnsQuery, ...]:
        """The last questions, the oldest first; those answered from memory are only counted."""
        return tuple(self._queries)

    def at_once(self, packet: bytes, *, tcp: bool) -> bytes | None:
        """The reply where it is at hand."""
        found = self._caches[tcp].get(packet, self._now())
        if found is None:
            return None
        self._cached += 1
        self._answers[found.label] += 1
        return packet[:2] + found.tail

    def limit(self, packet: bytes, *, tcp: bool) -> bytes | None:
        """The reply to one packet too many."""
        self._limited += 1
        query = read_query(packet)
        return self._reply(query, Answer(Rcode.SERVFAIL), tcp=tcp) if isinstance(query, Query) else None

    async def respond(self, packet: bytes, *, tcp: bool) -> bytes | None:
        """The reply to anything that anybody may send; None where there is none."""
        query = read_query(packet)
        if query is None:
            self._dropped += 1
            return None
        if isinstance(query, Rcode):
            self._answers["other", query.name] += 1
            return pack_refusal(packet, query)
        try:
            return await self._respond(packet, query, tcp=tcp)
        except Exception:  # the questions' supervision point: a defect costs one answer, not the server
            logger.exception("DNS: a question of type %s fails because of a defect", query.question.type)
            return self._reply(query, Answer(Rcode.SERVFAIL), tcp=tcp)

    async def _respond(self, packet: bytes, query: Query, *, tcp: bool) -> bytes:
        if query.edns and query.edns.version:
            return self._reply(query, Answer(Rcode.BADVERS), tcp=tcp)
        asked_at = self._now()
        answer = await self._answer(query.question, query)
        if answer is None:
            return await self._forward(packet, query, tcp=tcp)
        reply = self._reply(query, answer, tcp=tcp)
        self._caches[tcp].put(packet, reply, _label(query, answer.rcode), asked_at, _lifetime_s(answer))
        return reply

    async def _answer(self, question: Question, query: Query, aliases: int = 0) -> Answer | None:
        """Ours, aliases followed; None: not our name."""
        authority = replace(self._authority, zones=self._names.zones)
        decided = authority.decide(question)
        if decided is None:
            return None
        try:
            answer = decided if isinstance(decided, Answer) else await self._look_up(authority, question, decided)
            if question.type in _FOLLOWED and answer.records and answer.records[-1].type == RecordType.CNAME:
                return await self._follow(answer, question, query, aliases + 1)
        except KubeTunnelError as error:
            logger.debug("DNS: SERVFAIL for %s: %s", question.text, error)
            return Answer(Rcode.SERVFAIL)
        return answer

    async def _look_up(self, authority: Authority, question: Question, wanted: Wanted) -> Answer:
        match wanted:
            case ReverseName(address=address):
                return authority.of_reverse(question, self._names.name_of(address) if address else None)
            case HostName(name=name):
                return authority.of_host(question, await self._hosts[name]())
            case PodAddressName():
                found = await self._lookups.pod_address(wanted)
                if isinstance(found, Missing):
                    return self._missing(authority, question, found)
                return authority.of_pod(question, found)
            case NamespaceName():
                state = await self._lookups.service(wanted.any_service)
                if isinstance(state, Missing) and state.is_namespace:
                    return self._missing(authority, question, state)
                return authority.empty(question)
            case ServiceName() | PodName() | SrvName() | ProtocolName():
                service = wanted if isinstance(wanted, ServiceName) else wanted.service
                state = await self._lookups.service(service)
                if isinstance(state, Missing):
                    return self._missing(authority, question, state)
                addresses = await self._lookups.addresses(addressed(question, wanted, state), state)
                return authority.of_service(question, wanted, state, addresses)

    def _missing(self, authority: Authority, question: Question, missing: Missing) -> Answer:
        left_s = max(0, round(missing.until_s - self._now()))
        return replace(authority, negative_ttl_s=left_s).missing(question)

    async def _follow(self, answer: Answer, question: Question, query: Query, aliases: int) -> Answer:
        """The answer with what its alias leads to: a stub resolver does not ask for that itself (RFC 1034 5.3.1)."""
        if aliases > MAX_ALIASES:
            return Answer(Rcode.SERVFAIL)
        target = Question(tuple(str(answer.records[-1].data).split(".")), question.type)
        rest = await self._answer(target, query, aliases)
        if rest is None:
            if not self._upstreams.servers or not query.recursion_desired:
                return answer
            rest = await self._ask_for(target)
        if rest.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            return Answer(rest.rcode)
        return Answer(rest.rcode, answer.records + rest.records, rest.authority)

    async def _ask_for(self, question: Question) -> Answer:
        packet = pack_question(question.labels, question.type)
        reply = await self._upstreams.ask(packet, tcp=False)
        if is_truncated(reply):
            reply = await self._upstreams.ask(packet, tcp=True)
        records = read_addresses(reply)
        rcode = rcode_of(reply)
        if records is None or rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            return Answer(Rcode.SERVFAIL)
        return Answer(rcode, records)

    async def _forward(self, packet: bytes, query: Query, *, tcp: bool) -> bytes:
        if not self._upstreams.servers:
            return self._reply(query, Answer(Rcode.REFUSED), tcp=tcp)
        if self._forwarding >= self._max_forwarded:
            self._limited += 1
            return self._reply(query, Answer(Rcode.SERVFAIL), tcp=tcp)
        self._forwarded += 1
        self._forwarding += 1
        try:
            reply = await self._upstreams.ask(packet, tcp=tcp)
        except NoUpstreamAnswered as error:
            logger.debug("DNS: SERVFAIL: %s", error)
            return self._reply(query, Answer(Rcode.SERVFAIL), tcp=tcp)
        finally:
            self._forwarding -= 1
        self._count(query, rcode_of(reply))
        return reply if tcp or len(reply) <= query.max_udp_bytes else truncated(reply, query)

    def _count(self, query: Query, rcode: Rcode | None) -> None:
        type_, code = label = _label(query, rcode)
        self._answers[label] += 1
        self._queries.append(DnsQuery(time.time(), query.question.text, type_, code))

    def _reply(self, query: Query, answer: Answer, *, tcp: bool) -> bytes:
        self._count(query, answer.rcode)
        if len({record.type for record in answer.records}) == 1:
            # clients take the first: let it be another each time
            answer = replace(answer, records=tuple(self._rng.sample(answer.records, len(answer.records))))
        return pack_answer(query, answer, tcp=tcp, recursion_available=bool(self._upstreams.servers))


def _label(query: Query, rcode: Rcode | None) -> tuple[str, str]:
    type_ = query.question.type
    return RecordType(type_).name if type_ in RecordType else "other", rcode.name if rcode is not None else "other"


def _lifetime_s(answer: Answer) -> float:
    if answer.rcode == Rcode.SERVFAIL:
        return FAILURE_MEMORY_S
    sections = (*answer.records, *answer.authority, *answer.additional)
    return min((record.ttl_s for record in sections), default=0)
