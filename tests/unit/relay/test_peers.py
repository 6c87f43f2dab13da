from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.relay.peers import PeerTable, decode, encode


def network(bits: int, length: int) -> IPv4Network:
    return IPv4Network(((10 << 24 | bits << 8) & (0xFFFFFFFF << 32 - length), length))


NETWORKS = st.builds(network, st.integers(0, 0xFFFF), st.integers(10, 30))
ADDRESSES = st.builds(lambda low: IPv4Address(10 << 24 | low), st.integers(0, 0xFFFFFF))
PEERS = st.dictionaries(NETWORKS, st.builds(IPv4Address, st.integers(1, 20)), max_size=12)


def table(peers: dict[IPv4Network, IPv4Address]) -> PeerTable:
    made = PeerTable()
    made.replace(peers)
    return made


@given(PEERS, st.lists(ADDRESSES, min_size=1))
def test_longest_prefix_wins(peers: dict[IPv4Network, IPv4Address], destinations: list[IPv4Address]) -> None:
    made = table(peers)
    for dst in destinations + [net.network_address for net in peers]:
        covering = sorted((net.prefixlen, str(ip)) for net, ip in peers.items() if dst in net)
        assert made.next_hop(int(dst)) == (covering[-1][1] if covering else None)


@given(PEERS, ADDRESSES, st.builds(IPv4Address, st.integers(1, 20)))
def test_a_member_may_send_from_its_own_subnets_only(
    peers: dict[IPv4Network, IPv4Address], source: IPv4Address, sender: IPv4Address
) -> None:
    made = table(peers)
    expected = any(source in net and ip == sender for net, ip in peers.items())
    assert made.may_send(str(sender), int(source)) == expected
    assert made.is_member(str(sender)) == (sender in peers.values())


@given(PEERS)
def test_file_says_what_was_written(peers: dict[IPv4Network, IPv4Address]) -> None:
    assert decode(encode(peers), "peers.json") == peers


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"10.1.5.1/24": "1.2.3.4"}', '{"10.1.5.0/24": "here"}', "3"]
)
def test_a_file_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"peers\.json"):
        decode(text, "peers.json")


def test_replace_forgets_what_was_remembered() -> None:
    net, dst = IPv4Network("10.1.6.0/24"), int(IPv4Address("10.1.6.2"))
    made = table({net: IPv4Address("192.0.2.1")})
    assert made.next_hop(dst) == "192.0.2.1"
    assert made.may_send("192.0.2.1", dst)
    made.replace({net: IPv4Address("192.0.2.2")})
    assert dst not in made.next_hops
    assert ("192.0.2.1", dst) not in made.senders
    assert made.next_hop(dst) == "192.0.2.2"
    assert len(made) == 1


def test_a_scan_does_not_grow_the_memory() -> None:
    made = table({IPv4Network("10.0.0.0/8"): IPv4Address("192.0.2.1")})
    for low in range(70000):
        made.next_hop(10 << 24 | low)
        made.may_send("192.0.2.1", 10 << 24 | low)
    assert len(made.next_hops) <= 65536
    assert len(made.senders) <= 65536
