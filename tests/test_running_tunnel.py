"""Whether a tunnel of ours answers is told by the tunnel alone."""

from __future__ import annotations

import socket
from pathlib import Path

from kubetunnel.running_tunnel import tunnel_answers
from tests.tunnel import Tunnel, curl

KUBECONFIG = """
current-context: silent
contexts: [{{name: silent, context: {{cluster: silent, user: nobody}}}}]
clusters: [{{name: silent, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: nobody}}]
"""


def test_it_answers_while_its_cluster_is_silent_and_counts_no_refusal(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kubeconfig.write_text(KUBECONFIG.format(port=silent.getsockname()[1]))
        with Tunnel(tmp_path, kubeconfig=kubeconfig) as tunnel:
            assert tunnel_answers("127.0.0.1", tunnel.port)
            assert curl(f"{tunnel.url}/health/metrics").json["refusals"] == {}
            assert curl(f"{tunnel.url}/api/v1/flows").json["total"] == 0


def test_it_answers_who_has_no_password_too(tmp_path: Path) -> None:
    with Tunnel(tmp_path, kubeconfig=tmp_path / "none", options=["--proxyauth", "me:secret"]) as tunnel:
        assert tunnel_answers("127.0.0.1", tunnel.port)


def test_another_program_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not tunnel_answers("127.0.0.1", other.getsockname()[1], timeout_s=0.1)
