"""TLS to the pod as the pod sees it: the SNI, the ALPN offer, the certificate that the user gives us."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.listener import reset
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.proxy.scripted_pod import ScriptedPod
from tests.simulated import simulated
from tests.tunnel import Answer, Tunnel, curl

POD_PORT, OTHER_POD_PORT = 7443, 7444
NAME = "vault.demo.svc.cluster.local"


@dataclass
class Seen:
    """What the pod saw of its clients."""

    names: list[str | None] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    protocols: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Vault:
    """A tunnel to a Service whose pod wants a client's certificate."""

    seen: Seen
    tunnel: Tunnel

    def ask(self, port: int, *arguments: str) -> Answer:
        at = f"::127.0.0.1:{self.tunnel.port}"
        return curl("-k", "--connect-to", at, *arguments, f"https://{NAME}:{port}/", timeout_s=10)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    directory = tmp_path_factory.mktemp("sim")
    authority, seen, pod = CertificateAuthority("vault-ca"), Seen(), ScriptedPod({})
    ours = authority.client("kube-tunnel")
    (directory / "ca.pem").write_text(authority.certificate_pem)
    (directory / "client.pem").write_text(ours.certificate_pem + ours.key_pem)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        subject = dict(name[0] for name in tls.getpeercert()["subject"])
        seen.subjects.append(subject["commonName"])
        seen.protocols.append(tls.selected_alpn_protocol())
        await pod.serve(reader, writer)

    def context(certified_name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=authority.certificate_pem)
        made.set_alpn_protocols(["http/1.1"])
        made.sni_callback = lambda _, name, __: seen.names.append(name)
        authority.server("vault", (certified_name,)).load_into(made)
        return made

    async def prepare(cluster: SimCluster) -> None:
        workload = cluster.pod("demo", "pair").workload
        assert workload is not None
        await workload.listen(POD_PORT, serve, context(NAME))
        await workload.listen(OTHER_POD_PORT, serve, context("another.demo.svc.cluster.local"))
        ports = Port(443, "https", POD_PORT), Port(444, "https-other", OTHER_POD_PORT), Port(445, "https-shy", POD_PORT)
        await cluster.add_service(ServiceSpec("demo", "vault", ports, {"app": "pair"}))
        cluster.kubeconfig(directory / "kubeconfig")

    both = f"ca_file={directory / 'ca.pem'} client_certificate={directory / 'client.pem'}"
    specs = [f"vault.demo:443 {both}", f"vault.demo:444 {both}"]
    options = [option for spec in specs for option in ("--set", f"kube_services={spec}")]
    with (
        simulated(prepare),
        Tunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=directory / "kubeconfig", options=options) as tunnel,
    ):
        yield Vault(seen, tunnel)
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_the_pod_sees_the_services_name_and_our_certificate(vault: Vault, version: str) -> None:
    answer = vault.ask(443, version)
    assert (answer.status, answer.text) == (200, "ok"), answer.stderr
    assert (vault.seen.names[-1], vault.seen.subjects[-1], vault.seen.protocols[-1]) == (
        NAME,
        "kube-tunnel",
        "http/1.1",
    )


def test_a_certificate_for_another_name_is_refused(vault: Vault) -> None:
    before = len(vault.seen.subjects)
    answer = vault.ask(444, "--http1.1")
    assert (answer.status, answer.reason) == (502, "UpstreamProtocol"), answer.stderr
    assert "certificate" in answer.json["detail"].lower()
    assert len(vault.seen.subjects) == before, "nothing was sent"


def test_a_pod_that_misses_a_certificate_says_so(vault: Vault) -> None:
    answer = vault.ask(445, "--http1.1")
    assert answer.status == 502
    assert answer.reason in ("UpstreamProtocol", "UpstreamReset")


async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.demo ready\r\n")
    await reader.read()


async def reset_when_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    reset(writer)


@pytest.fixture(scope="module")
def reluctant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A tunnel, quickly out of patience, to pods that do not take part in TLS as they should."""
    directory = tmp_path_factory.mktemp("sim")

    async def prepare(cluster: SimCluster) -> None:
        workload = cluster.pod("demo", "pair").workload
        assert workload is not None
        programs = {"hang-up": hang_up, "silent": say_nothing, "greet": greet, "reset": reset_when_asked}
        for number, program in enumerate(programs.values(), 7501):
            await workload.listen(number, program)
        without_alpn = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        CertificateAuthority("ca").server("old", (NAME,)).load_into(without_alpn)
        await workload.listen(7511, ScriptedPod({}).serve, without_alpn)
        for number, name in enumerate([*programs, "absent"], 7501):
            await cluster.add_service(ServiceSpec("demo", name, (Port(443, "https", number),), {"app": "pair"}))
        ports = Port(443, "https", 7511), Port(444, "grpcs", 7511), Port(445, "https-ws", 7511, app_protocol="wss")
        await cluster.add_service(ServiceSpec("demo", "old", ports, {"app": "pair"}))
        cluster.kubeconfig(directory / "kubeconfig")

    options = ["--set", "kube_response_header_timeout=3s"]
    with (
        simulated(prepare),
        Tunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=directory / "kubeconfig", options=options) as tunnel,
    ):
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


def ask_in_tls(tunnel: Tunnel, host: str, *arguments: str) -> Answer:
    return curl("-k", "--connect-to", f"::127.0.0.1:{tunnel.port}", *arguments, f"https://{host}/", timeout_s=20)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(
    ("name", "status", "reason", "detail"),
    [
        ("hang-up", 502, "UpstreamReset", "closed the connection in the TLS handshake"),
        ("reset", 502, "UpstreamReset", "closed the connection in the TLS handshake"),
        ("silent", 504, "Timeout", "said nothing to TLS in 3 s"),
        ("greet", 502, "UpstreamProtocol", "does not speak TLS"),
        ("absent", 502, "ConnectionRefused", "Nothing listens on port 7505"),
    ],
)
def test_a_pod_that_does_not_finish_the_handshake(
    reluctant: Tunnel, name: str, status: int, reason: str, detail: str, version: str
) -> None:
    answer = ask_in_tls(reluctant, f"{name}.demo", version)
    assert (answer.status, answer.reason) == (status, reason), answer.stderr
    assert detail in answer.json["detail"]
    assert "pair" in answer.json["command"]


@pytest.fixture(scope="module")
def http2_only(reluctant: Tunnel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Tunnel]]:
    """Tunnels to the same cluster with a switch turned on."""
    kubeconfig = next(a.partition("=")[2] for a in reluctant.process.args if "kube_kubeconfig=" in a)  # type: ignore[union-attr]
    with contextlib.ExitStack() as stack:

        @functools.cache
        def with_switch(switch: str) -> Tunnel:
            confdir = tmp_path_factory.mktemp("confdir")
            return stack.enter_context(Tunnel(confdir, kubeconfig=kubeconfig, options=["--set", f"{switch}=true"]))

        yield with_switch


@pytest.mark.parametrize(
    ("switch", "version"),
    [("kube_disable_fallback", "--http2"), ("kube_force_http2", "--http2"), ("kube_force_http2", "--http1.1")],
)
def test_http2_or_not_at_all_is_meant_in_tls_too(
    http2_only: Callable[[str], Tunnel], switch: str, version: str
) -> None:
    answer = ask_in_tls(http2_only(switch), "old.demo", version)
    assert (answer.status, answer.reason) == (502, "UpstreamProtocol"), answer.stderr
    assert "takes no HTTP/2" in answer.json["detail"]


@pytest.mark.parametrize(
    ("switch", "host", "version"),
    [
        ("kube_disable_fallback", "old.demo", "--http1.1"),
        ("kube_force_http2", "old.demo:445", "--http1.1"),  # WebSocket goes as HTTP/1.1 alone
    ],
)
def test_what_needs_no_http2_does_not_fail_for_it(
    http2_only: Callable[[str], Tunnel], switch: str, host: str, version: str
) -> None:
    answer = ask_in_tls(http2_only(switch), host, version)
    assert (answer.status, answer.text) == (200, "ok"), answer.stderr


def test_a_ports_name_is_a_guess_that_alpn_corrects(reluctant: Tunnel) -> None:
    answer = ask_in_tls(reluctant, "old.demo:444", "--http2")
    assert (answer.status, answer.text) == (200, "ok"), answer.stderr
