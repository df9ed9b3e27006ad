"""The limits of HTTP, as the settings are now."""

from __future__ import annotations

from collections.abc import Callable

from kubetunnel.core.settings import Settings
from kubetunnel.proxy.http.policy import ExchangePolicy, HttpPolicy


def http_policy(settings: Settings) -> HttpPolicy:
    """The limits that these settings have."""
    exchange = ExchangePolicy(
        response_header_timeout_s=settings.http.response_header_timeout_s,
        read_timeout_s=settings.http.read_timeout_s,
        write_timeout_s=settings.http.write_timeout_s,
        grpc_timeout_s=settings.grpc.timeout_s,
        retry_max=settings.retry.max,
        retry_delay_s=settings.retry.delay_s,
    )
    return HttpPolicy(
        exchange,
        max_upstreams=settings.pool.max_connections_per_service,
        max_idle=settings.pool.max_idle_per_service,
        idle_timeout_s=settings.pool.idle_timeout_s,
    )


class Limits:
    """Those of now, each time that they are asked for: a change reaches the next request of every client.

    Args:
        settings: those of now; others are another object.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._made_of = settings()
        self._policy = http_policy(self._made_of)

    def __call__(self) -> HttpPolicy:
        """Made anew where the settings have changed only: it is asked for several times a request."""
        settings = self._settings()
        if settings is not self._made_of:
            self._made_of, self._policy = settings, http_policy(settings)
        return self._policy
