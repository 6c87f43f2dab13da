"""A lease of another length: its node is reached, and nobody's programs or maps are made anew for it."""

from __future__ import annotations

from flannel_ebpf.lab import Node
from tests.netns.labs import MakeLab
from tests.netns.life import ready, restart
from tests.netns.paths import watch
from tests.netns.traffic import ping, transfer
from tests.polls import eventually


def pinned(node: Node) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in node.pin_root.rglob("*")}


def test_a_config_of_another_length_goes_round_node_by_node(make_lab: MakeLab) -> None:
    """SubnetLen 24 becomes 25; n3 joins with it, and then n2 is started again."""
    lab = make_lab(nodes=3, datapath="ebpf", pods_per_node=0, start_daemons=False)
    n1, n2, n3 = lab.nodes
    for node in (n1, n2):
        node.start_daemon()
        ready(node)
    one, two = n1.add_pod(), n2.add_pod()
    lab.wait_attached([n1, n2])
    before = pinned(n1)
    lab.etcdctl(
        "put",
        f"{lab.spec.etcd_prefix}/config",
        lab.spec.config_json().replace('"SubnetLen": 24', '"SubnetLen": 25'),
    )
    n3.start_daemon()
    ready(n3)
    assert n3.subnet.prefixlen == 25
    three = n3.add_pod()
    lab.wait_attached([n3])
    for node in (n1, n2):
        eventually(lambda: str(n3.subnet) in node.run(["ip", "route"]).stdout, f"{node.name} has it")  # noqa: B023 - called here
    assert ping(one, three.ip, 20) == ping(three, one.ip, 20) == 20
    assert "no /24 as the others are" in n1.daemon_log()
    with watch(n1) as seen:
        transfer(one, two, 1 << 22)
    assert seen.path == "BPF", seen
    assert pinned(n1) == before
    restart(n2)  # its pods would be made anew now
    assert n2.subnet.prefixlen == 25
    eventually(lambda: str(n2.subnet) in n1.run(["ip", "route"]).stdout, "n1 has n2's new subnet")
    assert ping(one, three.ip, 20) == 20
