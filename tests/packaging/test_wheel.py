"""The wheel and the sdist, built and used outside the checkout.

The environment that they are installed in is empty but for the dependencies, which it takes from the tests' own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubetunnel import __version__
from tests.tunnel import ROOT, curl, without_proxies

BUILD_TIMEOUT_S = 180
START_TIMEOUT_S = 60


def run(*command: object, cwd: Path, **more: str) -> str:
    """What it prints. Fails the test where the exit status is not 0."""
    words = [str(word) for word in command]
    environment = {**without_proxies(), "PYTHONPATH": "", **more}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, env=environment)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", directory, cwd=ROOT)
    return directory


def the(pattern: str, directory: Path) -> Path:
    (found,) = directory.glob(pattern)
    return found


def packaged(root: Path) -> set[str]:
    """Files of the packages, as a wheel names them."""
    found = {"kubetunnel/kube_tunnel.py"}
    for package, parent in (("kubetunnel", root / "addons"), ("netsetup", root)):
        for file in (parent / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                found.add(str(file.relative_to(parent)))
    return found


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_every_file_of_the_packages_is_in_the_wheel(dist: Path) -> None:
    assert names_in(the("*.whl", dist)) == packaged(ROOT)


def test_the_sdist_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(the("*.tar.gz", dist)) as archive:
        archive.extractall(tmp_path, filter="data")
    source = the(f"kube_tunnel-{__version__}", tmp_path)
    for wanted in ("LICENSE", "Dockerfile", "deploy/base/deployment.yaml", "tests/tunnel.py"):
        assert (source / wanted).is_file(), wanted
    assert not (source / ".venv").exists()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=source)
    assert names_in(the("*.whl", tmp_path / "again")) == names_in(the("*.whl", dist))


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel."""
    directory = tmp_path_factory.mktemp("installed")
    python = directory / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    run(*pip, the("*.whl", dist), cwd=directory)
    here = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip()
    dependencies = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory)
    # a path in a .pth file is added without the .pth files there, so the editable checkout is not
    (Path(here) / "dependencies.pth").write_text(dependencies)
    assert here in run(python, "-c", "import kubetunnel; print(kubetunnel.__file__)", cwd=directory)
    return python.parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_its_commands(installed: Path, home: Path) -> None:
    environment = {"HOME": str(home)}
    tunnel = installed / "kube-tunnel"
    assert __version__ in run(tunnel, "--version", cwd=home, **environment)
    addon = Path(run(tunnel, "addon-path", cwd=home, **environment).strip())
    assert addon.is_relative_to(installed.parent)
    assert addon.is_file()
    assert "Usage: " in run(installed / "python", "-m", "netsetup", "up", "--help", cwd=home, **environment)
    assert "Usage: " in run(installed / "python", "-m", "kubetunnel", "--help", cwd=home, **environment)
    units = [installed / "python", "-c", "from kubetunnel.cli.units import command; command()"]
    assert "[Service]" in run(*units, cwd=home, **environment)


@contextmanager
def running(command: list[object], home: Path) -> Iterator[int]:
    """The port that a tunnel listens on, while it runs."""
    kept = {name: value for name, value in without_proxies().items() if name not in ("KUBECONFIG", "PYTHONPATH")}
    environment = {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(word) for word in command], cwd=home, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    killer = threading.Timer(START_TIMEOUT_S, process.kill)
    killer.start()
    lines = []
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"listening at .*:(\d+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield int(found[1])
        finally:
            killer.cancel()
            process.terminate()
            process.communicate(timeout=30)


def test_the_demo_as_a_command_and_as_an_addon(installed: Path, home: Path) -> None:
    addon = run(installed / "kube-tunnel", "addon-path", cwd=home, HOME=str(home)).strip()
    mitmdump = [installed / "python", "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()"]
    options = ["--set", "kube_demo=true", "--set", "kube_dns_enabled=false", "-p", "0"]
    demo = [installed / "python", "-c", "from kubetunnel.cli.demo import command; command()"]
    for command in ([*demo, "--no-dns", "--", "-p", "0"], [*mitmdump, "-s", addon, *options]):
        with running(command, home) as port:
            answer = curl("-H", "Host: echo.demo", f"http://127.0.0.1:{port}/hostname", timeout_s=30)
            assert (answer.status, answer.text[:5]) == (200, "echo-"), answer
    assert not (home / ".kube").exists()
    assert (home / ".mitmproxy" / "mitmproxy-ca.pem").stat().st_mode & 0o077 == 0
