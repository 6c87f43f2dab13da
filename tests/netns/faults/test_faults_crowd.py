"""Daemons as flanneld's neighbours: many at once, and what they write into etcd, byte for byte."""

from __future__ import annotations

import json
import logging
import time
from base64 import b64decode
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.netns.life import flannel
from tests.polls import eventually

log = logging.getLogger("figures")
CROWD = 20
PREFIX = "/coreos.com/network"


def test_twenty_daemons_starting_at_once_share_24_subnets(make_lab: MakeLab) -> None:
    lab = make_lab(
        nodes=CROWD,
        pods_per_node=0,
        datapath="kernel",
        start_daemons=False,
        network="10.0.0.0/8",
        subnet_len=16,
        network_config={"SubnetMin": "10.1.0.0", "SubnetMax": "10.24.0.0"},
    )
    since = time.monotonic()
    for node in lab.nodes:
        node.start_daemon()
    eventually(lambda: all(node.environment() for node in lab.nodes), "everybody has a subnet", 120)
    log.info("%d daemons have subnets %.1f s after the first start", CROWD, time.monotonic() - since)
    lab.wait_ready(deadline=240)
    log.info("and routes to one another %.1f s after", time.monotonic() - since)
    held = {node.subnet: str(node.ip) for node in lab.nodes}
    assert len(held) == CROWD
    assert held.keys() <= set(IPv4Network("10.0.0.0/8").subnets(new_prefix=16))
    assert {subnet: value["PublicIP"] for subnet, value in lab.leases().items()} == held


def stored(lab: Lab, node: Node) -> dict[str, Any]:
    """Return the node's key as etcd has it, {} when it is gone."""
    key = f"{PREFIX}/subnets/{node.subnet.network_address}-{node.subnet.prefixlen}"
    found: list[dict[str, Any]] = json.loads(lab.etcdctl("get", key, "--write-out=json")).get("kvs", [])
    return found[0] if found else {}


VALUES = {
    "vxlan": '"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}',
    "host-gw": '"BackendType":"host-gw"}',
    "udp": "",
}
"""What flanneld writes after its addresses (json.Marshal of its LeaseAttrs); nothing for udp."""


@pytest.mark.parametrize("backend", VALUES)
def test_the_key_is_flanneld_s_byte_for_byte_at_start_and_at_renewal(make_lab: MakeLab, backend: str) -> None:
    lab = make_lab(
        nodes=1, pods_per_node=0, backend=backend, datapath="kernel", extra_up_args=("--lease-ttl=5",)
    )
    node = lab.nodes[0]
    rest = VALUES[backend]
    if backend == "vxlan":
        shown = ["ip", "-json", "link", "show", "dev", "flannel.1"]
        link = eventually(lambda: node.run(shown, check=False).stdout, "the device is there")
        rest %= json.loads(link)[0]["address"]
    wanted = '{"PublicIP":"192.168.64.1","PublicIPv6":null' + (f",{rest}" if rest else "}")
    first = stored(lab, node)
    assert b64decode(first["value"]).decode() == wanted
    eventually(lambda: stored(lab, node)["mod_revision"] > first["mod_revision"], "renewal")
    renewed = stored(lab, node)
    assert b64decode(renewed["value"]).decode() == wanted
    assert renewed["lease"] != first["lease"], "flannel renews by a new grant"
    assert renewed["create_revision"] == first["create_revision"]
    flannel(node, "down", "--release")
    eventually(lambda: node.daemon is None, "the daemon has ended")
    assert not stored(lab, node)
