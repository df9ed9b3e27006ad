"""The demo's objects: the plain case and the odd ones a forwarder meets, the same as in the tests' real cluster."""

from __future__ import annotations

import asyncio

from kubetunnel.sim.controlplane import ControlPlane
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, ContainerPort, PodTemplate
from kubetunnel.sim.rollouts import Rollouts

ECHO_IMAGE = "k8s.local/echo:1"
BUSYBOX_IMAGE = "k8s.local/busybox:1"
API_SERVICE_ADDRESS = "10.96.0.1"
_PROBE = ("wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/healthz")

ECHO = PodTemplate(
    {"app": "echo"},
    (
        Container(
            "echo",
            ECHO_IMAGE,
            ports=(
                ContainerPort("http", 8080),
                ContainerPort("https", 8443),
                ContainerPort("grpc", 9090),
                ContainerPort("grpcs", 9443),
                ContainerPort("tcp-echo", 9000),
            ),
            env={"TLS_DIR": "/tls", "APP_VERSION": "1"},
            readiness=_PROBE,
        ),
    ),
)
ECHO_STS = PodTemplate(
    {"app": "echo-sts"}, (Container("echo", ECHO_IMAGE, ports=(ContainerPort("http", 8080),), readiness=_PROBE),)
)
ZERO = PodTemplate({"app": "zero"}, (Container("echo", ECHO_IMAGE),))
OTHER_ECHO = PodTemplate({"app": "echo"}, (Container("echo", ECHO_IMAGE, env={"APP_VERSION": "other"}),))
UNREADY = PodTemplate(
    {"app": "unready"}, (Container("echo", ECHO_IMAGE, readiness=("false",)),), never_ready=True
)  # running, never ready
PAIR = PodTemplate(
    {"app": "pair"},
    (
        Container("side", BUSYBOX_IMAGE, command=("sleep", "1000000")),
        Container("echo", ECHO_IMAGE, ports=(ContainerPort("web", 8080),)),  # the port is the second container's
    ),
)

ECHO_PORTS = (
    Port(80, "http", "http"),
    Port(443, "https", 8443),
    Port(9090, "grpc", "grpc"),
    Port(9443, "grpcs", "grpcs"),
    Port(7, "tcp", "tcp-echo"),
    Port(9001, "banner", 9001),
    Port(9002, "reset", 9002),
    Port(9003, "count", 9003),
    Port(9004, "flood", 9004),
    Port(9005, "lo4", 9005),
    Port(9006, "lo6", 9006),
    Port(9007, "mute", 9007),
    Port(9999, "refused", 9999),
)
SERVICES = (
    ServiceSpec("demo", "echo", ECHO_PORTS, {"app": "echo"}, labels={"app": "echo"}),
    ServiceSpec(
        "demo",
        "echo-sts",
        (Port(8080, "http", "http"), Port(9000, "tcp", 9000)),
        {"app": "echo-sts"},
        cluster_ip="None",
    ),
    ServiceSpec("demo", "pair", (Port(80, "", "web"),), {"app": "pair"}),
    ServiceSpec("demo", "unready", (Port(80, "", 8080),), {"app": "unready"}),
    ServiceSpec("demo", "zero", (Port(80, "", 8080),), {"app": "zero"}),
    ServiceSpec("demo", "noselector", (Port(80),)),
    ServiceSpec("demo", "external", external_name="example.invalid"),
    ServiceSpec("other", "echo", (Port(80, "http", 8080),), {"app": "echo"}),
)
# of the pods' certificate
CERTIFIED_NAMES = (
    "localhost", "echo", "echo.demo", "echo.demo.svc", "echo.demo.svc.cluster.local", "*.echo-sts.demo",
    "*.echo-sts.demo.svc.cluster.local", "127.0.0.1",
)  # fmt: skip
NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system", "demo", "other")


async def populate(control: ControlPlane, rollouts: Rollouts, api_port: int) -> None:
    """Create the demo; returns when all its pods run."""
    for name in NAMESPACES:
        control.add_namespace(name)
    labels = {"component": "apiserver", "provider": "kubernetes"}
    ports = (Port(443, "https", api_port),)
    control.add_service(ServiceSpec("default", "kubernetes", ports, labels=labels, cluster_ip=API_SERVICE_ADDRESS))
    for service in SERVICES:
        control.add_service(service)
    async with asyncio.TaskGroup() as group:
        for starting in (
            rollouts.add("demo", "echo-sts", 2, ECHO_STS, stateful=True),
            control.add_pod("demo", "unready", UNREADY),
            control.add_pod("demo", "pair", PAIR),
            rollouts.add("demo", "echo", 2, ECHO, labels={"app": "echo"}),
            rollouts.add("demo", "zero", 0, ZERO),
            control.add_pod("other", "echo", OTHER_ECHO),
        ):
            group.create_task(starting)
