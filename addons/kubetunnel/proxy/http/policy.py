"""The limits of HTTP, as its layers are given them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kubetunnel.proxy.http.pool import MAX_IDLE, MAX_UPSTREAMS

IDLE_TIMEOUT_S = 300.0  # the default of pool.idle_timeout


@dataclass(frozen=True, slots=True)
class ExchangePolicy:
    """Limits of one exchange. None: no limit.

    Args:
        read_timeout_s: between two pieces of a response whose length is known.
        write_timeout_s: between two pieces of a request that a pod takes in HTTP/2, but for gRPC; in HTTP/1.1, who
            opened the connection sees to that.
        retry_max: how often a request may be sent again.
        retry_delay_s: the ceiling of the first delay before that, doubled for each.
    """

    response_header_timeout_s: float | None = None  # from the end of the request
    read_timeout_s: float | None = None
    write_timeout_s: float | None = None
    grpc_timeout_s: float | None = None  # from the end of the request of a call that brings no grpc-timeout
    retry_max: int = 2  # the contract's section 3
    retry_delay_s: float = 0.1


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """Limits of one client connection; the bounds are for each origin (address and TLS).

    Args:
        idle_timeout_s: an upstream that serves nobody for so long is closed. None: it stays with its client.
    """

    exchange: ExchangePolicy = field(default_factory=ExchangePolicy)
    max_upstreams: int = MAX_UPSTREAMS
    max_idle: int = MAX_IDLE
    idle_timeout_s: float | None = IDLE_TIMEOUT_S
