"""The environment that sends a program's requests through the tunnel, or tells it to trust our CA. Pure.

There is no standard: curl's rules (curl(1), ENVIRONMENT) are what Python, Go, Ruby and wget follow as well; gRPC has
names of its own (grpc/doc/environment_variables.md), Node.js obeys from 22.21 and 24 on when it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HTTP = ("http_proxy", "https_proxy")
_BUNDLE = (
    "SSL_CERT_FILE",  # OpenSSL, Go, Python, Ruby
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NODE_EXTRA_CA_CERTS",
)


def through_proxy(environ: Mapping[str, str], address: str, direct: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a program whose requests go through a tunnel.

    Args:
        environ: the present one. Its no_proxy is kept, its proxies are replaced.
        address: of the tunnel, `host:port`.
        direct: hosts and domains that are not to be asked for there.
    """
    kept = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    exempt = ",".join(dict.fromkeys([*LOOPBACK, *direct, *(host.strip() for host in kept.split(",") if host.strip())]))
    http = f"http://{address}"
    changed = dict.fromkeys((*_HTTP, "grpc_proxy"), http)
    # h: names are resolved by the tunnel, for no one else knows them
    changed |= {"all_proxy": f"socks5h://{address}", "no_proxy": exempt}
    changed |= {name.upper(): value for name, value in changed.items() if name != "grpc_proxy"}
    changed |= {"no_grpc_proxy": exempt, "NODE_USE_ENV_PROXY": "1"}
    return dict(environ) | changed


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that reaches the Services themselves, and no proxy at all."""
    ours = {*_HTTP, "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy", "node_use_env_proxy"}
    return {name: value for name, value in environ.items() if name.lower() not in ours}


def trusting(environ: Mapping[str, str], bundle: str) -> dict[str, str]:
    """The environment of a program that trusts the certificates in `bundle`, a PEM file."""
    return dict(environ) | dict.fromkeys(_BUNDLE, bundle)
