"""What the user can choose. A frozen tree with documented defaults; the contract's section 8 names each setting.

The tree is the only list of settings: options of mitmproxy, flags, environment variables, the YAML file and the
reference are made from it (`every_setting`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_type_hints

Kind = Literal["text", "number", "duration", "switch", "list"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a user meets it.

    Attributes:
        path: its place in the YAML file, `retry.max`.
        default: a float in seconds where the kind is "duration", a tuple of texts where it is "list".
        takes: the form of a text or of a list's items, for people; `form` is the one that is checked.
        live: it may change while the tunnel runs.
    """

    path: str
    kind: Kind
    default: Any
    doc: str
    env: str | None = None
    flag: str | None = None
    short: str | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    takes: str = ""
    form: Literal["", "zone", "address", "prefix", "link"] = ""
    live: bool = True

    def of(self, settings: Settings) -> Any:
        """Its value."""
        value: Any = settings
        *sections, key = self.path.split(".")
        for section in sections:
            value = getattr(value, section)
        return getattr(value, f"{key}_s" if self.kind == "duration" else key)

    @property
    def option(self) -> str:
        """Its name as an option of mitmproxy: `kube_retry_max`; what is in `cluster` or `http` goes without that."""
        path = self.path.removeprefix("cluster.").removeprefix("http.")
        return "kube_" + path.replace(".", "_")


def _setting(default: Any, doc: str, **more: Any) -> Any:
    """A field of the tree: what `Setting` wants to know beside path, kind and default."""
    return field(default=default, metadata={"doc": doc, **more})


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster, as whom. None: what kubectl would take."""

    kubeconfig: str | None = _setting(None, "Path of the kubeconfig; none: as kubectl finds it.", flag="--kubeconfig")
    context: str | None = _setting(None, "Context of the kubeconfig; none: its current-context.", flag="--context")
    namespace: str | None = _setting(
        None, "Namespace of short names; none: that of the context.", flag="--namespace", short="-n"
    )
    # kubelet's --cluster-domain default
    zone: str = _setting(
        "cluster.local", "The cluster's DNS zone.", takes="a DNS zone such as cluster.local", form="zone"
    )
    dial: str = _setting(
        "forward",
        "How pods are reached: through port-forwards, or directly at their addresses (inside the cluster).",
        choices=("forward", "direct"),
    )
    demo: bool = _setting(False, "Use a simulated cluster, started as a child process.", flag="--demo")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The listening port."""

    port: int | None = _setting(
        None, "The port to listen on, 0 for a free one; none: 80, or 8080 where that may not be had.", env="KTUN_PORT",
        flag="--port", short="-p", least=0, most=65535, live=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is told."""

    level: str | None = _setting(
        None, "Of what importance the lines of the log are; none: mitmproxy's termlog_verbosity.", env="LOG_LEVEL",
        choices=("", "debug", "info", "warn", "error", "quiet"),
    )  # fmt: skip
    format: str = _setting(
        "text", "Lines for people, or a JSON object a line, for each request, too.", flag="--log-format",
        choices=("text", "json"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Another try of an upstream of which nothing was used yet."""

    max: int = _setting(
        2, "Further tries of an upstream that did not open.", env="KTUN_RETRY_MAX", flag="--max-retries",
        least=0, most=10,
    )  # fmt: skip
    delay_s: float = _setting(
        0.1, "Before the first further try; doubled for each.", env="KTUN_RETRY_DELAY", least=0.001, most=10
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """HTTP between us and the pods."""

    force_http2: bool = _setting(
        False, "Speak HTTP/2 to every pod, but to ports of the protocols `ws` and `wss`.", env="KTUN_FORCE_HTTP2"
    )
    hosts: tuple[str, ...] = _setting(
        (), "Hosts that web pages may ask for a Service by, `*.shop.example` for all below one.",
        flag="--http-hosts",
    )  # fmt: skip
    disable_fallback: bool = _setting(
        False, "HTTP/2 requests go to pods as HTTP/2 or not at all.", env="KTUN_DISABLE_FALLBACK"
    )
    trust_port_headers: bool = _setting(
        False, "Take the port from X-Original-Port or X-Forwarded-Port, of clients on this machine."
    )
    read_timeout_s: float = _setting(
        30.0, "Between two pieces of a response whose length is known; streams may be silent for as long as they like.",
        env="KTUN_READ_TIMEOUT", least=0.001, most=86400,
    )  # fmt: skip
    write_timeout_s: float = _setting(
        30.0, "Between two pieces of a request that a pod takes; a gRPC call may wait for its server.",
        env="KTUN_WRITE_TIMEOUT", least=0.001, most=86400,
    )  # fmt: skip
    response_header_timeout_s: float = _setting(
        30.0, "From the end of a request to the head of its response.", env="KTUN_RESPONSE_HEADER_TIMEOUT",
        least=0.001, most=86400,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class InspectSettings:
    """What mitmweb and mitmproxy keep."""

    keep_flows: int = _setting(5000, "Finished flows that are kept; the oldest go first.", least=1, most=1_000_000)
    keep_bytes: int = _setting(256 << 20, "Bytes of finished flows that are kept.", least=1 << 20, most=1 << 40)


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """gRPC calls."""

    reflection: bool = _setting(True, "Ask pods for the names of gRPC fields while somebody looks (server reflection).")
    descriptors: tuple[str, ...] = _setting(
        (), "Files that tell the names of gRPC fields.", takes="FileDescriptorSet files (protoc --descriptor_set_out)"
    )

    timeout_s: float = _setting(
        30.0, "Of a gRPC call without a grpc-timeout, to the head of its response; not where its server streams.",
        env="KTUN_GRPC_TIMEOUT",
        least=0.001, most=86400,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Connections to pods, of all clients together."""

    max_connections_per_service: int = _setting(
        100, "Connections to one Service at once for HTTP; a request beyond them waits for "
        "http.response_header_timeout, and is refused then. Raw connections, and those of CONNECT and SOCKS5, have no "
        "bound but their clients'.", env="KTUN_MAX_CONNS_HOST", least=1, most=100_000,
    )  # fmt: skip
    max_idle: int = _setting(
        200, "Unused connections that are kept for later requests; the longest unused go first.", env="KTUN_MAX_IDLE",
        least=0, most=100_000,
    )  # fmt: skip
    max_idle_per_service: int = _setting(
        50, "Of these, those to one Service.", env="KTUN_MAX_IDLE_HOST", least=0, most=100_000
    )
    idle_timeout_s: float = _setting(
        300.0, "Unused upstreams, watches and listeners end after it.", env="KTUN_IDLE_TIMEOUT", least=1, most=86400
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Health checks of the pods of Services in use, through the forward."""

    enabled: bool = _setting(True, "Check the health of pods.", env="KTUN_HEALTH_ENABLED", flag="--health")
    interval_s: float = _setting(
        30.0, "From one check of a Service to the next.", env="KTUN_HEALTH_INTERVAL", least=1, most=86400
    )
    timeout_s: float = _setting(2.0, "Of one check of a pod.", env="KTUN_HEALTH_TIMEOUT", least=0.1, most=300)
    max_failures: int = _setting(
        3, "Failures in a row before a pod is unhealthy.", env="KTUN_HEALTH_MAX_FAIL", least=1, most=100
    )
    skip: bool = _setting(
        False, "Unhealthy pods get requests as the others; checks are shown alone.", env="KTUN_SKIP_HEALTH"
    )


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """The DNS server for the clusters' zones, in the tunnel's process."""

    enabled: bool = _setting(True, "Run the DNS server.", flag="--dns")
    ip: str = _setting(
        "127.0.0.1", "Where the DNS server listens.", env="KTUN_DNS_IP", flag="--dns-ip", takes="an IP address",
        form="address",
    )  # fmt: skip
    port: int = _setting(
        5353, "Port of the DNS server, 0 for a free one.", env="KTUN_DNS_PORT", flag="--dns-port", least=0, most=65535
    )
    tcp: bool = _setting(True, "Answer over TCP too.", env="KTUN_DNS_TCP", flag="--dns-tcp")
    answer: str = _setting(
        "virtual", "Each name has a virtual IP of its own, or all share the proxy's address.",
        choices=("virtual", "shared"),
    )  # fmt: skip
    ttl_s: float = _setting(5.0, "How long clients may remember an answer.", least=0, most=3600)


@dataclass(frozen=True, slots=True)
class DnsInterfaceSettings:
    """The interface with the address of the DNS server (netsetup)."""

    ip: str | None = _setting(
        None, "Address of the DNS server's interface; none: the first of the first free range, 10.8.0.1.",
        env="KTUN_VIRTUAL_IP", flag="--virtual-ip", takes="an IP address", form="address", live=False,
    )  # fmt: skip
    name: str = _setting(
        "kube-dns0", "Name of the DNS server's interface.", env="KTUN_VIRTUAL_NAME",
        takes="an interface's name, 1-15 letters, digits, '.', '_', '-'", form="link", live=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProxyInterfaceSettings:
    """The interface that the virtual IPs are routed to (netsetup)."""

    ip: str | None = _setting(
        None, "Address of the proxy's interface; none: the second of the first free range, 10.8.0.2.",
        env="KTUN_PF_VIRTUAL_IP", takes="an IP address", form="address", live=False,
    )  # fmt: skip
    name: str = _setting(
        "kube-proxy0", "Name of the proxy's interface.", env="KTUN_PF_VIRTUAL_NAME",
        takes="an interface's name, 1-15 letters, digits, '.', '_', '-'", form="link", live=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The machine's network: names and addresses for every program, or for those of this user."""

    virtual: bool = _setting(
        False, "With sudo: set interfaces, redirection and DNS up for the time of the run.", env="KTUN_USE_VIRTUAL",
        flag="--virtual", live=False,
    )  # fmt: skip
    loopback: bool = _setting(
        False, "Without root: each Service that is asked for in DNS listens at a loopback address of its own.",
        flag="--loopback",
    )  # fmt: skip
    ip_ranges: tuple[str, ...] = _setting(
        ("10.8.0.0/24", "10.9.0.0/24"), "Prefixes for virtual IPs.", env="KTUN_IP_RANGES", takes="prefixes",
        form="prefix",
    )  # fmt: skip
    search: str | None = _setting(
        None, "Short names resolve with `virtual`: NAME in this Namespace, and NAME.NAMESPACE (a DNS search list).",
        flag="--search", takes="a Namespace", form="zone", live=False,
    )  # fmt: skip
    dns_interface: DnsInterfaceSettings = field(default_factory=DnsInterfaceSettings)
    proxy_interface: ProxyInterfaceSettings = field(default_factory=ProxyInterfaceSettings)


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Local listeners."""

    ip: str = _setting(
        "127.0.0.1", "Where listeners of `forwards` listen.", env="KTUN_FORWARD_IP", takes="an IP address",
        form="address",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the user knows of a Service better than its object says.

    Attributes:
        service: `NAME.NAMESPACE`, with `*` and `?` for any characters.
        port: the Service port, None for all.
        app_protocol: in the place of the port's `appProtocol`: http, https, h2c, grpc, grpcs, ws, wss.
        passthrough: TLS is not terminated but passed on as it is.
        ca_file: PEM; the pod's certificate is verified against it, and for the Service's name.
        client_certificate: PEM file of a certificate and its key, shown to the pod.
        health: how it is checked: tcp, http:/PATH, grpc, grpc:SERVICE or none.
    """

    service: str
    port: int | None = None
    app_protocol: str | None = None
    passthrough: bool = False
    ca_file: str | None = None
    client_certificate: str | None = None
    health: str = "tcp"

    def fits(self, service: str, namespace: str, port: int) -> bool:
        return self.port in (None, port) and fnmatchcase(f"{service}.{namespace}", self.service)


@dataclass(frozen=True, slots=True)
class ZoneSettings:
    """Another cluster: names of this zone are looked up in this context of the kubeconfig."""

    zone: str
    context: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings."""

    proxy: ProxySettings = field(default_factory=ProxySettings)
    log: LogSettings = field(default_factory=LogSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    inspect: InspectSettings = field(default_factory=InspectSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    forward: ForwardSettings = field(default_factory=ForwardSettings)
    forwards: tuple[str, ...] = _setting(
        (), "Local listeners as kubectl port-forward has them.", takes="KIND/NAME [-n NAMESPACE] [LOCAL:]PORT …"
    )
    services: tuple[ServiceSettings, ...] = _setting(
        (), "What you know of a Service.",
        takes="NAME.NAMESPACE[:PORT] app_protocol=… passthrough=true ca_file=… client_certificate=…",
    )  # fmt: skip
    zones: tuple[ZoneSettings, ...] = _setting(
        (), "Other clusters: names of ZONE are looked up in CONTEXT of the kubeconfig.", takes="ZONE=CONTEXT"
    )
    external_names: str = _setting(
        "refuse", "A Service of the type ExternalName is refused, or the tunnel itself dials what it stands for, from "
        "this machine.", choices=("refuse", "direct"),
    )  # fmt: skip

    def of_service(self, service: str, namespace: str, port: int) -> ServiceSettings:
        """The first entry that fits, else one that says nothing."""
        fitting = (entry for entry in self.services if entry.fits(service, namespace, port))
        return next(fitting, ServiceSettings(f"{service}.{namespace}"))


def unchangeable(former: Settings, wanted: Settings) -> tuple[str, ...]:
    """The paths of those that differ, and take effect at the start alone."""
    return tuple(each.path for each in every_setting() if not each.live and each.of(former) != each.of(wanted))


def every_setting() -> tuple[Setting, ...]:
    """All settings, in the order of the tree."""
    return tuple(_settings_in(Settings, ""))


def _settings_in(section: type, prefix: str) -> Iterator[Setting]:
    types = get_type_hints(section)
    for item in fields(section):
        declared = types[item.name]
        if isinstance(declared, type) and is_dataclass(declared):
            yield from _settings_in(declared, f"{prefix}{item.name}.")
            continue
        if item.default is MISSING or "doc" not in item.metadata:
            raise TypeError(f"{section.__name__}.{item.name} is no setting: it has no default or no doc")
        yield Setting(prefix + item.name.removesuffix("_s"), _kind(declared), item.default, **item.metadata)


def _kind(declared: Any) -> Kind:
    kinds: dict[Any, Kind] = {bool: "switch", int: "number", float: "duration", str: "text"}
    if isinstance(declared, UnionType):
        declared = next(part for part in get_args(declared) if part is not NoneType)
    return kinds.get(declared, "list")
