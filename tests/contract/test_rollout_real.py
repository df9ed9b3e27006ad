"""A rolling restart and a killed pod on a real cluster, in a Namespace of the test's own: a copy of the demo's echo."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.test_faults_rollout import Load, asking, client
from tests.tunnel import InstalledTunnel, Tunnel

pytestmark = pytest.mark.cluster

ROLLOUT_S = 120.0
BIG = "/bytes?n=40m&rate=8m"


def kubectl(*arguments: str, manifest: Any = None) -> str:
    stdin = None if manifest is None else json.dumps(manifest)
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=ROLLOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    """Two pods behind a Service `echo`, all ready."""
    name = f"rollout-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        spec = json.loads(kubectl("-n", "demo", "get", "deployment", "echo", "-o", "json"))["spec"]
        # it serves on until the endpoint's end is known everywhere, as pods do that are meant to be rolled
        spec["template"]["spec"]["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", "3"]}}}
        spec["template"]["spec"]["terminationGracePeriodSeconds"] = 10
        metadata = {"name": "echo", "namespace": name}
        kubectl("apply", "-f", "-", manifest={"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                                              "spec": spec})  # fmt: skip
        ports = [{"name": "http", "port": 80, "targetPort": "http"}]
        service = {"selector": {"app": "echo"}, "ports": ports}
        kubectl("apply", "-f", "-", manifest={"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                                              "spec": service})  # fmt: skip
        roll_out(name)
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[Tunnel]:
    with InstalledTunnel(tmp_path, kubeconfig=os.environ["KUBECONFIG"]) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


def roll_out(namespace: str) -> None:
    kubectl("-n", namespace, "rollout", "status", "deployment/echo", f"--timeout={ROLLOUT_S:g}s")


def restart(namespace: str) -> None:
    kubectl("-n", namespace, "rollout", "restart", "deployment/echo")
    roll_out(namespace)


def pods(namespace: str) -> set[str]:
    return set(kubectl("-n", namespace, "get", "pods", "-o", "name").replace("pod/", "").split())


async def test_a_rolling_restart_fails_no_request(namespace: str, tunnel: Tunnel) -> None:
    before = await asyncio.to_thread(pods, namespace)
    async with client(keep_alive=True) as session:
        load = Load(asking(session, tunnel, f"echo.{namespace}"))
        await load.run_during(asyncio.to_thread(restart, namespace), after_s=2.0, limit_s=ROLLOUT_S)
    assert load.failures == []
    assert set(load.answers) & before
    assert len(set(load.answers) - before) == 2, "both of the new pods are used"


async def test_a_pod_that_is_killed_in_the_middle_of_a_body_fails_that_alone(namespace: str, tunnel: Tunnel) -> None:
    host = f"echo.{namespace}"
    downloads = [asyncio.create_task(asyncio.to_thread(tunnel.get, host, BIG, timeout_s=60)) for _ in range(4)]
    await asyncio.sleep(1.5)  # some of each has passed
    victim = (await asyncio.to_thread(pods, namespace)).pop()
    async with client(keep_alive=True) as session:
        load = Load(asking(session, tunnel, host))
        kill = ("-n", namespace, "delete", "pod", victim, "--grace-period=0", "--force")
        await load.run_during(asyncio.to_thread(kubectl, *kill), after_s=2.0, limit_s=ROLLOUT_S)
    assert load.failures == []
    answers = await asyncio.gather(*downloads)
    cut = [answer for answer in answers if answer.headers["x-pod"] == victim]
    whole = [answer for answer in answers if answer.headers["x-pod"] != victim]
    assert cut
    assert whole
    assert {answer.exit_code for answer in cut} == {18}, "curl: transfer closed with outstanding read data remaining"
    assert all((answer.exit_code, len(answer.body)) == (0, 40 << 20) for answer in whole)
