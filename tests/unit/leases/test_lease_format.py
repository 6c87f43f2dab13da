"""Lease keys and values: flanneld's bytes, Go's tolerance, and no exception but InvalidLease."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import InvalidLease
from flannel_ebpf.base.model import Lease
from flannel_ebpf.leases import lease_format

PREFIX = "/coreos.com/network"
KEY = f"{PREFIX}/subnets/10.1.5.0-24"
SUBNET = IPv4Network("10.1.5.0/24")
VALUE = b'{"PublicIP":"192.168.64.3","PublicIPv6":null}'
VTEP = {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("/coreos.com/network", "/coreos.com/network/config"),
        ("/coreos.com/network/", "/coreos.com/network/config"),
        ("//coreos.com//network//", "/coreos.com/network/config"),
        ("network", "network/config"),
        ("/", "/config"),
        ("", "config"),
    ],
)
def test_keys_join_as_in_go(prefix: str, key: str) -> None:
    assert lease_format.config_key(prefix) == key


def test_subnet_key_and_watched_prefix() -> None:
    assert lease_format.subnet_key(PREFIX + "/", SUBNET) == KEY
    assert lease_format.subnets_prefix(PREFIX) == f"{PREFIX}/subnets"


@pytest.mark.parametrize(
    ("lease", "value"),
    [
        pytest.param(
            Lease(SUBNET, IPv4Address("192.168.64.3"), "vxlan", VTEP),
            b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
            id="vxlan",
        ),
        pytest.param(
            Lease(SUBNET, IPv4Address("192.168.64.3"), "host-gw"),
            b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
            id="host-gw",
        ),
        pytest.param(Lease(SUBNET, IPv4Address("192.168.64.3")), VALUE, id="udp"),
        pytest.param(
            Lease(SUBNET, IPv4Address(0), extra={"Owner": "é", "BackendV6Data": {"VNI": 1}}),
            b'{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendV6Data":{"VNI":1},"Owner":"\\u00e9"}',
            id="unknown fields last",
        ),
    ],
)
def test_values_are_flanneld_s_bytes(lease: Lease, value: bytes) -> None:
    assert lease_format.encode_lease(lease) == value
    assert lease_format.parse_lease(KEY, value) == replace(lease, key=KEY)


def test_dual_stack_lease_keeps_its_ipv4_half_and_the_rest_for_a_rewrite() -> None:
    value = (
        b'{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1},'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}'
    )
    lease = lease_format.parse_lease(f"{KEY}&fc00:0:1::-64", value, 77, 5, 4)
    assert (lease.subnet, lease.subnet6) == (SUBNET, IPv6Network("fc00:0:1::/64"))
    assert (lease.etcd_lease, lease.mod_revision, lease.create_revision) == (77, 5, 4)
    assert lease_format.encode_lease(lease) == value


@pytest.mark.parametrize(
    "value",
    [
        b'{"publicip":"192.168.64.3","BACKENDTYPE":"vxlan"}',
        b' {"PublicIP":"1.1.1.1", "PublicIP":"192.168.64.3",\n"BackendType":"vxlan"} ',
        b'{"publicIP":"1.1.1.1","PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":null}',
    ],
)
def test_field_names_are_read_as_go_reads_them(value: bytes) -> None:
    lease = lease_format.parse_lease(KEY, value)
    assert (lease.public_ip, lease.backend_type) == (IPv4Address("192.168.64.3"), "vxlan")
    assert lease.extra == {}


def test_a_missing_public_ip_is_zero() -> None:
    assert lease_format.parse_lease(KEY, b"{}").public_ip == IPv4Address(0)


BAD_KEYS = {
    "not a lease key": [
        "",
        PREFIX,
        f"{PREFIX}/subnets",
        f"{PREFIX}/subnets/",
        f"{PREFIX}/subnets/hello",
        f"{PREFIX}/subnets/10.1.5.0-24/",
        f"{PREFIX}/subnets/10.1.5.0-24\n",
        f"{PREFIX}/subnets/10.1.5.0",
        f"{PREFIX}/subnets/10.1.5.0-",
        f"{PREFIX}/subnets/10.1.5-24",
        f"{PREFIX}/subnets/-10.1.5.0-24",
        f"{PREFIX}/subnets/10.1.5.0-24&fc00::",
        f"{PREFIX}/subnets/10.1.5.0-24&FC00::-64",
        f"{PREFIX}/subnets/fc00::-64",
        f"{PREFIX}/subnets/٣.1.5.0-24",
        f"{PREFIX}/subnets-backup/10.1.5.0-24",
        f"{PREFIX}/subnets/old/10.1.5.0-24",
    ],
    "the subnet is a single address": [f"{PREFIX}/subnets/10.1.5.0-32", f"{KEY}&fc00::1-128"],
    "Octet 256": [f"{PREFIX}/subnets/10.1.256.0-24"],
    "Leading zeros": [f"{PREFIX}/subnets/10.01.5.0-24"],
    "netmask": [f"{PREFIX}/subnets/10.1.5.0-33", f"{KEY}&fc00::-129"],
    "host bits": [f"{PREFIX}/subnets/10.1.5.1-24"],
    "integer string conversion": [f"{PREFIX}/subnets/10.1.5.0-{'2' * 5000}"],
    "At most 8 colons": [f"{KEY}&:::::::::::-64"],
}


@pytest.mark.parametrize(("why", "key"), [(why, key) for why, keys in BAD_KEYS.items() for key in keys])
def test_a_key_that_is_no_lease_key_says_why(why: str, key: str) -> None:
    with pytest.raises(InvalidLease, match=why):
        lease_format.parse_lease(key, VALUE)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"PublicIP":"1.2.3.4"', "not JSON"),
        (b'{"PublicIP":"1.2.3.4","x":NaN}', "NaN"),
        (b"[" * 100_000, "not JSON"),
        (b'{"x":' + b"9" * 10_000 + b"}", "not JSON"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"1.2.3.4"', "not a JSON object"),
        (b'{"PublicIP":null}', "PublicIP is None"),
        (b'{"PublicIP":16909060}', "PublicIP is 16909060"),
        (b'{"PublicIP":"1.2.3"}', "PublicIP is '1.2.3'"),
        (b'{"PublicIP":"fc00::1"}', "PublicIP is 'fc00::1'"),
        (b'{"PublicIP":"1.2.3.4","BackendType":7}', "BackendType is 7"),
    ],
)
def test_a_value_that_is_no_lease_says_why(value: bytes, why: str) -> None:
    with pytest.raises(InvalidLease, match=why) as caught:
        lease_format.parse_lease(KEY, value)
    assert str(caught.value).startswith(KEY)


keys = st.one_of(
    st.text(),
    st.from_regex(r"/subnets/\d{1,4}\.\d{1,4}\.\d{1,3}\.0-\d{1,3}(&[a-f0-9:]+-\d{1,4})?\Z"),
    st.just(KEY),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(
    st.sampled_from(["PublicIP", "publicip", "BackendType", "BackendData", "PublicIPv6", "x"]),
    json_values | st.just("10.0.0.1"),
)
values = st.binary() | objects.map(lambda fields: json.dumps(fields).encode())


@given(st.lists(st.builds(lease_format.Item, keys, values, st.integers(0), st.integers(1), st.integers(1))))
@example([lease_format.Item(KEY, VALUE, 0, 1, 1), lease_format.Item(KEY + "&fc00::-64", VALUE, 0, 2, 2)])
def test_every_key_is_a_lease_or_skipped_with_a_reason(items: list[lease_format.Item]) -> None:
    leases, skipped = lease_format.parse_snapshot(items)
    assert len(leases) + len(skipped) == len(items)
    assert all(item.why for item in skipped)
    assert [lease.subnet for lease in leases] == sorted({lease.subnet for lease in leases})


@given(objects)
def test_what_is_rewritten_reads_back_equal(fields: dict[str, object]) -> None:
    try:
        lease = lease_format.parse_lease(KEY, json.dumps(fields).encode())
    except InvalidLease:
        return
    assert lease_format.parse_lease(KEY, lease_format.encode_lease(lease)) == lease


def test_of_two_keys_for_one_subnet_the_newer_counts() -> None:
    old = lease_format.Item(KEY, VALUE, 0, 8, 8)
    new = lease_format.Item(f"{KEY}&fc00::-64", VALUE.replace(b".3", b".4"), 0, 9, 9)
    for items in ([old, new], [new, old]):
        leases, skipped = lease_format.parse_snapshot(items)
        assert [lease.key for lease in leases] == [new.key]
        assert [item.key for item in skipped] == [old.key]


few_keys = st.sampled_from([KEY, f"{KEY}&fc00::-64", KEY.replace(".5.", ".6."), f"{PREFIX}/subnets/hello"])
stores = st.dictionaries(few_keys, st.sampled_from([VALUE, VALUE.replace(b".3", b".4"), b"{"]))


@given(stores, stores, st.sets(few_keys))
@example({KEY: VALUE}, {f"{KEY}&fc00::-64": VALUE}, set())
def test_what_was_written_since_leads_to_the_same_leases_or_to_none(
    before: dict[str, bytes], written: dict[str, bytes], deleted: set[str]
) -> None:
    first = {key: lease_format.Item(key, value, 0, n, n) for n, (key, value) in enumerate(before.items(), 1)}
    later = {
        key: lease_format.Item(key, value, 0, n, n) for n, (key, value) in enumerate(written.items(), 10)
    }
    left = {key: item for key, item in first.items() if key not in deleted} | later
    leases, skipped = lease_format.parse_snapshot(first.values())
    merged = lease_format.merge(leases, later.values())
    if merged is None or len(merged) + len(skipped) != len(left):
        return  # what Registry.snapshot_since then does is read all
    right, right_skipped = lease_format.parse_snapshot(left.values())
    assert {lease.key: lease for lease in merged} == {lease.key: lease for lease in right}
    assert {one.key for one in skipped} == {one.key for one in right_skipped}
