"""Leases that collide: the same one wins on every pass, so that the kernel is not rewritten for ever."""

from ipaddress import IPv4Address, IPv4Network
from itertools import permutations

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import LeasePart, Mac, Uplink
from flannel_ebpf.desired.backends import vxlan
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import Object
from tests.samples import stack

CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.0.2.1"), 24, 1500, Mac(bytes.fromhex("020000000002")))
NODE = stack(CONFIG, UPLINK, "10.1.1.0/24", Mac(bytes.fromhex("020000000001")))


def lease(third: int, public_ip: str, mac: str) -> LeasePart:
    data = {"VNI": 1, "VtepMAC": mac}
    return LeasePart(IPv4Network(f"10.1.{third}.0/24"), IPv4Address(public_ip), "vxlan", data)


COLLIDING = [
    lease(5, "192.0.2.5", "02:00:00:00:00:55"),
    lease(6, "192.0.2.6", "02:00:00:00:00:55"),  # another node with the same VTEP MAC
    lease(7, "192.0.2.6", "02:00:00:00:00:77"),  # a second subnet of that node
]


def wanted(leases: list[LeasePart]) -> list[Object]:
    peers, _ = vxlan.peers(NODE, leases, {})
    slots = contents.assign_slots(peers, {}, 8)
    return [*vxlan.objects(NODE, peers), *contents.peer_entries(peers, slots)]


def test_no_two_objects_have_one_key() -> None:
    found = [(type(obj), obj.key) for obj in wanted(COLLIDING)]
    assert len(found) == len(set(found))


def test_the_order_of_leases_does_not_matter() -> None:
    results = {frozenset(wanted(list(order))) for order in permutations(COLLIDING)}
    assert len(results) == 1
