"""Leases that collide: the same one wins on every pass, so that the kernel is not rewritten for ever."""

from ipaddress import IPv4Address
from itertools import permutations

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import Lease, Mac, Uplink
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import Object, Route
from tests.samples import lease as sample
from tests.samples import stack

CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.0.2.1"), 24, 1500, Mac(bytes.fromhex("020000000002")))
NODE = Node((stack(CONFIG, UPLINK, "10.1.1.0/24", Mac(bytes.fromhex("020000000001"))),))


def lease(age: int, subnet: str, public_ip: str, mac: str) -> Lease:
    data = {"VNI": 1, "VtepMAC": mac}
    return sample(subnet, public_ip, "vxlan", data, create_revision=age)


COLLIDING = [
    lease(1, "10.1.6.0/24", "192.0.2.6", "02:00:00:00:00:55"),
    lease(2, "10.1.5.0/24", "192.0.2.5", "02:00:00:00:00:55"),  # another node with the same VTEP MAC
    lease(3, "10.1.7.0/24", "192.0.2.6", "02:00:00:00:00:77"),  # a second subnet of the first
    lease(4, "10.1.4.0/22", "192.0.2.8", "02:00:00:00:00:88"),  # what holds both
]


def wanted(leases: list[Lease]) -> list[Object]:
    usable, _ = backends.usable(NODE, leases, {})
    peers, _ = backends.peers(NODE, usable, {})
    slots = contents.assign_slots(peers, {}, 8)
    return [*backends.objects(NODE, peers), *contents.peer_entries(peers, slots)]


def test_no_two_objects_have_one_key() -> None:
    found = [(type(obj), obj.key) for obj in wanted(COLLIDING)]
    assert len(found) == len(set(found))


def test_the_order_of_leases_does_not_matter() -> None:
    results = {frozenset(wanted(list(order))) for order in permutations(COLLIDING)}
    [objects] = results
    routes = sorted(str(obj.dst) for obj in objects if isinstance(obj, Route))
    assert routes == ["10.1.6.0/24", "10.1.7.0/24"]
