"""The CA: made once, its key for its owner alone, and trusted where the text says so. Throw-away test certificates."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubetunnel.ca import describe
from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import ROOT, Tunnel, curl, without_proxies

HOST = "echo.demo.svc.cluster.local"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_ca_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    confdir = tmp_path / "new" / "confdir"
    before = os.umask(0o022)
    try:
        first = describe(confdir)
    finally:
        os.umask(before)
    assert first.startswith(f"{confdir}/mitmproxy-ca-cert.pem\n")
    assert mode(confdir) == 0o700
    assert {path.name: mode(path) for path in confdir.glob("mitmproxy-ca.*")} == {
        "mitmproxy-ca.pem": 0o600,
        "mitmproxy-ca.p12": 0o600,
    }
    assert "PRIVATE" not in (confdir / "mitmproxy-ca-cert.pem").read_text()
    assert describe(confdir) == first


def test_a_key_that_others_may_read_is_closed(tmp_path: Path) -> None:
    describe(tmp_path)
    key = tmp_path / "mitmproxy-ca.pem"
    key.chmod(0o644)
    describe(tmp_path)
    assert mode(key) == 0o600


def test_a_ca_of_ones_own_is_described(tmp_path: Path) -> None:
    text = describe(tmp_path)
    certificate = tmp_path / "mitmproxy-ca-cert.pem"
    certificate.unlink()
    assert describe(tmp_path) == text
    assert ssl.create_default_context(cafile=certificate).cert_store_stats()["x509_ca"] == 1


def test_what_is_no_ca_is_told(tmp_path: Path) -> None:
    key = tmp_path / "mitmproxy-ca.pem"
    key.write_text("nothing")
    with pytest.raises(ValueError, match=re.escape(str(key))):
        describe(tmp_path)


@pytest.fixture
async def confdir(tmp_path: Path) -> Path:
    return tmp_path / "conf dir"  # where a path is not quoted, it shows


@pytest.fixture
async def tunnel(sim: SimCluster, confdir: Path, tmp_path: Path) -> AsyncIterator[Tunnel]:
    """On a CA that was there before it started."""
    describe(confdir)
    tunnel = await asyncio.to_thread(Tunnel, confdir, kubeconfig=sim.kubeconfig(tmp_path / "kubeconfig"))
    yield tunnel
    await asyncio.to_thread(tunnel.close)


async def test_what_the_text_says_is_trusted_by_clients(tunnel: Tunnel, confdir: Path) -> None:
    text = describe(confdir)
    through = ("--connect-to", f"::127.0.0.1:{tunnel.port}", f"https://{HOST}/hostname")
    refused = await asyncio.to_thread(curl, *through)
    assert refused.exit_code == 60, "curl's code for a certificate that it does not trust"
    command = re.search(r"^ +curl +curl (.*) https://… ", text, re.MULTILINE)
    assert command is not None
    trusted = await asyncio.to_thread(curl, *shlex.split(command[1]), *through)
    assert trusted.text.startswith("echo-")
    assert (await asyncio.to_thread(curl, "-k", *through)).text.startswith("echo-")
    python = re.search(r"^ +Python +export (.*)", text, re.MULTILINE)
    assert python is not None
    assert await ask_with_python(tunnel.port, dict(part.split("=", 1) for part in shlex.split(python[1]))) == 0
    assert await ask_with_python(tunnel.port, {}) == 1


async def ask_with_python(port: int, env: dict[str, str]) -> int:
    """The exit status of a Python that opens TLS to our port by the Service's name, with the CAs that it trusts."""
    script = (
        "import socket, ssl, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20);"
        "ssl.create_default_context().wrap_socket(s, server_hostname=sys.argv[2])"
    )
    command = [sys.executable, "-c", script, str(port), HOST]
    done = await asyncio.to_thread(
        subprocess.run, command, env={**without_proxies(), **env}, capture_output=True, timeout=30
    )
    return done.returncode


@pytest.mark.skipif(not shutil.which("keytool"), reason="needs Java's keytool")
def test_java_takes_the_certificate(tmp_path: Path) -> None:
    text = describe(tmp_path)
    command = re.search(r"^ +Java +(keytool .*)", text, re.MULTILINE)
    assert command is not None
    own_store = command[1].replace("-cacerts", f"-keystore {shlex.quote(str(tmp_path / 'store'))}")
    subprocess.run(shlex.split(own_store), check=True, capture_output=True, timeout=60)


# certs/make-test-certs


def make(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "certs" / "make-test-certs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=cwd)


def test_test_certificates_fit_each_other(tmp_path: Path) -> None:
    done = make("made", "api.shop", "127.0.0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made"
    assert {path.name: mode(path) for path in made.iterdir()} == {
        "ca.pem": 0o644, "server.pem": 0o644, "server.key": 0o600, "client.pem": 0o600,
    }  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(made / "server.pem", made / "server.key")
    client = ssl.create_default_context(cafile=made / "ca.pem")
    client.load_cert_chain(made / "client.pem")
    shake_hands(client, server, "api.shop")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "other.shop")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(6):
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert not ends


@pytest.mark.parametrize("directory", [ROOT, ROOT / "certs" / "made", ROOT / "tests" / ".." / "new" / "deep"])
def test_the_repository_is_no_place_for_keys(directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    for written in (directory, link / directory.relative_to(ROOT)):
        done = make(written, cwd=tmp_path)
        assert done.returncode == 1
        assert "repository" in done.stderr
        assert written in (ROOT, link) or not written.exists()


def test_test_certificates_replace_older_ones(tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    key.write_text("old")
    key.chmod(0o644)
    assert make(tmp_path, cwd=tmp_path).returncode == 0
    assert mode(key) == 0o600
    assert "PRIVATE KEY" in key.read_text()


def test_without_a_directory_it_says_what_it_does(tmp_path: Path) -> None:
    done = make(cwd=tmp_path)
    assert done.returncode == 1
    assert "DIRECTORY" in done.stderr
    assert list(tmp_path.iterdir()) == []
