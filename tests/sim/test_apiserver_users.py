"""Authentication and authorisation: who gets 401 and 403, and in which words."""

from __future__ import annotations

import base64
import json
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.rbac import Rule
from tests.sim.api import Api, Json


def text(path: str) -> str:
    return Path(path).read_text()


def read(kubeconfig: Path) -> Json:
    return dict(json.loads(kubeconfig.read_text()))


@pytest.fixture
async def limited(cluster: SimCluster) -> AsyncIterator[Api]:
    async with Api(cluster, cluster.token("limited")) as api:
        yield api


SLICES = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices"
FORBIDDEN = '{} is forbidden: User "limited" cannot {} resource "{}" in API group "{}" {}'
IN_OTHER, IN_DEMO = 'in the namespace "other"', 'in the namespace "demo"'
CLUSTER_WIDE = "at the cluster scope"


# the texts are those of the real cluster's limited user
@pytest.mark.parametrize(
    ("path", "message", "details"),
    [
        (
            "/api/v1/namespaces/other/services/x",
            FORBIDDEN.format('services "x"', "get", "services", "", IN_OTHER),
            {"name": "x", "kind": "services"},
        ),
        (
            "/api/v1/services",
            FORBIDDEN.format("services", "list", "services", "", CLUSTER_WIDE),
            {"kind": "services"},
        ),
        (
            "/api/v1/namespaces",
            FORBIDDEN.format("namespaces", "list", "namespaces", "", CLUSTER_WIDE),
            {"kind": "namespaces"},
        ),
        (
            "/api/v1/namespaces/demo",
            FORBIDDEN.format('namespaces "demo"', "get", "namespaces", "", IN_DEMO),
            {"name": "demo", "kind": "namespaces"},
        ),
        (
            "/api/v1/namespaces/other/services?watch=1&fieldSelector=metadata.name%3Decho",
            FORBIDDEN.format('services "echo"', "watch", "services", "", IN_OTHER),
            {"name": "echo", "kind": "services"},
        ),
        (
            SLICES,
            FORBIDDEN.format("endpointslices.discovery.k8s.io", "list", "endpointslices", "discovery.k8s.io", IN_DEMO),
            {"group": "discovery.k8s.io", "kind": "endpointslices"},
        ),
        (
            "/api/v1/namespaces/demo/pods/echo-sts-0/portforward",
            FORBIDDEN.format('pods "echo-sts-0"', "get", "pods/portforward", "", IN_DEMO),
            {"name": "echo-sts-0", "kind": "pods"},
        ),
        ("/metrics", 'forbidden: User "limited" cannot get path "/metrics"', {}),
    ],
)
async def test_forbidden(limited: Api, path: str, message: str, details: Json) -> None:
    status, body = await limited.text("GET", path)
    found = json.loads(body)
    assert (status, found["reason"], found["message"]) == (403, "Forbidden", message)
    assert found["details"] == details


async def test_limited_may_read_its_namespace(limited: Api) -> None:
    assert len(await limited.names("/api/v1/namespaces/demo/services")) == 7
    assert len(await limited.names("/api/v1/namespaces/demo/pods")) == 6
    assert len(await limited.names("/api/v1/namespaces/demo/endpoints")) == 5
    assert (await limited.get("/version"))[0] == 200


async def test_anonymous(cluster: SimCluster) -> None:
    async with Api(cluster, None) as api:
        assert (await api.get("/version"))[0] == 200
        status, body = await api.get("/api/v1/namespaces/demo/services")
        assert status == 403
        assert body["message"].startswith('services is forbidden: User "system:anonymous" cannot list')
        assert (await api.get("/api"))[0] == 403


async def test_a_token_that_nobody_has(cluster: SimCluster) -> None:
    async with Api(cluster, "nonsense") as api:
        expected = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        expected |= {"message": "Unauthorized", "reason": "Unauthorized"}
        assert await api.get("/version") == (401, expected | {"code": 401})
    assert [(request.verb, request.user) for request in cluster.requests] == [("get", "")]


async def test_users_with_rules_of_their_own(cluster: SimCluster) -> None:
    cluster.user("joe", [Rule(["get"], ["services"], ["demo"], names=["echo"]), Rule(["list"], ["namespaces"])])
    async with Api(cluster, cluster.token("joe")) as joe:
        assert (await joe.get("/api/v1/namespaces/demo/services/echo"))[0] == 200
        assert (await joe.get("/api/v1/namespaces/demo/services/pair"))[0] == 403
        assert (await joe.get("/api/v1/namespaces/demo/services"))[0] == 403
        assert (await joe.get("/api/v1/namespaces"))[0] == 200
        cluster.user("joe", [Rule(["list", "watch"], ["services"], ["demo"], names=["echo"])])
        assert (await joe.get("/api/v1/namespaces/demo/services/echo"))[0] == 403
        # RBAC's rule for lists of a single name
        listed = await joe.names("/api/v1/namespaces/demo/services", fieldSelector="metadata.name=echo")
        assert listed == ["echo"]


async def test_impersonation(cluster: SimCluster, api: Api, limited: Api) -> None:
    path, headers = "/api/v1/namespaces/demo/pods", {"Impersonate-User": "limited"}
    assert (await api.text("GET", path, headers=headers))[0] == 200
    status, body = await api.text("GET", path, headers={"Impersonate-User": "joe"})
    assert (status, json.loads(body)["message"][:31]) == (403, 'pods is forbidden: User "joe" c')
    status, body = await limited.text("GET", path, headers={"Impersonate-User": "joe"})
    expected = (
        'users "joe" is forbidden: User "limited" cannot impersonate resource "users" in API group "" at the cluster'
    )
    assert (status, json.loads(body)["message"].startswith(expected)) == (403, True)


@pytest.mark.parametrize(
    ("verb", "method", "switch", "expected"),
    [
        ("get", "GET", False, 400),  # allowed, and no upgrade
        ("get", "POST", False, 403),
        ("create", "POST", False, 400),
        ("create", "GET", False, 403),
        ("get", "GET", True, 403),
        ("create", "GET", True, 400),
    ],
)
async def test_the_right_to_forward(cluster: SimCluster, verb: str, method: str, switch: bool, expected: int) -> None:
    cluster.api.websocket_needs_create = switch
    cluster.user("joe", [Rule([verb], ["pods/portforward"], ["demo"])])
    async with Api(cluster, cluster.token("joe")) as joe:
        status, body = await joe.text(method, "/api/v1/namespaces/demo/pods/pair/portforward")
        assert (status, json.loads(body)["code"]) == (expected, expected)


async def review(api: Api, spec: Json) -> Json:
    body = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": spec}
    status, text = await api.text("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=body)
    assert status == 201, text
    return dict(json.loads(text)["status"])


async def test_access_review(api: Api, limited: Api) -> None:
    forward = {"namespace": "demo", "verb": "create", "resource": "pods", "subresource": "portforward"}
    assert (await review(api, {"resourceAttributes": forward}))["allowed"] is True
    assert await review(limited, {"resourceAttributes": forward}) == {"allowed": False}
    read = {"namespace": "demo", "verb": "get", "resource": "pods"}
    assert (await review(limited, {"resourceAttributes": read}))["allowed"] is True
    assert (await review(limited, {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}))["allowed"] is False


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"k8s\0\x0a\xff"])
async def test_a_review_that_cannot_be_read(api: Api, body: bytes) -> None:
    for kind in ("application/json", "application/vnd.kubernetes.protobuf"):
        status, _ = await api.text(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            data=body,
            headers={"Content-Type": kind},
        )
        assert status == 400


async def test_expired_tokens(cluster: SimCluster, tmp_path: Path) -> None:
    path = cluster.kubeconfig(tmp_path / "kubeconfig", auth="token-file")
    token_file = read(path)["users"][0]["user"]["tokenFile"]
    old = text(token_file)
    async with Api(cluster, old) as api:
        assert (await api.get("/version"))[0] == 200
        cluster.expire_credentials("admin", renew=False)
        assert (await api.get("/version"))[0] == 401
    assert text(token_file) == old
    cluster.renew_credentials("admin")
    async with Api(cluster, text(token_file)) as api:
        assert (await api.get("/version"))[0] == 200
    async with Api(cluster, cluster.token("limited")) as api:
        assert (await api.get("/version"))[0] == 200


def client_tls(cluster: SimCluster, kubeconfig: Path) -> ssl.SSLContext:
    """With the client certificate of a kubeconfig."""
    user = read(kubeconfig)["users"][0]["user"]
    pair = kubeconfig.with_suffix(".pem")
    keys = ("client-certificate-data", "client-key-data")
    pair.write_text("".join(base64.b64decode(user[key]).decode() for key in keys))
    context = ssl.create_default_context(cadata=cluster.certificate_authority_pem)
    context.load_cert_chain(pair)
    return context


async def get_with_certificate(cluster: SimCluster, kubeconfig: Path) -> int:
    context = client_tls(cluster, kubeconfig)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"{cluster.server}/api/v1/namespaces/demo/pods") as response,
    ):
        return response.status


async def test_client_certificates(cluster: SimCluster, tmp_path: Path) -> None:
    path = cluster.kubeconfig(tmp_path / "kubeconfig", user="limited", auth="certificate")
    assert await get_with_certificate(cluster, path) == 200
    assert cluster.requests[-1].user == "limited"
    cluster.expire_credentials("limited")
    assert await get_with_certificate(cluster, path) == 401
    path = cluster.kubeconfig(tmp_path / "kubeconfig", user="limited", auth="certificate")
    assert await get_with_certificate(cluster, path) == 200


def test_a_kubeconfig_is_private(tmp_path: Path) -> None:
    path = SimCluster().kubeconfig(tmp_path / "kubeconfig", context="prod", namespace="other")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = read(path)
    assert written["current-context"] == "prod"
    assert written["contexts"][0]["context"] == {"cluster": "prod", "user": "admin", "namespace": "other"}
    assert list(tmp_path.iterdir()) == [path]
