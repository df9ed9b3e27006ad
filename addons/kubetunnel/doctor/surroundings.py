"""What else decides: the environment's proxies, which would take a request for the cluster elsewhere, and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from kubetunnel import __version__
from kubetunnel.doctor.verdict import Verdict, fail, ok, warn

PROXIES, VERSIONS = "proxy variables", "versions"
_VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_LEAST_PYTHON = (3, 12)
# pyproject.toml's bounds
_LEAST_MITMPROXY, _TOO_NEW_MITMPROXY = (12, 2), (12, 3)


def judge_proxies(environ: Mapping[str, str], zone: str, tunnel_port: int) -> Verdict:
    """Whether a proxy of the environment would catch names of the zone."""
    elsewhere = {}
    for variable in _VARIABLES:
        if value := environ.get(variable):
            where = _host_and_port(value)  # no more of it: it may hold a password
            if where not in (f"127.0.0.1:{tunnel_port}", f"localhost:{tunnel_port}", f"[::1]:{tunnel_port}"):
                elsewhere[variable] = where
    if not elsewhere:
        told = "they lead to the tunnel" if any(environ.get(name) for name in _VARIABLES) else "none is set"
        return ok(PROXIES, told)
    listed = ", ".join(f"{variable} ({where})" for variable, where in elsewhere.items())
    if _is_exempt(zone, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return ok(PROXIES, f"{listed} leave names of {zone} alone (no_proxy)")
    return warn(
        PROXIES,
        f"{listed} take requests for names of {zone} elsewhere",
        f'export no_proxy="${{no_proxy:+$no_proxy,}}.{zone},127.0.0.1,localhost"    '
        "(one command alone: kube-tunnel run -- CMD)",
    )


def judge_versions(python: tuple[int, int, int], mitmproxy: str | None) -> Verdict:
    """
    Args:
        mitmproxy: its version, None where it is not installed.
    """
    text = f"kube-tunnel {__version__}, Python {'.'.join(map(str, python))}, mitmproxy {mitmproxy or 'missing'}"
    if python[:2] < _LEAST_PYTHON:
        return fail(
            VERSIONS, f"{text}: Python {'.'.join(map(str, _LEAST_PYTHON))} is needed", "python3.12 -m venv .venv"
        )
    found = tuple(int(part) for part in (mitmproxy or "").split(".")[:2] if part.isdigit())
    if found < _LEAST_MITMPROXY or found >= _TOO_NEW_MITMPROXY:
        return fail(VERSIONS, f"{text}: mitmproxy 12.2 is needed", "pip install 'mitmproxy>=12.2,<12.3'")
    return ok(VERSIONS, f"{text} on {platform.system()} {platform.release()}")


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _host_and_port(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = parts.hostname or "?", parts.port
    except ValueError:
        return "unreadable"
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else shown


def _is_exempt(zone: str, no_proxy: str) -> bool:
    """By suffix, with or without a dot before it, as curl, Go and Python have it; `*` is everything."""
    entries = [entry.strip().lower().removeprefix("*").lstrip(".") for entry in no_proxy.split(",") if entry.strip()]
    return any(not entry or zone == entry or zone.endswith(f".{entry}") for entry in entries)
