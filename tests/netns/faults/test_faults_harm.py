"""One lease written by anybody, valid and wrong: no node is cut off, and the reason is in its status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.spec import ETCD_IP, UNDERLAY
from tests.netns.labs import MakeLab
from tests.polls import eventually

NETWORK = {"network": "192.168.0.0/16", "network_config": {"SubnetMin": "192.168.128.0"}}
"""It holds the uplink's network, in a part of which config lets no node draw a subnet."""

BRIDGE, STATIC = "192.168.90.0/24", "192.168.91.0/24"
NOBODY = "02:00:00:00:00:77"
WHOLE = "192.168.0.0/16"


@pytest.fixture(scope="module", params=["vxlan", "host-gw"])
def lab(request: pytest.FixtureRequest, make_shared_lab: MakeLab) -> Lab:
    made = make_shared_lab(backend=request.param, nodes=2, pods_per_node=1, **NETWORK)
    for line in (
        "ip link add foreign type bridge",
        "ip address add 192.168.90.1/24 dev foreign",
        "ip link set foreign up",
        f"ip route add {STATIC} via 192.168.64.9",
    ):
        made.node("n1").run(line.split())
    return made


def halves(node: Node) -> list[str]:
    return [str(half) for half in node.subnet.subnets()]


def routes(node: Node) -> list[str]:
    return sorted(node.run(["ip", "-N", "route"]).stdout.splitlines())


def told(node: Node) -> str:
    [report] = list(node.state_dir.glob("*.status.json"))
    found = json.loads(report.read_text())
    return "\n".join([*found["skipped"], *found["failures"]])


def test_no_lease_takes_a_way_that_is_not_ours(lab: Lab) -> None:
    """In the order of the table: a subnet, a public address, whose VTEP MAC, the reason."""
    n1, n2 = lab.node("n1"), lab.node("n2")
    bridge, static = BRIDGE, STATIC
    cases = [
        (str(UNDERLAY), "192.168.64.77", "192.168.64"),
        (f"{ETCD_IP - 2}/30", "192.168.64.77", f"holds {ETCD_IP}"),
        ("192.168.64.128/25", "192.168.64.77", str(ETCD_IP)),
        ("192.168.64.16/28", "192.168.64.77", "overlaps 192.168.64.0/24, the network of eth0"),
        (bridge, "192.168.64.77", "foreign"),
        (static, "192.168.64.77", "a route that is not ours has its place"),
        (WHOLE, "192.168.64.77", "overlaps"),
        ("192.168.0.0/17", "192.168.64.77", "holds 192.168.64."),
        (halves(n1)[1], "192.168.64.77", "this node's own subnet"),
        (halves(n2)[0], "192.168.64.77", f"overlaps {n2.subnet}, which was there before"),
        ("192.168.99.0/24", str(UNDERLAY.broadcast_address), "that of no node"),
        ("192.168.99.0/24", str(n1.subnet[1]), "lies in the overlay network itself"),
        ("192.168.99.0/24", "192.168.90.1", "an address of foreign"),
    ]
    before = routes(n1)
    programs = n1.run(["ip", "link", "show", "eth0"]).stdout
    assert bridge in "".join(before)
    for subnet, public_ip, why in cases:
        key = f"{lab.spec.etcd_prefix}/subnets/{subnet.replace('/', '-')}"
        lab.etcdctl("put", key, value(lab, public_ip))
        eventually(
            lambda: any(why in line and subnet in line for line in told(n1).splitlines()),  # noqa: B023 - called here
            lambda: f"{subnet} at {public_ip} is said to be skipped, {why}:\n{told(n1)}",  # noqa: B023 - called here
            20,
        )
        assert routes(n1) == before, (subnet, public_ip)
        n1.run(["ping", "-c1", "-W10", "-I", str(n1.subnet[1]), str(n2.subnet[1])])
        lab.etcdctl("del", key)
        eventually(lambda: subnet not in told(n1), f"the end of {subnet} is heard of", 20)  # noqa: B023 - called here
        assert routes(n1) == before, (subnet, public_ip)
    assert n1.run(["ip", "link", "show", "eth0"]).stdout == programs, "programs stay as they are"
    assert "Traceback" not in n1.daemon_log()


def value(lab: Lab, public_ip: str, mac: str = NOBODY) -> str:
    found: dict[str, Any] = {"PublicIP": public_ip, "BackendType": lab.spec.backend}
    if lab.spec.backend == "vxlan":
        found["BackendData"] = {"VNI": 1, "VtepMAC": mac}
    return json.dumps(found)
