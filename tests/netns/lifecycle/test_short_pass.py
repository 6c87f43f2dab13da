"""A change of leases alone is carried out without a look at the kernel, and all is right."""

from __future__ import annotations

import json
import random
from itertools import count

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.netns.life import ready, restart
from tests.netns.lifecycle.foreign_changes import FAULTS, SILENT, filled_in, quiet_state, state
from tests.polls import eventually


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf")


def key(lab: Lab, number: int) -> str:
    return f"{lab.spec.etcd_prefix}/subnets/10.1.{number}.0-24"


def put(lab: Lab, number: int, ip: str = "", mac: int = 0, backend: str = "vxlan") -> None:
    value = {"PublicIP": ip or f"192.168.64.{number}", "BackendType": backend}
    if backend == "vxlan":
        value |= {"BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:01:{mac or number:02x}"}}  # type: ignore[dict-item]
    lab.etcdctl("put", key(lab, number), json.dumps(value))


def delete(lab: Lab, *numbers: int) -> None:
    for number in numbers:
        lab.etcdctl("del", key(lab, number))


def routes(node: Node, device: str = "flannel.1") -> set[str]:
    shown = json.loads(node.run(["ip", "-json", "route", "show", "dev", device, "proto", "251"]).stdout)
    return {route["dst"] for route in shown}


def fdb(node: Node) -> dict[str, str]:
    shown = json.loads(node.run(["bridge", "-json", "fdb", "show", "dev", "flannel.1"]).stdout)
    return {entry["mac"]: entry["dst"] for entry in shown if "dst" in entry}


def vteps(node: Node) -> dict[str, str]:
    with Map.open(node.map_path("fl_vteps")) as entries:
        return {
            str(abi.AddrKey.unpack(address).addr): str(abi.SubnetKey.unpack(subnet).addr)
            for address, subnet in entries.items().items()
        }


def test_an_address_goes_to_the_last_lease_and_a_vtep_to_the_next_when_its_node_is_gone(lab: Lab) -> None:
    node = lab.node("n1")
    eventually(lambda: routes(node), "settled")
    mac = "02:00:00:00:01:c8"
    put(lab, 200, mac=200)
    eventually(lambda: fdb(node).get(mac) == "192.168.64.200", "the first has the VTEP")
    put(lab, 201, ip="192.168.64.77", mac=200)
    refused = f"VtepMAC {mac} is that of 192.168.64.200 already"
    eventually(lambda: refused in node.daemon_log(), "another node's lease with it is skipped")
    put(lab, 202, ip="192.168.64.200")
    eventually(lambda: vteps(node).get("192.168.64.200") == "10.1.202.0", "of two with one address the last")
    assert fdb(node).get(mac) == "192.168.64.200"
    assert "192.168.64.77" not in vteps(node)
    delete(lab, 200)
    eventually(lambda: fdb(node).get(mac) == "192.168.64.77", "the VTEP is the other node's now")
    eventually(lambda: vteps(node).get("192.168.64.77") == "10.1.201.0", "and so is its subnet")
    delete(lab, 201, 202)
    eventually(lambda: mac not in fdb(node), "all is gone")
    gone = {"192.168.64.77", "192.168.64.200"}
    eventually(lambda: not gone & set(vteps(node)), "and nobody is a member any more")


def test_after_any_leases_a_whole_pass_finds_nothing_to_change(lab: Lab) -> None:
    node, choice = lab.node("n1"), random.Random(11)
    for _ in range(40):
        number = choice.randint(200, 205)
        if choice.random() < 0.3:
            delete(lab, number)
        else:
            backend = "host-gw" if choice.random() < 0.1 else "vxlan"
            ip = f"192.168.64.{choice.randint(100, 102)}"
            put(lab, number, ip, choice.randint(1, 3), backend)
    put(lab, 206)
    eventually(lambda: "10.1.206.0/24" in routes(node), "the last is there")
    before = quiet_state(node)  # leases that vanished are held for a second, and then a pass removes them
    said = restart(node)
    assert "changes made" not in said
    assert state(node) == before
    delete(lab, *range(200, 207))
    eventually(lambda: len(routes(node)) == 1, "as before")


@pytest.mark.parametrize(
    "fault",
    ["route deleted", "device deleted", "device made anew, wrong", "neighbour altered", "FDB entry deleted"],
)
def test_a_lease_that_comes_right_after_a_foreign_change(lab: Lab, fault: str) -> None:
    node, other = lab.nodes
    eventually(lambda: len(routes(node)) == 1, "settled")
    right = quiet_state(node)
    command = filled_in(FAULTS[fault].command, node, other)
    put(lab, 210)
    eventually(lambda: "10.1.210.0/24" in routes(node), "a peer came")
    node.run(["sh", "-c", command])
    put(lab, 211)
    delete(lab, 210)
    wanted = {str(other.subnet), "10.1.211.0/24"}
    eventually(lambda: "flannel.1" in node.run(["ip", "link"]).stdout and routes(node) == wanted, "all peers")
    delete(lab, 211)
    eventually(lambda: state(node) == right, "as before")


def test_leases_that_never_rest_do_not_keep_a_silent_change_from_healing(lab: Lab) -> None:
    node, other = lab.nodes
    eventually(lambda: len(routes(node)) == 1, "settled")
    broken = filled_in(FAULTS["peer's map entry altered"].command, node, other)

    def entry() -> bytes | None:
        subnet = abi.SubnetKey(len=24, addr=other.subnet.network_address).pack()
        with Map.open(node.map_path("fl_peers")) as peers:
            return peers.lookup(subnet)

    right = entry()
    node.run(["sh", "-c", broken])
    assert entry() != right
    numbers = count(1)

    def healed_among_leases() -> bool:
        put(lab, 212, mac=next(numbers) % 200)
        return entry() == right

    eventually(healed_among_leases, "the entry is right again", SILENT)
    delete(lab, 212)
    eventually(lambda: len(routes(node)) == 1, "as before")


def test_what_fails_in_a_short_pass_is_said_and_tried_again(make_lab: MakeLab) -> None:
    lab = make_lab(backend="host-gw", datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    ready(node)
    eventually(lambda: len(routes(node, "eth0")) == 1, "settled")
    node.run(["ip", "route", "del", "default"], check=False)
    put(lab, 220, ip="192.0.2.9", backend="host-gw")
    eventually(lambda: "put route 10.1.220.0/24 via 192.0.2.9" in node.daemon_log(), "the failure is said")
    put(lab, 221, backend="host-gw")
    eventually(lambda: "10.1.221.0/24" in routes(node, "eth0"), "others come nevertheless")
    node.run(["ip", "addr", "add", "192.0.2.1/24", "dev", "eth0"])
    eventually(lambda: "10.1.220.0/24" in routes(node, "eth0"), "tried again", 15.0)
