"""Where the API server is: flags, kubeconfig, service account, in client-go's order."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import KubeOptions
from flannel_ebpf.leases.kube.access import Access, Pem, find_access

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubeconfig(
    folder: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None
) -> KubeOptions:
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "other", "context": {"cluster": "elsewhere", "user": "root"}},
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(text))
    return KubeOptions(kubeconfig_file=str(path))


def test_a_pod_has_its_service_account() -> None:
    found = find_access(KubeOptions(), POD, Path("/account"))
    assert found == Access(
        "https://10.96.0.1:443",
        "/account",
        ca=Pem(Path("/account/ca.crt")),
        token_file=Path("/account/token"),
    )


def test_a_pod_in_an_ipv6_cluster() -> None:
    assert (
        find_access(KubeOptions(), {**POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}).server
        == "https://[fd00::1]:443"
    )


def test_the_url_alone_wins_over_the_pod() -> None:
    found = find_access(KubeOptions(kube_api_url="http://192.0.2.9:8080/"), POD)
    assert (found.server, found.token_file, found.token) == ("http://192.0.2.9:8080", None, "")


def test_a_kubeconfig_with_everything_in_it(tmp_path: Path) -> None:
    data = base64.b64encode(b"PEM").decode()
    options = kubeconfig(
        tmp_path,
        cluster={"certificate-authority-data": data, "tls-server-name": "kubernetes"},
        user={"client-certificate-data": data, "client-key-data": data, "token": "secret"},
    )
    found = find_access(options, POD)
    assert (found.server, found.server_name, found.token) == (
        "https://192.0.2.1:6443",
        "kubernetes",
        "secret",
    )
    assert [pem.read() for pem in (found.ca, found.certificate, found.key)] == [b"PEM"] * 3
    assert "secret" not in repr(found)


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    options = kubeconfig(
        tmp_path,
        cluster={"certificate-authority": "pki/ca.crt"},
        user={"client-certificate": "/abs/client.crt", "client-key": "client.key", "tokenFile": "token"},
    )
    found = find_access(options, {})
    assert found.ca.path == tmp_path / "pki/ca.crt"
    assert found.certificate.path == Path("/abs/client.crt")
    assert found.key.path == tmp_path / "client.key"
    assert found.token_file == tmp_path / "token"


def test_the_url_wins_over_the_kubeconfigs_server(tmp_path: Path) -> None:
    options = kubeconfig(tmp_path, user={"token": "secret"})
    found = find_access(
        KubeOptions(kube_api_url="https://192.0.2.9", kubeconfig_file=options.kubeconfig_file), {}
    )
    assert (found.server, found.token) == ("https://192.0.2.9", "secret")


def test_it_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        "current-context: a\ncontexts:\n- {name: a, context: {cluster: b, user: c}}\n"
        "clusters:\n- name: b\n  cluster: {server: 'https://[fd00::1]:1', insecure-skip-tls-verify: true}\n"
        "users:\n- name: c\n  user: {}\n"
    )
    found = find_access(KubeOptions(kubeconfig_file=str(path)), {})
    assert (found.server, found.insecure) == ("https://[fd00::1]:1", True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a kubeconfig in YAML"),
        ("a: [1", "a kubeconfig in YAML"),
        ("\x00", "a kubeconfig in YAML"),
        ("[]", "a kubeconfig in YAML"),
        ('{"current-context": "x"}', "'x' cannot be used: the name of one of its contexts"),
        ("{}", "a URL such as"),
        (
            '{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "y"}}]}',
            "'y' cannot be used: the name of one of its clusters",
        ),
    ],
)
def test_a_broken_kubeconfig_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        find_access(KubeOptions(kubeconfig_file=str(path)), POD)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("user", "cluster", "says"),
    [
        ({"exec": {"command": "aws"}}, {}, "user u with exec.*a token, a tokenFile or a client certificate"),
        ({"client-key-data": "?"}, {}, "client-key-data.*PEM in base64"),
        ({}, {"server": "ftp://x"}, "a URL such as"),
        ({}, {"server": "https://:6443"}, "a URL such as"),
        ({}, {"server": "https://h:99999"}, "a URL such as"),
    ],
)
def test_what_cannot_be_used(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        find_access(kubeconfig(tmp_path, cluster=cluster, user=user), {})


def test_a_file_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"/no/such.*No such file"):
        find_access(KubeOptions(kubeconfig_file="/no/such"), POD)


def test_nowhere_at_all() -> None:
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        find_access(KubeOptions(), {})
