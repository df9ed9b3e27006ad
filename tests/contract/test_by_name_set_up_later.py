"""`netsetup up` and `down` while the tunnel runs, and resolv.conf written anew in between: the tunnel takes notice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.contract.by_name import until
from tests.netsetup.private_network import Machine, machine, why_not

MISSING = [name for name in ("curl", "dig") if shutil.which(name) is None]
WHY_NOT = why_not() or (f"{', '.join(MISSING)} not installed" if MISSING else None)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

NAME = "pair.demo.svc.cluster.local"
OF_ANOTHER_NETWORK = "search home.example\nnameserver 198.51.100.53\n"


class Log:
    """What the tunnel says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        self._process = process
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line

    def end(self) -> int:
        self._process.terminate()
        status = self._process.wait(20)
        self._reader.join(5)
        return status


def hostname(own: Machine) -> str:
    return own.run("curl", "-sS", "--max-time", "10", f"http://{NAME}/hostname", check=False).stdout


def test_names_come_and_go_with_the_network(tmp_path: Path) -> None:
    with machine(tmp_path) as own:
        own.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
        before = own.facts()
        command = [sys.executable, "-m", "kubetunnel", "--demo", "--port=8080", "--set", f"confdir={tmp_path}/confdir"]
        with subprocess.Popen(
            own.command(*command),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own.environ | {"PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            log = Log(process)
            try:
                until(lambda: "Try:" in log.text, 40)
                assert hostname(own) == ""
                own.netsetup("up")
                until(lambda: hostname(own) == "pair\n")
                address = own.run("dig", "+short", NAME).stdout

                (own.etc / "resolv.conf").write_text(OF_ANOTHER_NETWORK)  # what a DHCP client does
                until(lambda: "was written anew" in log.text)
                assert hostname(own) == ""
                mends = re.search(r"See: sudo (sed .*)", log.text)
                assert mends is not None
                own.run("sh", "-c", mends[1])
                until(lambda: hostname(own) == "pair\n")
                until(lambda: "names the clusters' DNS server, 10.8.0.1, again" in log.text)
                assert own.run("dig", "+short", NAME).stdout == address

                own.netsetup("down")
                assert (own.etc / "resolv.conf").read_text() == OF_ANOTHER_NETWORK
                assert hostname(own) == ""
                own.netsetup("up")
                until(lambda: hostname(own) == "pair\n")
                assert own.run("dig", "+short", NAME).stdout == address
                own.netsetup("down")
            finally:
                status = log.end()
        assert status == 0, log.text
        assert "Traceback" not in log.text, log.text
        (own.etc / "resolv.conf").write_bytes(before["/etc"]["resolv.conf"][2])
        assert own.facts() == before
