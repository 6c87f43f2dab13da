from __future__ import annotations

import json

import pytest

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab.spec import LabSpec, node_ip, owns_namespace


def test_a_spec_survives_its_own_json() -> None:
    spec = LabSpec(
        name="two", nodes=3, datapaths={"n3": "kernel"}, extra_up_args=("--revalidate=2",),
        backend_config={"DirectRouting": True}, network_config={"SubnetMin": "10.1.9.0"},
    )  # fmt: skip
    assert LabSpec.from_json(spec.to_json()) == spec


def test_names_and_addresses_follow_from_the_number() -> None:
    spec = LabSpec(nodes=2)
    assert spec.node_names == ["n1", "n2"]
    assert [str(node_ip(name)) for name in spec.node_names] == ["192.168.64.1", "192.168.64.2"]
    assert spec.switch_ns == "lab-sw"
    assert str(spec.folder) == "/run/flannel-ebpf-lab/lab"


def test_the_network_config_carries_extra_keys_on_both_levels() -> None:
    spec = LabSpec(backend="vxlan", backend_config={"VNI": 7}, network_config={"SubnetMax": "10.1.9.0"})
    assert json.loads(spec.config_json()) == {
        "Network": "10.1.0.0/16",
        "SubnetLen": 24,
        "SubnetMax": "10.1.9.0",
        "Backend": {"Type": "vxlan", "VNI": 7},
    }


def test_one_node_may_have_another_datapath() -> None:
    spec = LabSpec(datapath="ebpf", datapaths={"n2": "kernel"})
    assert [spec.datapath_of(name) for name in spec.node_names] == ["ebpf", "kernel"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"backend": "wireguard"}, "wireguard"),
        ({"datapath": "xdp"}, "xdp"),
        ({"datapaths": {"n2": "fast"}}, "fast"),
        ({"datapaths": {"n9": "kernel"}}, "n9"),
        ({"nodes": 0}, "nodes 0"),
        ({"nodes": 251}, "251"),
        ({"network": "10.1.0.0/33"}, "'10.1.0.0/33'"),
        ({"pods_per_node": 300}, "pods 300"),
        ({"name": "Lab"}, "Lab"),
        ({"name": "a/../b"}, "a/../b"),
        ({"name": ""}, "''"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(LabError, match=named):
        LabSpec(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("lab", "ns", "owned"),
    [
        ("lab", "lab-sw", True),
        ("lab", "lab-n12", True),
        ("lab", "lab-n1p10", True),
        ("lab", "lab", False),
        ("lab", "lab-n1-sw", False),  # switch of a lab called lab-n1
        ("lab", "lab2-n1", False),
        ("lab", "my-lab-n1", False),
        ("lab", "lab-n1p", False),
        ("lab", "lab-other", False),
    ],
)
def test_namespaces_are_recognised_by_name(lab: str, ns: str, owned: bool) -> None:
    assert owns_namespace(lab, ns) is owned
