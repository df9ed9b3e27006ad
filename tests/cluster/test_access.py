from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import gc
import socket
import ssl
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kubetunnel.cluster.access import ClusterAccess, load_access
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import Named
from kubetunnel.cluster.exec_plugin import Credential
from kubetunnel.cluster.resource import NAMESPACES, Query
from kubetunnel.core.errors import ClusterUnreachable, KubeconfigError, Unauthenticated
from tests.cluster.certificates import Authority
from tests.cluster.conftest import WriteKubeconfig, until
from tests.cluster.fake_api import FakeApi


def encoded(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


def edit(path: str, old: str, new: str) -> None:
    Path(path).write_text(Path(path).read_text().replace(old, new))


async def reaches(access: ClusterAccess) -> None:
    api = ApiServer(access)
    try:
        await api.list_objects(Query(NAMESPACES, Named))
    finally:
        await api.aclose()


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_headers_and_attributes(api_server: FakeApi, kubeconfig: WriteKubeconfig) -> None:
    path = kubeconfig(
        user={"token": "t", "as": "jane", "as-groups": ["a", "b"]}, cluster={"server": f"{api_server.url}/k8s/c1/"}
    )
    access = await load_access(kubeconfig=path)
    assert list((await access.headers()).items()) == [
        ("Authorization", "Bearer t"),
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
    ]
    assert (access.context, access.namespace, access.path_prefix) == ("test", "shop", "/k8s/c1")
    assert access.kubectl("get", "svc") == f"kubectl --kubeconfig {path} get svc"
    await reaches(access)


async def test_an_old_authority_without_key_identifiers_is_trusted(
    api_server: FakeApi, kubeconfig: WriteKubeconfig
) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    transport, _ = await access.connect(asyncio.Protocol)
    connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
    assert connection.selected_alpn_protocol() in (None, "http/1.1")
    transport.abort()
    assert await access.tls() is await access.tls(), "one context for all connections"


@pytest.mark.parametrize("name", ["other.test", "api.test"])
async def test_the_servers_name_is_checked(api_server: FakeApi, kubeconfig: WriteKubeconfig, name: str) -> None:
    access = await load_access(kubeconfig=kubeconfig(cluster={"tls-server-name": name}))
    if name == "api.test":
        await reaches(access)
    else:
        with pytest.raises(ClusterUnreachable, match="certificate is not trusted, Hostname mismatch"):
            await reaches(access)


async def test_a_foreign_authority_is_not_trusted_unless_told(api_server: FakeApi, kubeconfig: WriteKubeconfig) -> None:
    foreign = {"certificate-authority-data": encoded(Authority().pem)}
    with pytest.raises(ClusterUnreachable, match="its certificate is not trusted"):
        await reaches(await load_access(kubeconfig=kubeconfig(cluster=foreign)))
    insecure = {"certificate-authority-data": "", "insecure-skip-tls-verify": True}
    await reaches(await load_access(kubeconfig=kubeconfig(cluster=insecure)))


async def test_a_client_certificate_is_shown_and_leaves_no_file(
    authority: Authority, kubeconfig: WriteKubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    modes: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, certfile: str, **rest: object) -> None:
        modes.append(Path(certfile).stat().st_mode & 0o777)
        load(self, certfile, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    certificate, key = authority.issue("jane")
    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    server = FakeApi(authority)
    server.tls = authority.server_context("127.0.0.1", client_certificates=ssl.CERT_REQUIRED)
    modes.clear()
    async with server:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": server.url}, user=user))
        await reaches(access)
        assert await access.headers() == {}
    assert modes == [0o600]
    assert list(directory.iterdir()) == []


async def test_an_expired_client_certificate_is_unauthenticated(
    authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    certificate, key = authority.issue("jane", ends_in=-datetime.timedelta(days=1))
    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    server = FakeApi(authority)
    server.tls = authority.server_context("127.0.0.1", client_certificates=ssl.CERT_REQUIRED)
    async with server:  # refuses in TLS, as front ends do
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": server.url}, user=user))
        with pytest.raises(Unauthenticated, match=r"broke off with .*: its client certificate expired on"):
            await reaches(access)
    server.tls, server.tokens = authority.server_context("127.0.0.1"), set()
    async with server:  # refuses by 401, as the API server does
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": server.url}, user=user))
        with pytest.raises(Unauthenticated, match=r"user 'me': its client certificate expired on \d{4}"):
            await reaches(access)


async def test_a_tls_alert_about_our_certificate_is_unauthenticated(
    authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    context = authority.server_context("127.0.0.1", client_certificates=ssl.CERT_REQUIRED)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(2):  # aiohttp tries once more by itself
                connection, _peer = listener.accept()
                with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
                    with contextlib.suppress(ssl.SSLError):
                        tls.do_handshake()
                    socket.socket.shutdown(tls, socket.SHUT_WR)
                    while socket.socket.recv(tls, 4096):
                        pass  # a close with unread data would be a reset, which overtakes the alert

        threading.Thread(target=refuse, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": url}))
        with pytest.raises(Unauthenticated, match=r"broke off with the credentials of context test .*CERTIFICATE"):
            await reaches(access)


@pytest.mark.parametrize(
    ("field", "says"),
    [("client-certificate-data", "no PEM certificate with its unencrypted key"), ("client-key-data", "no PEM")],
)
async def test_a_pair_that_is_none_names_its_key(
    authority: Authority, kubeconfig: WriteKubeconfig, field: str, says: str
) -> None:
    certificate, key = authority.issue("jane")
    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key), field: encoded(b"junk")}
    with pytest.raises(KubeconfigError, match=rf"users\[name=me\]\.user\.{field}.*{says}"):
        await load_access(kubeconfig=kubeconfig(user=user))


async def test_an_authority_that_is_none_names_its_key(kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(KubeconfigError, match=r"clusters\[name=fake\]\.cluster\.certificate-authority-data: no PEM"):
        await load_access(kubeconfig=kubeconfig(cluster={"certificate-authority-data": encoded(b"junk")}))


async def test_a_dead_address_is_refused_in_time(kubeconfig: WriteKubeconfig, api_server: FakeApi) -> None:
    await api_server.stop()
    access = await load_access(kubeconfig=kubeconfig())
    with pytest.raises(ClusterUnreachable, match=f"{api_server.url} of context test .*: Connection refused") as refused:
        await access.connect(asyncio.Protocol)
    assert refused.value.command is not None
    assert refused.value.command.endswith("cluster-info")


async def test_a_server_that_does_not_speak_is_refused_in_time(kubeconfig: WriteKubeconfig) -> None:
    release = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with listening(silent) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{port}"}))
        access.reach.succeeded(0.01)  # when it was well
        with pytest.raises(ClusterUnreachable, match=r"no answer within 1\.5 s"):
            await access.connect(asyncio.Protocol)
        await access.aclose()
        release.set()
        gc.collect()


async def test_a_server_without_tls_says_so(kubeconfig: WriteKubeconfig) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with listening(plain) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{port}"}))
        with pytest.raises(ClusterUnreachable, match="cannot be reached"):
            await access.connect(asyncio.Protocol)


async def test_in_clear_no_credentials_are_sent_and_none_are_needed(
    authority: Authority, kubeconfig: WriteKubeconfig
) -> None:
    server = FakeApi(authority)
    server.tls = None
    async with server:
        for user in ({}, {"token": "t"}):
            access = await load_access(kubeconfig=kubeconfig(cluster={"server": server.url}, user=user))
            await reaches(access)
    assert all("Authorization" not in headers for headers in server.headers)


@pytest.mark.parametrize("context", [{}, {"user": ""}])
async def test_no_credentials_are_an_error_not_anonymity(kubeconfig: WriteKubeconfig, context: dict[str, str]) -> None:
    access = await load_access(kubeconfig=kubeconfig(user={}, context=context))
    with pytest.raises(Unauthenticated, match="no credentials"):
        await access.headers()
    with pytest.raises(Unauthenticated, match="no credentials"):
        await access.renew("")
    kubeconfig(user={"token": "now"})
    assert (await access.headers())["Authorization"] == "Bearer now"


async def test_a_token_file_is_read_again_as_it_rotates(kubeconfig: WriteKubeconfig, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    access = await load_access(kubeconfig=kubeconfig(user={"tokenFile": "token", "token": "stale"}))
    assert (await access.headers())["Authorization"] == "Bearer first"
    (tmp_path / "next").write_text("second\n")
    (tmp_path / "next").replace(token)
    assert (await access.headers())["Authorization"] == "Bearer second"
    token.unlink()
    with pytest.raises(Unauthenticated, match=r"token file .* cannot be read: No such file"):
        await access.headers()


async def test_a_half_written_kubeconfig_leaves_the_good_one(
    kubeconfig: WriteKubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    path = kubeconfig()
    access = await load_access(kubeconfig=path)
    edit(path, "clusters:", "clusters: [")
    for _ in range(3):
        assert (await access.headers())["Authorization"] == "Bearer secret-1"
    assert len([record for record in caplog.records if "not taken up" in record.message]) == 1
    kubeconfig(user={"token": "mended"})
    assert (await access.headers())["Authorization"] == "Bearer mended"


async def test_a_switched_current_context_does_not_move_a_running_tunnel(kubeconfig: WriteKubeconfig) -> None:
    path = kubeconfig()
    access = await load_access(kubeconfig=path)
    edit(path, "current-context: test", "current-context: elsewhere")
    edit(path, "secret-1", "secret-2")
    assert (await access.headers())["Authorization"] == "Bearer secret-2"
    assert access.context == "test"
    assert "--context test" in access.kubectl("version")


async def test_renew_without_anything_new_is_unauthenticated(kubeconfig: WriteKubeconfig) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    with pytest.raises(Unauthenticated, match="refused the credentials of user 'me'"):
        await access.renew("Bearer secret-1")
    kubeconfig(user={"token": "new"})
    await access.renew("Bearer secret-1")
    await access.renew("Bearer secret-1")  # a second request's: what came meanwhile is newer
    assert (await access.headers())["Authorization"] == "Bearer new"


async def http_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"Proxy-Authorization: Basic dTpw" not in head:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        return
    host, _, port = head.split()[1].decode().rpartition(":")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await splice(reader, writer, "127.0.0.1" if host == "api.test" else host, int(port))


async def socks_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    methods = (await reader.readexactly(2))[1]
    await reader.readexactly(methods)
    writer.write(b"\x05\x00")
    kind = (await reader.readexactly(4))[3]
    assert kind == 3, "the proxy resolves the name"
    name = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
    port = int.from_bytes(await reader.readexactly(2))
    writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
    await splice(reader, writer, {"api.test": "127.0.0.1"}[name], port)


async def splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    up_reader, up_writer = await asyncio.open_connection(host, port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))


@pytest.mark.parametrize(("scheme", "proxy"), [("http://u:p@", http_proxy), ("socks5://", socks_proxy)])
async def test_proxy_url(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, scheme: str, proxy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # would make a loop if it were used
    async with listening(proxy) as port:
        cluster = {"server": f"https://api.test:{api_server.port}", "proxy-url": f"{scheme}127.0.0.1:{port}"}
        access = await load_access(kubeconfig=kubeconfig(cluster=cluster))
        await reaches(access)
        await api_server.stop()
        await until(lambda: api_server.in_flight == 0)


async def test_the_environments_proxy_is_not_used(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await reaches(await load_access(kubeconfig=kubeconfig()))


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("https://u:hush@127.0.0.1:1", KubeconfigError, r"clusters\[name=fake\]\.cluster\.proxy-url is no SCHEME://"),
        ("http://u:hush@127.0.0.1", KubeconfigError, r"cluster\.proxy-url is no SCHEME://.* of http, socks5"),
        ("http://u:hush@.x:1", KubeconfigError, r"cluster\.proxy-url is no SCHEME://"),
        ("http://u:hush@127.0.0.1:1", ClusterUnreachable, "Connection refused"),
    ],
)
async def test_a_proxy_that_does_not_work(
    kubeconfig: WriteKubeconfig, url: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        access = await load_access(kubeconfig=kubeconfig(cluster={"proxy-url": url}))
        await access.connect(asyncio.Protocol)
    assert "hush" not in str(refused.value)


async def test_a_proxy_that_refuses(kubeconfig: WriteKubeconfig) -> None:
    async with listening(http_proxy) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"proxy-url": f"http://127.0.0.1:{port}"}))
        with pytest.raises(ClusterUnreachable, match="its proxy refused"):
            await access.connect(asyncio.Protocol)


async def test_a_cancelled_connect_leaves_nothing_open(kubeconfig: WriteKubeconfig) -> None:
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        while await reader.read():
            pass
        writer.close()
        ended.set()

    async with listening(silent) as port:
        access = await load_access(kubeconfig=kubeconfig(cluster={"server": f"https://127.0.0.1:{port}"}))
        connecting = asyncio.create_task(access.connect(asyncio.Protocol))
        await accepted.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        async with asyncio.timeout(20):
            await ended.wait()


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_connect_that_is_cancelled_as_tls_begins_keeps_its_descriptor_until_its_end(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed under its transport, it would be another connection's, which then fails or hears nothing."""
    monkeypatch.setattr("kubetunnel.cluster.connection.CLOSE_TIMEOUT_S", 3600.0)  # nobody waits for a good-bye

    class GivenUp(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.Event()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.socket = transport.get_extra_info("socket")
            connecting.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set()

    access = await load_access(kubeconfig=kubeconfig())
    protocol = GivenUp()
    connecting = asyncio.create_task(access.connect(lambda: protocol, bulk=bulk))
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert protocol.socket.fileno() >= 0, "its transport is not through with it"
    async with asyncio.timeout(30):
        await protocol.lost.wait()
    await access.aclose()


async def test_no_secret_is_logged(
    api_server: FakeApi, kubeconfig: WriteKubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    api_server.tokens = set()
    access = await load_access(kubeconfig=kubeconfig(user={"token": "hush"}))
    with pytest.raises(Unauthenticated):
        await reaches(access)
    assert caplog.records
    assert "hush" not in caplog.text


async def test_an_address_that_nothing_can_use_is_refused_at_the_door(kubeconfig: WriteKubeconfig) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    cluster = replace(access._loaded.config.cluster, server=f"https://{'a' * 64}.test:1")  # as an environment may say
    access._loaded = replace(access._loaded, config=replace(access._loaded.config, cluster=cluster))
    with pytest.raises(ClusterUnreachable, match="its address cannot be used"):
        await access.connect(asyncio.Protocol)


async def test_a_header_that_cannot_be_sent_is_refused_at_the_door(kubeconfig: WriteKubeconfig) -> None:
    access = await load_access(kubeconfig=kubeconfig())
    access._loaded = replace(access._loaded, credential=Credential(authorization="Bearer hush\nx: y"))
    with pytest.raises(ClusterUnreachable, match="characters that no HTTP request can carry") as refused:
        await reaches(access)
    assert "hush" not in "".join(traceback.format_exception(refused.value))


async def test_a_token_file_with_a_line_break_inside_is_refused(kubeconfig: WriteKubeconfig, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hush\nhush\n")
    access = await load_access(kubeconfig=kubeconfig(user={"tokenFile": "token"}))
    with pytest.raises(Unauthenticated, match=r"token file .*token has a control character") as refused:
        await access.headers()
    assert "hush" not in str(refused.value)


async def test_a_user_beyond_ascii_is_impersonated(api_server: FakeApi, kubeconfig: WriteKubeconfig) -> None:
    access = await load_access(kubeconfig=kubeconfig(user={"token": "t", "as": "jürgen"}))
    await reaches(access)
    assert api_server.headers[-1]["Impersonate-User"] == "jürgen"
