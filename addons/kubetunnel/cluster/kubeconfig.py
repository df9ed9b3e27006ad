"""Where the API server is and who we are: kubectl's rules for finding, merging and reading kubeconfig files.

The `kubernetes` package's loader is not used: it lets the last file's `current-context` win (kubectl: the first),
reads a user's relative paths from the cluster's file, prefers `token` to `tokenFile`, knows no impersonation, only logs
a failing exec plugin, keeps client keys in temporary files until the process ends, and names keys without their file.
Sources: the kubeconfig v1 API, client-go's `tools/clientcmd` loading rules and `rest.InClusterConfig`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from kubetunnel.cluster.entry import Entry, Pem
from kubetunnel.cluster.user import User, read_user
from kubetunnel.core.errors import KubeconfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # rest.InClusterConfig
IN_CLUSTER = "in-cluster"

PROXY_SCHEMES = ("http", "socks5", "socks5h", "socks4")  # what `proxied.py` speaks

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it was built in: ten times faster


@dataclass(frozen=True, slots=True)
class Cluster:
    """The fields of a kubeconfig's `cluster`. `ca` None: the system's own authorities."""

    server: str
    ca: Pem | None = None
    insecure: bool = False
    tls_server_name: str = ""
    proxy_url: str = field(default="", repr=False)  # may hold a password
    exec_config: object = None  # the extension `client.authentication.k8s.io/exec`, handed to an exec plugin


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """One context of the merged kubeconfig, or the Pod's own service account.

    `files` are those whose content it was made of, or whose appearance would change it.
    """

    context: str
    namespace: str
    cluster: Cluster
    user: User
    files: tuple[Path, ...]
    current: bool  # whether kubectl would take this context without --context
    user_name: str = ""  # of its entry


def read_kubeconfig(
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
    env: Mapping[str, str] | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Kubeconfig:
    """Find, merge and read the kubeconfig. Blocks (files); run it in a thread.

    Args:
        kubeconfig: one file that must exist; else $KUBECONFIG (a list, missing files skipped), else ~/.kube/config,
            else the Pod's service account.
        context, namespace: win over the file's `current-context` and the context's `namespace`.
        env: in place of os.environ.

    Raises:
        KubeconfigError: nothing was found (says where it was looked for), or file and key of what is broken.
    """
    try:
        return _read(kubeconfig, context, namespace, os.environ if env is None else env, service_account)
    except KubeconfigError as error:
        if kubeconfig:
            error.aim(shlex.join(["kubectl", "--kubeconfig", kubeconfig]))
        raise


def _read(
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
    env: Mapping[str, str],
    service_account: Path,
) -> Kubeconfig:
    paths = _candidates(kubeconfig, env)
    documents = [document for path in paths if (document := _read_yaml(path, required=bool(kubeconfig)))]
    if not any(document.value for document in documents):
        if in_cluster := _in_cluster(env, service_account, namespace):
            return in_cluster
        looked = ", ".join(map(str, paths)) or "nowhere"
        raise KubeconfigError(
            f"No kubeconfig: looked for {looked} ({_reason(kubeconfig, env)}), and this is no Pod of a cluster.",
            command="kubectl config view",
        )
    return _choose(documents, tuple(paths), context, namespace)


def _candidates(kubeconfig: str | None, env: Mapping[str, str]) -> list[Path]:
    if kubeconfig:
        return [Path(kubeconfig).expanduser().absolute()]
    if named := env.get("KUBECONFIG"):
        return [Path(part).expanduser().absolute() for part in named.split(os.pathsep) if part]
    return [(Path(env["HOME"]) if env.get("HOME") else Path.home()) / ".kube" / "config"]


def _reason(kubeconfig: str | None, env: Mapping[str, str]) -> str:
    if kubeconfig:
        return "--kubeconfig"
    return "$KUBECONFIG" if env.get("KUBECONFIG") else "the default; $KUBECONFIG is not set"


def _read_yaml(path: Path, *, required: bool) -> Entry | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if required:
            raise KubeconfigError(f"The kubeconfig {path} does not exist.") from error
        return None
    except OSError as error:
        raise KubeconfigError(f"The kubeconfig {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise KubeconfigError(f"The kubeconfig {path} is not UTF-8 text (byte {error.start}).") from error
    try:
        content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        # the problem alone: the library's full text quotes the line, which may hold a secret
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise KubeconfigError(f"The kubeconfig {path}{where} is not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise KubeconfigError(f"The kubeconfig {path} is not valid YAML.") from error
    if content is None:
        return Entry({}, path, "")
    if not isinstance(content, dict):
        raise KubeconfigError(f"The kubeconfig {path} must be a mapping with clusters, contexts and users.")
    return Entry(content, path, "")


def _choose(documents: list[Entry], paths: tuple[Path, ...], context: str | None, namespace: str | None) -> Kubeconfig:
    files = ", ".join(str(document.file) for document in documents)
    # client-go merges so that the first file that sets a value wins
    current = next((found for document in documents if (found := document.text("current-context"))), "")
    chosen = context or current
    if not chosen:
        raise KubeconfigError(
            f"{files}: current-context is not set. There are: {_names(documents, 'contexts')}.",
            command="kubectl config get-contexts",
        )
    item = _named(documents, "contexts", chosen)
    if item is None:
        wanted = "there is no context" if context else "current-context is"
        lacking = "" if context else ", which contexts lacks"
        raise KubeconfigError(
            f"{files}: {wanted} {chosen!r}{lacking}. There are: {_names(documents, 'contexts')}.",
            command="kubectl config get-contexts",
        )
    entry = item.entry("context")
    cluster = _referenced(documents, entry, "cluster")
    if cluster is None:
        raise entry.wrong("cluster", "is missing: the context names no cluster")
    user = _referenced(documents, entry, "user")
    return Kubeconfig(
        context=chosen,
        namespace=namespace or entry.text("namespace") or "default",
        cluster=_read_cluster(cluster),
        user=read_user(entry.text("user"), user),
        files=paths + _named_files(cluster, user),
        current=chosen == current,
        user_name=entry.text("user"),
    )


def _referenced(documents: list[Entry], context: Entry, kind: str) -> Entry | None:
    name = context.text(kind)
    if not name:
        return None
    item = _named(documents, f"{kind}s", name)
    if item is None:
        raise context.wrong(
            kind, f"is {name!r}, and {kind}s has no such name (there are: {_names(documents, kind + 's')})"
        )
    return item.entry(kind)


def _named(documents: list[Entry], section: str, name: str) -> Entry | None:
    for document in documents:
        for item in document.entries(section):
            if item.text("name") == name:
                return Entry(item.value, item.file, f"{section}[name={name}]")
    return None


def _names(documents: list[Entry], section: str) -> str:
    names = [item.text("name") for document in documents for item in document.entries(section)]
    return ", ".join(dict.fromkeys(names)) or "none"


def _named_files(cluster: Entry, user: Entry | None) -> tuple[Path, ...]:
    found = [cluster.path("certificate-authority")]
    if user is not None:
        found += [user.path(key) for key in ("client-certificate", "client-key", "tokenFile")]
    return tuple(path for path in found if path is not None)


def _read_cluster(entry: Entry) -> Cluster:
    insecure = entry.flag("insecure-skip-tls-verify")
    ca = entry.pem("certificate-authority")
    if insecure and ca is not None:
        raise entry.wrong("insecure-skip-tls-verify", "may not be true where a certificate-authority is given")
    extension = next(
        (e for e in entry.entries("extensions") if e.text("name") == "client.authentication.k8s.io/exec"), None
    )
    tls_server_name = entry.text("tls-server-name").strip()
    if tls_server_name and not _is_host(tls_server_name):
        raise entry.wrong("tls-server-name", f"is {tls_server_name!r}, which is no host name")
    return Cluster(
        server=_read_server(entry),
        ca=ca,
        insecure=insecure,
        tls_server_name=tls_server_name,
        proxy_url=_read_proxy_url(entry),
        exec_config=extension.value.get("extension") if extension else None,
    )


def _read_server(entry: Entry) -> str:
    server = entry.text("server").strip().rstrip("/")
    if not server:
        raise entry.wrong("server", "is missing")
    if "@" in server:  # before anything that shows it
        raise entry.wrong(
            "server", "must hold no user and password, nor any other @: the credentials belong into the user's entry"
        )
    if not server.startswith(("https://", "http://")):
        raise entry.wrong("server", f"is {server!r}, and must begin with https:// or http://")
    if not _is_address(server) or not urlsplit(server).path.isascii() or set(server) & set("?#"):
        raise entry.wrong("server", f"is {server!r}, which is no https://host:port")
    return server


def _read_proxy_url(entry: Entry) -> str:
    url = entry.text("proxy-url").strip()
    scheme = url.partition("://")[0]
    if url and (scheme not in PROXY_SCHEMES or not _is_address(url) or urlsplit(url).port is None):
        # not shown: it may hold a password
        schemes = ", ".join(PROXY_SCHEMES)
        raise entry.wrong("proxy-url", f"is no SCHEME://[user:password@]host:port with a SCHEME of {schemes}")
    return url


def _is_address(address: str) -> bool:
    if not address.isprintable() or " " in address:  # urlsplit leaves out line ends
        return False
    try:
        url = urlsplit(address)
        return _is_host(url.hostname or "") and url.port != 0  # reading `port` checks it
    except ValueError:
        return False


def _is_host(name: str) -> bool:
    """Whether the resolver and TLS can take it: both encode it so, and raise where a label is empty or too long."""
    try:
        return bool(name.encode("idna")) and name.isprintable()
    except UnicodeError:
        return False


def _in_cluster(env: Mapping[str, str], directory: Path, namespace: str | None) -> Kubeconfig | None:
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
    token_file, ca_file, namespace_file = (directory / name for name in ("token", "ca.crt", "namespace"))
    if not host or not port or not token_file.exists():
        return None
    try:
        ca = Pem(ca_file.read_bytes(), str(ca_file))
        own_namespace = namespace_file.read_text(encoding="utf-8").strip() if namespace_file.exists() else ""
    except OSError as error:
        raise KubeconfigError(
            f"The Pod's service account is incomplete: {error.filename}: {error.strerror}."
        ) from error
    return Kubeconfig(
        context=IN_CLUSTER,
        namespace=namespace or own_namespace or "default",
        cluster=Cluster(server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", ca=ca),
        user=User(name="the Pod's service account", token_file=token_file),
        files=(token_file, ca_file),
        current=True,
    )
