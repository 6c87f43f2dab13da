"""Faults of the leases themselves under whole nodes: gone, expired, stolen, doubled, poisoned, moved."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flannel_ebpf.lab import Node
from flannel_ebpf.lab.spec import ETCD_IP
from tests.netns.etcd_cluster import LONG
from tests.netns.faults.fault_lab import PREFIX, FaultLab, fault_lab, run_to_end
from tests.netns.labs import MakeLab
from tests.polls import eventually

TTL = 6
GRACE = 4
SOON = 10.0
POISON = {
    "10.1.180.0-24": "this is no JSON",
    "10.1.181.0-24": '["a list"]',
    "10.1.182.0-24": '{"PublicIP":"no address","BackendType":"vxlan"}',
    "10.1.183.0-24": '{"PublicIP":"192.168.64.183","BackendType":"wireguard"}',
    "10.1.184.0-24": '{"PublicIP":"192.168.64.184","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}',
    "10.1.185.0-99": '{"PublicIP":"192.168.64.185"}',
    "hello": "\\x00\\xff",
}


@pytest.fixture(scope="module")
def faults(make_shared_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultLab]:
    """Leases of a few seconds; n3 stands by for tests in which a node ends."""
    args = (f"--lease-ttl={TTL}", f"--wipe-grace={GRACE}")
    with fault_lab(make_shared_lab, tmp_path_factory.mktemp("lease"), *args, spares=1) as made:
        yield made


@pytest.fixture
def third(faults: FaultLab) -> Iterator[Node]:
    """n3, prepared; whatever runs there ends with the test, and its lease soon after."""
    node = faults.spares[0]
    node.prepare()
    node.subnet_file.unlink(missing_ok=True)
    yield node
    node.stop_daemon()


def etcd_lease(faults: FaultLab, node: Node) -> int:
    found = json.loads(faults.cluster.ctl("get", faults.key(node), "--write-out=json"))
    return int(found.get("kvs", [{}])[0].get("lease", 0))


def operate(faults: FaultLab, command: str, *arguments: str) -> str:
    """Run `flannel-ebpf` on n1 as an operator would."""
    line = [sys.executable, "-m", "flannel_ebpf", command, *arguments, *faults.args[:1]]
    return faults.nodes[0].run(line).stdout


def test_own_key_deleted(faults: FaultLab) -> None:
    one = faults.nodes[0]
    before = faults.value(one)
    with faults.under("own key deleted") as fault:
        for _ in range(3):
            since = time.monotonic()
            faults.cluster.ctl("del", faults.key(one))
            eventually(lambda: faults.value(one) == before, "the key is back", SOON)
            fault.recovery = faults.recovery(since, SOON)
    faults.said(one, "is gone from etcd")


def test_every_key_deleted(faults: FaultLab) -> None:
    with faults.under("all leases deleted") as fault:
        since = time.monotonic()
        faults.cluster.ctl("del", "--prefix", f"{PREFIX}/subnets/")
        fault.recovery = faults.recovery(since, SOON)
    assert all(faults.value(node) for node in faults.nodes)


def test_leases_that_expire_while_etcd_is_frozen(faults: FaultLab) -> None:
    member = faults.cluster.members[0]
    old = [etcd_lease(faults, node) for node in faults.nodes]
    frozen = 60.0 if LONG else TTL + 2.0
    with faults.under(f"leases of {TTL} s, etcd frozen for {frozen:.0f} s") as fault:
        member.freeze()
        time.sleep(frozen)
        member.thaw()
        fault.recovery = faults.recovery(time.monotonic(), 20)
        eventually(lambda: all(faults.value(node) for node in faults.nodes), "both have their leases", SOON)
    assert not {etcd_lease(faults, node) for node in faults.nodes} & set(old), "new grants"


def test_an_etcd_that_lost_everything(faults: FaultLab) -> None:
    """Also the network config: nodes that run do not need it, and an administrator brings it back."""
    subnets = [node.subnet for node in faults.nodes]
    with faults.under("etcd wiped") as fault:
        faults.cluster.wipe()
        since = time.monotonic()
        fault.recovery = faults.recovery(since, 20)
        eventually(lambda: all(faults.value(node) for node in faults.nodes), "both have their leases", SOON)
    faults.cluster.ctl("put", f"{PREFIX}/config", faults.config())
    assert [node.subnet for node in faults.nodes] == subnets


def test_poison_among_the_leases(faults: FaultLab) -> None:
    with faults.under("poison keys") as fault:
        since = time.monotonic()
        for key, value in POISON.items():
            faults.cluster.ctl("put", f"{PREFIX}/subnets/{key}", value)
        fault.recovery = faults.recovery(since, SOON)
        for key in POISON:
            faults.said(faults.nodes[0], key.removesuffix("-24"), "skipped")
    for key in POISON:
        faults.cluster.ctl("del", f"{PREFIX}/subnets/{key}")


def test_own_key_poisoned(faults: FaultLab) -> None:
    one = faults.nodes[0]
    before = faults.value(one)
    with faults.under("own key poisoned") as fault:
        since = time.monotonic()
        faults.cluster.ctl("put", faults.key(one), "this is no JSON")
        fault.recovery = faults.recovery(since, SOON)
        text = ["get", "--print-value-only", faults.key(one)]
        eventually(lambda: "PublicIP" in faults.cluster.ctl(*text), "mended", SOON)
    assert faults.value(one) == before


def test_a_stolen_key_ends_the_daemon_and_says_who_has_it(faults: FaultLab, third: Node) -> None:
    process = start_apart(third, faults.args)
    with faults.under("stolen key of a third node") as fault:
        stolen = json.dumps({**faults.value(third), "PublicIP": "192.168.64.66"})
        since = time.monotonic()
        faults.cluster.ctl("put", faults.key(third), stolen)
        said, _ = process.communicate(timeout=60)
        fault.recovery = time.monotonic() - since
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("flannel-ebpf: subnet ")
    assert "192.168.64.66" in last
    assert faults.value(third)["PublicIP"] == "192.168.64.66", "not written over"
    faults.cluster.ctl("del", faults.key(third))


@pytest.mark.parametrize("vtep", ["that of the lease", "its own"])
def test_two_nodes_with_one_public_ip(faults: FaultLab, third: Node, vtep: str) -> None:
    """The newcomer ends and says why; the lease of the other stays.

    A newcomer with a VTEP of its own has written that into the lease before it can know: until it is put
    right, other nodes send to it.
    """
    two = faults.nodes[1]
    before = faults.value(two)
    third.run(["ip", "link", "del", "flannel.1"], check=False)
    if vtep == "its own":
        third.run(
            ["ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472"]
        )
    with faults.under(f"second node with one public IP, VTEP {vtep}", may_lose=vtep == "its own") as fault:
        for _ in range(3):  # as under a supervisor
            since = time.monotonic()
            status, said = run_to_end(third, (*faults.args, f"--public-ip={two.ip}"), 60)
            fault.recovery = time.monotonic() - since
            assert status == 1
            assert "every node needs a --public-ip of its own" in said.splitlines()[-1]
    eventually(lambda: faults.value(two) == before, "the lease of the first", SOON)
    assert two.daemon
    with faults.under("after that") as fault:
        fault.recovery = faults.recovery(time.monotonic(), SOON)


def start_apart(node: Node, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    """Start a daemon whose status can be waited for; returns when it is ready."""
    process = node.popen(node.daemon_command(arguments))
    eventually(node.environment, f"{node.name} has a subnet", SOON)
    return process


def test_reserve_and_unreserve_under_a_running_node(faults: FaultLab) -> None:
    one = faults.nodes[0]
    before = faults.value(one)
    with faults.under("reserve, unreserve") as fault:
        assert etcd_lease(faults, one)
        since = time.monotonic()
        assert "reserved" in operate(faults, "reserve", str(one.subnet), f"--public-ip={one.ip}")
        assert etcd_lease(faults, one) == 0
        time.sleep(TTL / 2)  # renewals are due after a third
        assert etcd_lease(faults, one) == 0, "never given a TTL"
        operate(faults, "unreserve", str(one.subnet))
        eventually(lambda: etcd_lease(faults, one), "an ordinary lease", SOON)
        fault.recovery = faults.recovery(since, SOON + TTL)
    assert faults.value(one) == before


def move(faults: FaultLab, new: str, old: str) -> None:
    """Give n1's uplink another address; returns when n2 sends there."""
    one, two = faults.nodes
    one.run(["ip", "addr", "add", new, "dev", "eth0"])
    one.run(["ip", "addr", "del", old, "dev", "eth0"])
    one.run(["ip", "route", "replace", "default", "via", str(ETCD_IP)])
    shown = ["bridge", "fdb", "show", "dev", "flannel.1"]
    shown_device = ["ip", "-d", "link", "show", "type", "vxlan"]
    there = new.partition("/")[0]
    eventually(lambda: f"dst {there} " in two.run(shown).stdout, f"n2 sends to {there}", SOON)
    eventually(lambda: f"local {there} " in one.run(shown_device).stdout, "the device", SOON)


def test_a_new_address_of_the_uplink(faults: FaultLab) -> None:
    """No peer can know of it before it happens: what is sent until they do is lost."""
    one = faults.nodes[0]
    subnet, before = one.subnet, faults.value(one)
    first, second = f"{one.ip}/24", "192.168.64.101/23"  # one network: deleting the first would take both
    with faults.under("uplink gets another address", may_lose=True) as fault:
        since = time.monotonic()
        move(faults, second, first)
        fault.recovery = time.monotonic() - since
    assert faults.value(one) == {**before, "PublicIP": "192.168.64.101"}
    with faults.under("with the other address") as fault:
        fault.recovery = faults.recovery(time.monotonic(), SOON)
    with faults.under("uplink gets its first address back", may_lose=True) as fault:
        since = time.monotonic()
        move(faults, first, second)
        fault.recovery = time.monotonic() - since
    with faults.under("with the first address again") as fault:
        fault.recovery = faults.recovery(time.monotonic(), SOON)
    assert faults.value(one) == before
    assert one.subnet == subnet
