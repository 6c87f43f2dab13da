"""From flanneld to flannel-ebpf and back, while pods talk."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.stock import StockFlannel
from tests.netns.labs import MakeLab
from tests.netns.life import chat, flannel, ready, stream
from tests.polls import eventually

log = logging.getLogger(__name__)

QDISC_LOSS = 50
"""Packets of two streams at 1,000 a second."""

FLANNELD_RULES = """*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""


def stock_lab(make_lab: MakeLab, backend: str) -> Lab:
    """Two nodes as flanneld leaves them, with pods."""
    lab = make_lab(backend=backend, start_daemons=False)
    stocks = [
        StockFlannel(lab, node, IPv4Network(f"10.1.{7 * at}.0/24")) for at, node in enumerate(lab.nodes, 1)
    ]
    for stock in stocks:
        stock.start()
    for stock in stocks:
        stock.sync()
        stock.node.run(["iptables-restore", "--noflush"], stdin=FLANNELD_RULES)
    lab.add_pods()
    return lab


def what_flanneld_left(node: Node) -> list[str]:
    """Everything that flanneld would look at, without the kernel's counters."""
    commands = (
        "ip -d -o link show dev flannel.1",
        "ip -o -4 address show dev flannel.1",
        "ip route show",
        "ip neigh show dev flannel.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "iptables-save | grep ^-A",
        f"cat {node.subnet_file}",
    )
    lines = node.run(["sh", "-c", "; ".join(commands)], check=False).stdout.splitlines()
    return sorted([*lines, *map(str, node.hooks())])


@pytest.mark.parametrize(
    ("backend", "attach"), [("vxlan", "tcx"), ("host-gw", "tcx"), ("vxlan", "clsact"), ("host-gw", "clsact")]
)
def test_a_node_changes_over_and_back_while_its_pods_talk(
    make_lab: MakeLab, backend: str, attach: str
) -> None:
    lab = stock_lab(make_lab, backend)
    node = lab.node("n1")
    before, leases = what_flanneld_left(node), lab.leases()
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n2p2"), lab.pod("n1p2")) as talk,
    ):
        node.start_daemon(["--datapath=ebpf", f"--attach={attach}"])
        ready(node)
        lab.wait_attached([node])
        over = [one.lost_yet() for one in (there, back)]
        flannel(node, "down")
        lost = [one.lost_yet() for one in (there, back)]
    log.info("%s: lost %s on the way over, %s in all; %s %s %s", backend, over, lost, there, back, talk)
    assert what_flanneld_left(node) == before
    assert lab.leases() == leases, "subnet, public IP and VTEP address stay"
    # Adding a qdisc stops the device's queue for an instant: the kernel's qdisc_graft calls dev_deactivate.
    assert there.lost + back.lost <= (QDISC_LOSS if attach == "clsact" else 0)


def test_what_flanneld_left_is_taken_over_and_not_made_again(make_lab: MakeLab) -> None:
    lab = stock_lab(make_lab, "vxlan")
    node = lab.node("n1")

    def device() -> dict[str, object]:
        shown = json.loads(node.run(["ip", "-json", "link", "show", "dev", "flannel.1"]).stdout)[0]
        return {key: shown[key] for key in ("ifindex", "address", "mtu")}

    before = device()
    key = f"{lab.spec.etcd_prefix}/subnets/10.1.7.0-24"
    value = lab.etcdctl("get", key)
    node.start_daemon(["--datapath=ebpf"])
    ready(node)
    assert device() == before
    assert lab.etcdctl("get", key) == value
    eventually(lambda: "proto 251" in node.run(["ip", "route"]).stdout, "the routes carry our mark")
    flannel(node, "down", "--purge")
    assert node.run(["ip", "link", "show", "dev", "flannel.1"], check=False).returncode != 0
