"""The settings as options of mitmproxy, `kube_…`: for `--set`, its config.yaml and mitmweb's options page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mitmproxy import exceptions
from mitmproxy.optmanager import OptManager

from kubetunnel.core.names import zone_is_valid
from kubetunnel.core.settings import ClusterSettings, HttpSettings, RetrySettings, Settings
from kubetunnel.service_specs import parse_services

PREFIX = "kube_"
_LEAST = {"kube_retry_max": 0, "kube_response_header_timeout": 1, "kube_grpc_timeout": 1}


def add_options(loader: Any) -> None:
    """To be called in the `load` hook."""
    default = Settings()
    loader.add_option("kube_kubeconfig", str, "", "Path of the kubeconfig; empty: as kubectl finds it.")
    loader.add_option("kube_context", str, "", "Context of the kubeconfig; empty: its current-context.")
    loader.add_option("kube_namespace", str, "", "Namespace of short names; empty: that of the context.")
    loader.add_option("kube_zone", str, default.cluster.zone, "The cluster's DNS zone.")
    loader.add_option("kube_demo", bool, False, "Use a simulated cluster, started as a child process.")
    loader.add_option("kube_retry_max", int, default.retry.max, "Further tries of an upstream that did not open.")
    loader.add_option("kube_force_http2", bool, False, "Speak HTTP/2 to every pod.")
    loader.add_option("kube_disable_fallback", bool, False, "HTTP/2 requests go to pods as HTTP/2 or not at all.")
    loader.add_option(
        "kube_response_header_timeout", int, round(default.http.response_header_timeout_s),
        "Seconds from the end of a request to the head of its response.",
    )  # fmt: skip
    loader.add_option(
        "kube_grpc_timeout", int, round(default.http.grpc_timeout_s),
        "Seconds of a gRPC call that brings no grpc-timeout.",
    )  # fmt: skip
    loader.add_option(
        "kube_services", Sequence[str], [],
        "What you know of a Service: NAME.NAMESPACE[:PORT] app_protocol=… passthrough=true ca_file=… "
        "client_certificate=….",
    )  # fmt: skip


def take_mistakes(options: OptManager) -> list[str]:
    """What is wrong with options of ours that were given before we were loaded; they are taken away.

    mitmproxy keeps them back until then, says nothing of those that nobody knows, and at a value that it cannot read
    gives up the script without a word.
    """
    mistakes = []
    for name, value in list(options.deferred.items()):
        if not name.startswith(PREFIX):
            continue
        option = options._options.get(name)  # noqa: SLF001 - what is deferred has no public reader
        mistake = _no_such_option(options) if option is None else _unreadable(options, option, value)
        if mistake:
            mistakes.append(f"{name}: {mistake}")
            del options.deferred[name]
    return mistakes


def _no_such_option(options: OptManager) -> str:
    known = sorted(name for name in options.keys() if name.startswith(PREFIX))  # noqa: SIM118 - no mapping
    return f"there is no such option; there are {', '.join(known)}"


def _unreadable(options: OptManager, option: Any, value: Any) -> str | None:
    words = getattr(value, "val", None)  # of --set; what a file has is typed
    try:
        if isinstance(words, list):
            options._parse_setval(option, words)  # noqa: SLF001
    except exceptions.OptionsError as e:
        return str(e)
    return None


def settings_of(options: OptManager) -> Settings:
    """Raises OptionsError that names option, value and what is allowed."""
    if not zone_is_valid(options.kube_zone):
        raise exceptions.OptionsError(f"kube_zone: {options.kube_zone!r} is not a DNS zone, such as cluster.local")
    for name, least in _LEAST.items():
        if (value := getattr(options, name)) < least:
            raise exceptions.OptionsError(f"{name}: {value} is less than {least}")
    try:
        services = parse_services(options.kube_services)
    except ValueError as e:
        raise exceptions.OptionsError(str(e)) from e
    return Settings(
        cluster=ClusterSettings(
            kubeconfig=options.kube_kubeconfig or None,
            context=options.kube_context or None,
            namespace=options.kube_namespace or None,
            zone=options.kube_zone,
        ),
        retry=RetrySettings(max=options.kube_retry_max),
        http=HttpSettings(
            force_http2=options.kube_force_http2,
            disable_fallback=options.kube_disable_fallback,
            response_header_timeout_s=options.kube_response_header_timeout,
            grpc_timeout_s=options.kube_grpc_timeout,
        ),
        services=services,
    )
