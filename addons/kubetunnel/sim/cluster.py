"""The simulated cluster: its API server, its pods with real workloads, and the switches that tests turn.

    async with SimCluster() as cluster:
        cluster.kubeconfig(path)                    # kubectl --kubeconfig path get pods -A
        await cluster.roll_deployment("demo", "echo")

It holds the same objects as the tests' real cluster (namespaces demo and other), so that one contract suite runs on
both. Everything listens on loopback addresses only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kubetunnel.sim import demo
from kubetunnel.sim.apiserver import ApiRequest, ApiServer
from kubetunnel.sim.certs import CertificateAuthority
from kubetunnel.sim.connection import Connection, Request
from kubetunnel.sim.controlplane import ControlPlane
from kubetunnel.sim.credentials import Auth, Credentials, write_private
from kubetunnel.sim.objects import Identities, ServiceSpec
from kubetunnel.sim.pods import Json, PodTemplate, SimPod
from kubetunnel.sim.rbac import ADMIN, LIMITED, Rule, User
from kubetunnel.sim.rollouts import Rollouts
from kubetunnel.sim.status import not_found
from kubetunnel.sim.store import Store

if TYPE_CHECKING:
    from kubetunnel.sim.faults import Faults
    from kubetunnel.sim.workloads import Workload

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
GARBAGE = b'{"type":"MODIFIED","object":{{{\n'


class SimCluster:
    """A cluster in this process and event loop.

    Args:
        port: the API server's port, 0 for a free one.
        seed: makes the generated names the same each time.

    Attributes:
        faults: what goes wrong on the way to the pods (faults.py): refuse, reset, stall, swallow, latency.
        api: switches of the API server itself: `latency_s`, `websocket_needs_create`, and in `api.answers`
            `bookmark_interval_s` and `disabled_groups`.
    """

    def __init__(self, *, port: int = 0, seed: int | None = None) -> None:
        from kubetunnel.sim.faults import Faults

        identities = Identities(seed)
        self.faults: Faults = Faults()
        self.store = Store()
        self.port = port
        self._control = ControlPlane(self.store, identities, self._start_workload)
        self._rollouts = Rollouts(self.store, identities, self._control)
        self._authority = CertificateAuthority()
        self._app_authority = CertificateAuthority("app-test-ca")
        self._app_certificate = self._app_authority.server("echo", demo.CERTIFIED_NAMES)
        self._credentials = Credentials(self._authority)
        self._restarts: set[asyncio.Task[None]] = set()
        self.api = ApiServer(self.store, self._credentials, self._tls(), self._port_forward)
        for user in (ADMIN, LIMITED):
            self._credentials.add(user)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start pods and API server; returns when clients can connect. Raises OSError where the port is taken."""
        try:
            self.port = await self.api.start(HOST, self.port)
            await demo.populate(self._control, self._rollouts, self.port)
        except BaseException:
            await self.aclose()
            raise
        logger.info("simulated cluster at %s", self.server)

    async def aclose(self) -> None:
        """Stop everything; returns when no task and no socket is left."""
        await self.api.stop()
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await self._control.aclose()
        self._credentials.close()

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{HOST}:{self.port}"

    @property
    def certificate_authority_pem(self) -> str:
        """The CA of the API server's certificate and of the users'."""
        return self._authority.certificate_pem

    @property
    def app_authority_pem(self) -> str:
        """The CA of the certificates that pods show at their TLS ports."""
        return self._app_authority.certificate_pem

    @property
    def requests(self) -> list[ApiRequest]:
        """Every API request so far, oldest first. Clear it to count anew."""
        return self.api.requests

    def count_requests(self, verb: str | None = None, path: str = "") -> int:
        """How many requests of this verb had `path` in their path."""
        return sum(verb in (None, request.verb) and path in request.path for request in self.requests)

    # Users

    def kubeconfig(
        self,
        path: Path | str,
        user: str = "admin",
        *,
        context: str = "sim",
        namespace: str = "demo",
        auth: Auth = "token",
    ) -> Path:
        """Write a kubeconfig (mode 0600) for a user; `auth` is how it authenticates:

        token, certificate: in the file, as they are now; exec: a plugin gives out the present token; token-file: a file
        that has it; none: anonymous.
        """
        written = self._credentials.kubeconfig(self.server, user, auth=auth, context=context, namespace=namespace)
        write_private(Path(path), json.dumps(written, indent=2) + "\n")  # JSON is YAML
        return Path(path)

    def user(self, name: str, rules: Iterable[Rule] = ()) -> User:
        """Add a user who may do what `rules` say, or give new rules to the one of that name."""
        user = User(name, tuple(rules))
        self._credentials.add(user)
        return user

    def token(self, user: str = "admin") -> str:
        """The user's present bearer token."""
        return self._credentials.token(user)

    def expire_credentials(self, user: str = "admin", *, renew: bool = True) -> None:
        """All credentials given out to the user are refused (401) from now on. With `renew` exec plugin and token file
        give out a new token; without, they keep the old one until `renew_credentials`.
        """
        self._credentials.expire(user)
        if renew:
            self._credentials.renew(user)

    def renew_credentials(self, user: str = "admin") -> None:
        """A new token, in the place of the old one."""
        self._credentials.renew(user)

    def plugin_runs(self, user: str = "admin") -> int:
        """How often the user's exec plugin was run."""
        return self._credentials.plugin_runs(user)

    # The API server

    async def stop_api(self) -> None:
        """Stop the API server: connections are cut, new ones refused. The pods run on."""
        await self.api.stop()
        logger.info("simulated API server stopped")

    async def start_api(self) -> None:
        """Start it again on the same port; what was is still there."""
        await self.api.start(HOST, self.port)
        logger.info("simulated API server started at %s", self.server)

    async def cut_connections(self) -> None:
        """Cut every connection to the API server, which goes on listening."""
        await self.api.cut_connections()

    def compact(self) -> None:
        """Forget the history: lists and watches at an older resourceVersion get 410 Gone."""
        self.store.compact()

    def expire_watches(self) -> None:
        """Every open watch gets an ERROR event, 410, and ends; so does one that is resumed from before."""
        self.store.compact()
        for watch in self.api.answers.watches:
            watch.expire()

    def cut_watches(self, *, orderly: bool = False) -> None:
        """End every open watch: its connection is cut, or (`orderly`) its answer ends as at its timeout."""
        for watch, connection in self.api.answers.watches.items():
            if orderly:
                watch.end()
            else:
                connection.abort()

    def send_garbage_in_watches(self, data: bytes = GARBAGE) -> None:
        """Write bytes that are no event into every open watch."""
        for watch in self.api.answers.watches:
            watch.inject(data)

    def send_bookmarks(self) -> None:
        """Send a bookmark in every open watch that allows them."""
        for watch in self.api.answers.watches:
            watch.send_bookmark()

    # Pods, Deployments, Services, Namespaces

    def pod(self, namespace: str, name: str) -> SimPod:
        """The pod of that name; raises KeyError."""
        return self._control.pods[namespace, name]

    def pods(self, namespace: str, **labels: str) -> list[SimPod]:
        """The pods of a Namespace that have these labels, oldest first."""
        found = [pod for pod in self._control.pods.values() if pod.namespace == namespace]
        return [pod for pod in found if labels.items() <= pod.labels.items()]

    async def add_pod(self, namespace: str, name: str, template: PodTemplate, *, ready: bool = True) -> SimPod:
        """Start a pod that no Deployment owns."""
        return await self._control.add_pod(namespace, name, template, ready=ready)

    async def kill_pod(self, namespace: str, name: str) -> None:
        """End a pod at once, without grace and without a successor (`scale` or `replace_pod` bring one)."""
        pod = self.pod(namespace, name)
        await self._control.remove_pod(pod)
        self._rollouts.pod_changed(pod)

    async def terminate_pod(self, namespace: str, name: str) -> None:
        """Begin to delete a pod: `terminating` in its slices, serving on; end it with `kill_pod`."""
        self._control.terminate(self.pod(namespace, name))

    async def replace_pod(self, namespace: str, name: str, *, grace_s: float = 0.0) -> SimPod:
        """Delete a pod, which serves on, terminating, for `grace_s`; returns the one that its controller brings."""
        return await self._rollouts.replace_pod(self.pod(namespace, name), grace_s=grace_s)

    async def roll_deployment(
        self, namespace: str, name: str, *, version: str | None = None, grace_s: float = 0.0
    ) -> None:
        """Replace all pods of a Deployment, each new one ready before an old one terminates."""
        await self._rollouts.roll(namespace, name, version=version, grace_s=grace_s)

    async def add_deployment(self, namespace: str, name: str, replicas: int, template: PodTemplate) -> None:
        """Create a Deployment and its pods."""
        await self._rollouts.add(namespace, name, replicas, template)

    async def scale(self, namespace: str, name: str, replicas: int, *, grace_s: float = 0.0) -> None:
        """Give a Deployment or StatefulSet another number of pods; killed ones are brought back."""
        await self._rollouts.scale(namespace, name, replicas, grace_s=grace_s)

    async def set_ready(self, namespace: str, name: str, ready: bool) -> None:
        """Let a pod's readiness probe succeed or fail from now on."""
        pod = self.pod(namespace, name)
        self._control.set_ready(pod, ready)
        self._rollouts.pod_changed(pod)

    async def add_service(self, spec: ServiceSpec) -> Json:
        """Add or replace a Service; its EndpointSlices follow at once. Returns the core/v1 object."""
        return self._control.add_service(spec)

    async def remove_service(self, namespace: str, name: str) -> None:
        """Remove a Service and its EndpointSlices."""
        self._control.remove_service(namespace, name)

    async def add_namespace(self, name: str) -> None:
        """Add an empty Namespace."""
        self._control.add_namespace(name)

    async def remove_namespace(self, name: str) -> None:
        """Remove a Namespace and all that is in it."""
        self._rollouts.remove(name)
        await self._control.remove_namespace(name)

    # What the API server and the pods call

    async def _port_forward(self, request: Request, connection: Connection, namespace: str, name: str) -> None:
        from kubetunnel.sim import portforward

        pod = self._control.pods.get((namespace, name))
        if pod is None:
            raise not_found("pods", "", name)
        await portforward.serve(request, connection.reader, connection.writer, pod, self.faults)

    async def _start_workload(self, pod: SimPod) -> Workload:
        from kubetunnel.sim.workloads import Workload

        workload = Workload(
            pod.name,
            version=pod.version,
            certificate=self._app_certificate,
            on_exit=lambda _: self._restart(pod),
        )
        await workload.start()
        return workload

    def _restart(self, pod: SimPod) -> None:
        """Called in the middle of the workload's own work: the container is started again outside of it."""
        task = asyncio.get_running_loop().create_task(self._control.restart(pod))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=self._authority.certificate_pem)
        context.verify_mode = ssl.CERT_OPTIONAL  # a client certificate of another CA fails the handshake
        context.set_alpn_protocols(["http/1.1"])
        names = ("localhost", "kubernetes", "kubernetes.default.svc", HOST, "::1", demo.API_SERVICE_ADDRESS)
        self._authority.server("kube-apiserver", names).load_into(context)
        return context
