"""Kubernetes as a source of leases, as far as it goes without a server."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import KubeOptions
from flannel_ebpf.leases.kube.source import KubeSource
from tests.samples import lease

PREFIX = "flannel.alpha.coreos.com/"


def source(environment: dict[str, str] | None = None, **options: Any) -> KubeSource:
    options.setdefault("kube_api_url", "http://192.0.2.1:8080")
    asked = KubeOptions(kube_subnet_mgr=True, **options)
    return KubeSource(asked, {"NODE_NAME": "n1", **(environment or {})}, 0.0, lambda _: None)


@pytest.mark.parametrize(
    ("environment", "age", "alone"),
    [
        ({}, 3600.0, False),
        ({"CONT_WHEN_CACHE_NOT_READY": "false"}, 3600.0, False),
        ({"CONT_WHEN_CACHE_NOT_READY": "true"}, 0.0, False),
        ({"CONT_WHEN_CACHE_NOT_READY": "true"}, 3600.0, True),
    ],
)
def test_a_node_goes_on_alone_when_told_to_and_after_a_while(
    environment: dict[str, str], age: float, alone: bool
) -> None:
    made, own = source(environment), lease("10.1.1.0/24", "192.0.2.1")
    made._keeper._lease = own
    made._followed_at = time.monotonic() - age
    assert made.view.leases == ((own,) if alone else ())
    assert bool(made.view.doubt) == alone


def test_what_kubelets_write_makes_nothing_anew() -> None:
    made = source()
    notes = {
        f"{PREFIX}kube-subnet-manager": "true",
        f"{PREFIX}backend-type": "vxlan",
        f"{PREFIX}public-ip": "192.0.2.7",
        f"{PREFIX}backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}',
    }
    node: dict[str, Any] = {
        "metadata": {"name": "n7", "uid": "7-7", "annotations": notes},
        "spec": {"podCIDR": "10.1.7.0/24"},
    }
    first = made._entry(node)
    made._mirror = SimpleNamespace(node={"n7": first}.get)  # type: ignore[assignment]  # all that is asked
    again = made._entry({**node, "status": {"conditions": [{"type": "Ready"}]}})
    assert again is first
    notes[f"{PREFIX}public-ip"] = "192.0.2.8"
    assert made._entry(node) != first


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--net-config-path.*kube-flannel-cfg"):
        source(net_config_path=tmp_path / "net-conf.json").network_config()


@pytest.mark.parametrize("environment", [{}, {"POD_NAME": "p"}, {"POD_NAMESPACE": "n"}])
def test_a_node_without_a_name(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="NODE_NAME"):
        source({"NODE_NAME": "", **environment}).addresses()
