"""Node objects as leases, and our lease as annotations: flannel's texts (pkg/subnet/kube)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest

from flannel_ebpf.base.config import Pool, parse_network_config
from flannel_ebpf.base.errors import ConfigError, InvalidLease, LeaseError
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Claim, Endpoint
from flannel_ebpf.leases.kube.nodes import (
    KubeNode,
    annotation_prefix,
    lease_of,
    node_addresses,
    notes_of,
    own_subnets,
    read_node,
)

PREFIX = "flannel.alpha.coreos.com/"
UID = "12345678-1234-1234-1234-123456789abc"
V4, V6 = (Family.V4,), (Family.V6,)
BOTH = (Family.V4, Family.V6)
DATA = '{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}'
NOTES = {
    "kube-subnet-manager": "true",
    "backend-type": "vxlan",
    "backend-data": DATA,
    "public-ip": "192.168.64.3",
}
NOTES6 = {**NOTES, "backend-v6-data": DATA, "public-ipv6": "fd00::3"}


def node(*cidrs: str, **notes: str) -> KubeNode:
    return KubeNode("n3", UID, cidrs, {key.replace("_", "-"): text for key, text in notes.items()})


def pools(text: str = '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}') -> tuple[Pool, ...]:
    return parse_network_config(text, "test").pools


DUAL = pools(
    '{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}'
)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-"),
        ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-"),
        ("org9.com", "org9.com/"),
        ("org.com/9", "org.com/9-"),
    ],
)
def test_the_prefix_is_completed_as_flannel_does(text: str, prefix: str) -> None:
    assert annotation_prefix(text) == prefix


@pytest.mark.parametrize(
    "text", ["", "org", "org/", "org.com/a/b", "Org.com", "org.com/A", ".com", "org.com/a b"]
)
def test_what_kubernetes_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--kube-annotation-prefix"):
        annotation_prefix(text)


@pytest.mark.parametrize(
    ("spec", "cidrs"),
    [
        (
            {"podCIDR": "10.1.3.0/24", "podCIDRs": ["10.1.3.0/24", "fc00:0:0:3::/64"]},
            ("10.1.3.0/24", "fc00:0:0:3::/64"),
        ),
        ({"podCIDR": "10.1.3.0/24"}, ("10.1.3.0/24",)),
        ({}, ()),
        (None, ()),
    ],
)
def test_a_node_object_is_read(spec: Any, cidrs: tuple[str, ...]) -> None:
    found = read_node(
        {
            "metadata": {
                "name": "n3",
                "uid": UID,
                "annotations": {f"{PREFIX}public-ip": "1", "other/x": "2"},
            },
            "spec": spec,
        },
        PREFIX,
    )
    assert found == KubeNode("n3", UID, cidrs, {"public-ip": "1"})


@pytest.mark.parametrize("annotations", [None, {}])
def test_a_node_without_annotations_is_no_crash(annotations: Any) -> None:
    found = read_node({"metadata": {"name": "n3", "uid": UID, "annotations": annotations}}, PREFIX)
    assert lease_of(found, V4) is None


def test_a_nodes_lease() -> None:
    lease = lease_of(KubeNode("n3", UID, ("10.1.3.0/24",), NOTES), V4)
    assert lease
    [part] = lease.parts
    assert (str(part.subnet), str(part.public_ip), part.backend_type, part.flaw) == (
        "10.1.3.0/24",
        "192.168.64.3",
        "vxlan",
        "",
    )
    assert part.backend_data == {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}
    assert lease.key == "node n3"


def test_both_families() -> None:
    lease = lease_of(KubeNode("n3", UID, ("fc00:0:0:3::/64", "10.1.3.0/24"), NOTES6), BOTH)
    assert lease
    assert [str(part.subnet) for part in lease.parts] == ["10.1.3.0/24", "fc00:0:0:3::/64"]
    assert [str(part.public_ip) for part in lease.parts] == ["192.168.64.3", "fd00::3"]


def test_a_family_that_the_network_has_not_is_left_out() -> None:
    lease = lease_of(KubeNode("n3", UID, ("10.1.3.0/24", "fc00:0:0:3::/64"), NOTES), V4)
    assert lease
    assert lease.subnets == (ip_network("10.1.3.0/24"),)


def test_a_family_without_annotations_leaves_the_other_alone() -> None:
    lease = lease_of(KubeNode("n3", UID, ("10.1.3.0/24", "fc00:0:0:3::/64"), NOTES), BOTH)
    assert lease
    assert [bool(part.flaw) for part in lease.parts] == [False, True]


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({"public-ip": "garbage"}, "public-ip of node n3 is 'garbage': an IPv4 address is needed"),
        ({"public-ip": ""}, "public-ip of node n3 is ''"),
        ({"public-ip": "fd00::1"}, "an IPv4 address is needed"),
        ({"backend-data": "{"}, "backend-data of node n3 is '{': JSON is needed"),
    ],
)
def test_annotations_that_cannot_be_read(changed: dict[str, str], flaw: str) -> None:
    lease = lease_of(KubeNode("n3", UID, ("10.1.3.0/24",), {**NOTES, **changed}), V4)
    assert lease
    assert flaw in lease.parts[0].flaw


@pytest.mark.parametrize(
    ("cidrs", "says"),
    [
        ((), "it has no IPv4 podCIDR"),
        (("fc00::/64",), "it has no IPv4 podCIDR"),
        (("10.1.3.0/24", "10.1.4.0/24"), "two podCIDRs of one family: 10.1.3.0/24, 10.1.4.0/24"),
        (("10.1.3.0/33",), "podCIDR '10.1.3.0/33' is no subnet"),
    ],
)
def test_podcidrs_that_are_no_lease(cidrs: tuple[str, ...], says: str) -> None:
    with pytest.raises(InvalidLease, match=says):
        lease_of(KubeNode("n3", UID, cidrs, NOTES), V4)


def test_a_node_of_another_manager_has_no_lease_however_broken() -> None:
    assert lease_of(KubeNode("n3", UID, ("x",), {"public-ip": "192.168.64.3"}), V4) is None
    assert lease_of(KubeNode("n3", UID, (), {**NOTES, "kube-subnet-manager": "false"}), V4) is None


def test_own_subnets() -> None:
    assert own_subnets(node("10.1.3.0/24"), pools()) == (ip_network("10.1.3.0/24"),)
    assert own_subnets(node("10.1.3.0/25"), pools()) == (ip_network("10.1.3.0/25"),), (
        "the length is the cluster's"
    )
    assert own_subnets(node("fc00:0:0:3::/64", "10.1.3.0/24"), DUAL) == (
        ip_network("10.1.3.0/24"),
        ip_network("fc00:0:0:3::/64"),
    )


@pytest.mark.parametrize(
    ("cidrs", "network", "says"),
    [
        (
            (),
            pools(),
            "node n3 has no podCIDR yet: kube-controller-manager gives one with --allocate-node-cidrs",
        ),
        (("10.2.3.0/24",), pools(), "podCIDR 10.2.3.0/24 of node n3 is outside the network 10.1.0.0/16"),
        (("10.0.0.0/8",), pools(), "outside the network"),
        (("fc00::/64",), pools(), "node n3 has no IPv4 podCIDR, but fc00::/64"),
        (("10.1.3.0/24",), DUAL, "node n3 has no IPv6 podCIDR, but 10.1.3.0/24"),
        (("10.1.3.0/24", "10.1.4.0/24"), pools(), "node n3: two podCIDRs of one family"),
    ],
)
def test_podcidrs_that_cannot_be_ours(cidrs: tuple[str, ...], network: tuple[Pool, ...], says: str) -> None:
    with pytest.raises(LeaseError, match=says):
        own_subnets(node(*cidrs), network)


VXLAN = {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}


@pytest.mark.parametrize(
    ("claim", "notes"),
    [
        (Claim("vxlan", (Endpoint(IPv4Address("192.168.64.3"), VXLAN),)), NOTES),
        (
            Claim(
                "vxlan",
                (Endpoint(IPv4Address("192.168.64.3"), VXLAN), Endpoint(IPv6Address("fd00::3"), VXLAN)),
            ),
            NOTES6,
        ),
        (
            Claim("host-gw", (Endpoint(IPv4Address("192.168.64.3")),)),
            {**NOTES, "backend-type": "host-gw", "backend-data": "null"},
        ),
        (
            Claim("", (Endpoint(IPv4Address("192.168.64.3")),)),
            {**NOTES, "backend-type": "", "backend-data": "null"},
        ),
        (
            Claim("vxlan", (Endpoint(IPv6Address("fd00::3"), VXLAN),)),
            {
                "kube-subnet-manager": "true",
                "backend-type": "vxlan",
                "backend-v6-data": DATA,
                "public-ipv6": "fd00::3",
            },
        ),
    ],
    ids=["vxlan", "dual", "host-gw", "udp", "ipv6"],
)
def test_our_annotations_are_flannels(claim: Claim, notes: dict[str, str]) -> None:
    assert notes_of(claim, node()) == notes


def test_an_operator_can_overwrite_what_peers_are_told() -> None:
    claim = Claim("host-gw", (Endpoint(IPv4Address("192.168.64.3")),))
    assert notes_of(claim, node(public_ip_overwrite="203.0.113.3"))["public-ip"] == "203.0.113.3"
    with pytest.raises(
        ConfigError, match="node n3, annotation public-ip-overwrite: 'x' cannot be used: an IPv4 address"
    ):
        notes_of(claim, node(public_ip_overwrite="x"))


def test_an_operator_can_say_what_a_nodes_address_is() -> None:
    assert node_addresses(node()) == {}
    assert node_addresses(node(node_public_ip="203.0.113.3", node_public_ipv6="fd00::9")) == {
        Family.V4: IPv4Address("203.0.113.3"),
        Family.V6: IPv6Address("fd00::9"),
    }
    with pytest.raises(ConfigError, match="annotation node-public-ipv6"):
        node_addresses(node(node_public_ipv6="203.0.113.3"))
