from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from kubetunnel.cluster.kubeconfig import read_kubeconfig
from kubetunnel.core.errors import KubeconfigError

PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def document(**changes: object) -> dict:
    return {
        "current-context": "dev",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443/"}}],
        "contexts": [{"name": "dev", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        **changes,
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def with_user(**user: object) -> dict:
    return document(users=[{"name": "u", "user": user}])


def with_cluster(**cluster: object) -> dict:
    return document(clusters=[{"name": "c", "cluster": cluster}])


def test_the_explicit_file_wins_over_the_environment(tmp_path: Path) -> None:
    explicit = write(tmp_path / "explicit", document())
    other = write(tmp_path / "other", document(**{"current-context": "other"}))
    found = read_kubeconfig(kubeconfig=str(explicit), env={"KUBECONFIG": str(other)})
    assert (found.context, found.namespace, found.cluster.server, found.user.token) == (
        "dev",
        "shop",
        "https://127.0.0.1:6443",
        "secret",
    )
    assert found.current


def test_the_default_is_in_the_home_directory(tmp_path: Path) -> None:
    write(tmp_path / ".kube" / "config", document())
    assert read_kubeconfig(env={"HOME": str(tmp_path)}).context == "dev"


def test_several_files_are_merged_the_first_wins_and_missing_ones_are_skipped(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "first", {"contexts": [{"name": "dev", "context": {"cluster": "c", "user": "u"}}]})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ca.pem").write_bytes(PEM)
    rest = document(
        **{"current-context": "dev"},
        contexts=[{"name": "dev", "context": {"cluster": "nope", "user": "nope"}}],
        clusters=[{"name": "c", "cluster": {"server": "https://h", "certificate-authority": "ca.pem"}}],
    )
    second = write(tmp_path / "b" / "second", rest)
    third = write(tmp_path / "third", document(**{"current-context": "third"}))
    paths = f"{first}:{tmp_path / 'missing'}:{second}:{third}"
    found = read_kubeconfig(env={"KUBECONFIG": paths})
    assert (found.context, found.namespace) == ("dev", "default")
    assert found.cluster.ca is not None
    assert found.cluster.ca.data == PEM, "a relative path counts from the file that it stands in"
    assert tmp_path / "missing" in found.files, "its appearance would change the result"


def test_context_and_namespace_are_overridden(tmp_path: Path) -> None:
    contexts = [
        {"name": "dev", "context": {"cluster": "c", "user": "u"}},
        {"name": "prod", "context": {"cluster": "c", "user": "u", "namespace": "x"}},
    ]
    path = str(write(tmp_path / "config", document(contexts=contexts)))
    found = read_kubeconfig(kubeconfig=path, context="prod", namespace="mine")
    assert (found.context, found.namespace, found.current) == ("prod", "mine", False)


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match=r"looked for .*/\.kube/config \(the default; \$KUBECONFIG is not set\)"):
        read_kubeconfig(env={"HOME": str(tmp_path)})
    with pytest.raises(KubeconfigError, match=r"looked for /nowhere/a, /nowhere/b \(\$KUBECONFIG\)"):
        read_kubeconfig(env={"KUBECONFIG": "/nowhere/a:/nowhere/b"})
    with pytest.raises(KubeconfigError, match="The kubeconfig /nowhere/a does not exist"):
        read_kubeconfig(kubeconfig="/nowhere/a", env={})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1\nb: 2\n", r"config, line 2 is not valid YAML"),
        ("users: !!python/object:os.system x\n", r"not valid YAML"),
        ("- a\n", r"must be a mapping"),
        ("just text\n", r"must be a mapping"),
        (document(**{"current-context": ""}), r"current-context is not set\. There are: dev"),
        (document(**{"current-context": 7}), r"config: current-context must be a string"),
        (document(**{"current-context": "x"}), r"current-context is 'x', which contexts lacks\. There are: dev"),
        (document(contexts={"a": 1}), r"config: contexts must be a list"),
        (document(contexts=["a"]), r"config: contexts\[0\] must be a mapping"),
        (
            document(contexts=[{"name": "dev", "context": {"cluster": "gone", "user": "u"}}]),
            r"config: contexts\[name=dev\]\.context\.cluster is 'gone', and clusters has no such name \(there are: c\)",
        ),
        (
            document(contexts=[{"name": "dev", "context": {"cluster": "c", "user": "gone"}}]),
            r"contexts\[name=dev\]\.context\.user is 'gone', and users has no such name",
        ),
        (document(contexts=[{"name": "dev", "context": {}}]), r"context\.cluster is missing"),
        (with_cluster(), r"clusters\[name=c\]\.cluster\.server is missing"),
        (with_cluster(server="10.0.0.1:6443"), r"cluster\.server is '10\.0\.0\.1:6443', and must begin with https://"),
        (with_user(token="hush\nhush"), r"config: users\[name=u\]\.user\.token has a control character"),
        (with_user(token="hush\0"), r"users\[name=u\]\.user\.token has a NUL"),
        (with_user(token="t", **{"as": "a\rb"}), r"users\[name=u\]\.user\.as has a control character"),
        (with_user(token="t", **{"as": "a", "as-groups": ["b\nc"]}), r"user\.as-groups .* control character"),
        (
            with_user(exec={"apiVersion": "client.authentication.k8s.io/v1", "command": "x", "env": [{"value": "v"}]}),
            r"users\[name=u\]\.user\.exec\.env\[0\]\.name is '', which is no environment",
        ),
        (
            with_cluster(server="https://h", **{"certificate-authority-data": "ä"}),
            r"config: clusters\[name=c\]\.cluster\.certificate-authority-data is not base64",
        ),
        (
            with_cluster(server="https://h", **{"tls-server-name": ".foo"}),
            r"config: clusters\[name=c\]\.cluster\.tls-server-name is '\.foo', which is no host name",
        ),
        (with_cluster(server=f"https://{'a' * 64}.x:1"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://a..b:1"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://a b:1"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://a\nb:1"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://h/ä"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://h?x=y"), r"cluster\.server is .*, which is no https://host:port"),
        (with_cluster(server="https://me:hush@h:1"), r"config: clusters\[name=c\]\.cluster\.server must hold no user"),
        (with_cluster(server="me:hush@h:1"), r"cluster\.server must hold no user"),
        (with_cluster(server="https://me:hu/sh@h"), r"cluster\.server must hold no user"),
        (with_cluster(server="https://h:99999"), r"cluster\.server is .* no https://host:port"),
        (
            with_cluster(server="https://h", **{"certificate-authority": "gone.pem"}),
            r"certificate-authority names .*gone",
        ),
        (with_cluster(server="https://h", **{"certificate-authority-data": "%%"}), r"authority-data is not base64"),
        (
            with_cluster(
                server="https://h",
                **{"insecure-skip-tls-verify": True, "certificate-authority-data": base64.b64encode(PEM).decode()},
            ),
            r"insecure-skip-tls-verify may not be true where",
        ),
        (with_cluster(server="https://h", **{"insecure-skip-tls-verify": "yes"}), r"must be true or false"),
        (with_user(token=12345), r"users\[name=u\]\.user\.token must be a string, and is of type int"),
        (with_user(**{"client-certificate-data": "QQ=="}), r"user\.client-key is missing"),
        (
            with_user(**{"client-key": "/nowhere/k"}),
            r"user\.client-key names /nowhere/k, which cannot be read: No such",
        ),
        (with_user(exec={"command": "x", "apiVersion": "v9"}), r"exec\.apiVersion is 'v9', and must be client\.auth"),
        (with_user(exec={"apiVersion": "client.authentication.k8s.io/v1"}), r"user\.exec\.command is missing"),
        (with_user(**{"auth-provider": {"name": "gcp"}}), r"auth-provider\.name is 'gcp': kubectl 1\.26 dropped"),
        (with_user(**{"auth-provider": {"name": "oidc"}}), r"auth-provider\.config\.idp-issuer-url is missing"),
        (with_user(**{"token": "t", "as-groups": ["g"]}), r"user\.as is missing"),
    ],
)
def test_a_broken_kubeconfig_names_file_and_key(tmp_path: Path, content: object, says: str) -> None:
    path = write(tmp_path / "config", content)
    with pytest.raises(KubeconfigError, match=says) as broken:
        read_kubeconfig(kubeconfig=str(path))
    assert str(path) in str(broken.value)
    assert "12345" not in str(broken.value), "no value of a secret key"
    assert "hush" not in str(broken.value)


def test_impersonation_headers(tmp_path: Path) -> None:
    user = {
        "token": "t",
        "as": "jane",
        "as-uid": "u-1",
        "as-groups": ["dev", "ops"],
        "as-user-extra": {"acme.com/Team": ["a", "b"]},
    }
    path = write(tmp_path / "config", with_user(**user))
    assert read_kubeconfig(kubeconfig=str(path)).user.impersonate == (
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Uid", "u-1"),
        ("Impersonate-Extra-acme.com%2FTeam", "a"),
        ("Impersonate-Extra-acme.com%2FTeam", "b"),
    )


def test_an_exec_command_with_a_slash_counts_from_the_kubeconfig(tmp_path: Path) -> None:
    plugin = {"command": "bin/login", "apiVersion": "client.authentication.k8s.io/v1beta1", "args": ["-x"]}
    path = write(tmp_path / "config", with_user(exec=plugin))
    found = read_kubeconfig(kubeconfig=str(path)).user.exec_plugin
    assert found is not None
    assert (found.command, found.name, found.args) == (str(tmp_path / "bin/login"), "login", ("-x",))


def test_in_cluster(tmp_path: Path) -> None:
    for name, content in (("token", "t\n"), ("namespace", "shop\n"), ("ca.crt", PEM.decode())):
        (tmp_path / name).write_text(content)
    env = {"HOME": "/nowhere", "KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = read_kubeconfig(env=env, service_account=tmp_path)
    assert (found.cluster.server, found.namespace) == ("https://[fd00::1]:443", "shop")
    assert found.user.token_file == tmp_path / "token"
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(KubeconfigError, match=r"service account is incomplete: .*ca\.crt"):
        read_kubeconfig(env=env, service_account=tmp_path)


def test_no_secret_in_a_repr(tmp_path: Path) -> None:
    content = with_user(token="hush-1", username="u", password="hush-2")
    content["clusters"][0]["cluster"]["proxy-url"] = "http://u:hush-3@127.0.0.1:1"
    found = read_kubeconfig(kubeconfig=str(write(tmp_path / "config", content)))
    assert found.user.basic == ("u", "hush-2")
    assert "hush" not in repr(found)


def test_the_line_end_of_a_block_scalar_is_no_part_of_a_token(tmp_path: Path) -> None:
    path = write(tmp_path / "config", with_user(token="secret\n"))
    assert read_kubeconfig(kubeconfig=str(path)).user.token == "secret"
