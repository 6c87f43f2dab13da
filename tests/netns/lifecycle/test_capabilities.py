"""A daemon that has the manifest's capabilities and no more, beside what one of root left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_ebpf.kernel.netlink.links import read_links
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.lab import Lab, Node, netns, processes
from tests.netns.labs import MakeLab
from tests.netns.life import chat, ready, stream

FEW = "-all,+net_admin,+net_raw,+bpf,+perfmon"


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", extra_up_args=("--xdp=generic",))


@pytest.fixture
def confined(lab: Lab) -> Iterator[Node]:
    """Node n1, whose daemon of root has made room for one with few rights."""
    node = lab.node("n1")
    node.stop_daemon()
    start(node)
    yield node
    node.stop_daemon()
    node.start_daemon()
    lab.wait_attached([node])


def start(node: Node) -> None:
    mark = len(node.daemon_log())
    few = ["setpriv", f"--bounding-set={FEW}", "--inh-caps=-all", "--no-new-privs"]
    processes.spawn(node.ns, [*few, *node.daemon_command()], log=node.log, pidfile=node.pidfile)
    ready(node, mark)


def on_hooks(node: Node) -> set[tuple[str, str, str, int]]:
    """What stands on the node's hooks: device, direction, kind of hook, the program's id."""
    found = {(one.device, one.direction, one.via, one.prog_id) for one in node.hooks()}
    with netns.call_inside(node.ns, RouteSocket) as netlink:
        links = read_links(netlink).values()
        found |= {(one.name, "", "xdp", one.xdp_prog) for one in links if one.xdp_prog}
    return found


def test_programs_of_one_with_all_rights_are_known_and_make_room(lab: Lab, confined: Node) -> None:
    """On tcx it may not find its own by their ids; on clsact it knows its filters."""
    lab.wait_attached([confined])
    assert {kind for _, _, kind, _ in on_hooks(confined)} == {"clsact", "xdp"}
    assert "no BPF" not in confined.daemon_log()


def test_a_restart_changes_nothing_and_loses_nothing(lab: Lab, confined: Node) -> None:
    lab.wait_attached([confined])
    before, mark = on_hooks(confined), len(confined.daemon_log())
    one, two = lab.pod("n1p1"), lab.pod("n2p1")
    with stream(one, two, 7001) as there, stream(two, one, 7002) as back, chat(two, one, 7003):
        confined.stop_daemon()
        start(confined)
    assert (there.lost, back.lost) == (0, 0)
    assert on_hooks(confined) == before
    assert "permitted" not in confined.daemon_log()[mark:]
    assert "changes made" not in confined.daemon_log()[mark:]


def test_other_programs_take_the_place_of_those(lab: Lab, confined: Node) -> None:
    """As after an upgrade: each program once, the new one."""
    lab.wait_attached([confined])
    before = on_hooks(confined)
    confined.stop_daemon()
    mark = len(confined.daemon_log())
    few = ["setpriv", f"--bounding-set={FEW}", "--inh-caps=-all", "--no-new-privs"]
    line = [*few, *confined.daemon_command(["--revalidate=3"])]
    processes.spawn(confined.ns, line, log=confined.log, pidfile=confined.pidfile)
    ready(confined, mark)
    lab.wait_attached([confined])
    after = on_hooks(confined)
    assert {one[:3] for one in after} == {one[:3] for one in before}
    assert not {one[3] for one in after} & {one[3] for one in before}
