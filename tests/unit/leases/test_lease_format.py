"""Lease keys and values: flanneld's bytes, Go's tolerance, and no exception but InvalidLease."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import InvalidLease
from flannel_ebpf.base.family import Family, in_order
from flannel_ebpf.base.model import Claim, Endpoint, Lease, LeasePart, Skipped
from flannel_ebpf.leases import lease_format
from tests.samples import lease as sample

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
    assert lease_format.subnet_key(PREFIX + "/", [SUBNET]) == KEY
    assert lease_format.subnets_prefix(PREFIX) == f"{PREFIX}/subnets/"


@pytest.mark.parametrize(
    ("lease", "value"),
    [
        pytest.param(
            sample(SUBNET, "192.168.64.3", "vxlan", VTEP),
            b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
            id="vxlan",
        ),
        pytest.param(
            sample(SUBNET, "192.168.64.3", "host-gw"),
            b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
            id="host-gw",
        ),
        pytest.param(sample(SUBNET, "192.168.64.3"), VALUE, id="udp"),
        pytest.param(
            sample(SUBNET, IPv4Address(0), extra={"Owner": "é", "BackendV6Data": {"VNI": 1}}),
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
    assert lease.subnets == (SUBNET, IPv6Network("fc00:0:1::/64"))
    assert (lease.etcd_lease, lease.mod_revision, lease.create_revision) == (77, 5, 4)
    assert lease_format.encode_lease(lease) == value


DUAL = Lease.of(
    [SUBNET, IPv6Network("fc00:0:5::/64")],
    Claim("vxlan", (Endpoint(IPv4Address("192.168.64.3"), VTEP), Endpoint(IPv6Address("fd00::3"), VTEP))),
)


def test_a_dual_stack_lease_is_flanneld_s_key_and_bytes() -> None:
    key = f"{KEY}&fc00:0:5::-64"
    value = (
        b'{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
    )
    assert lease_format.subnet_key(PREFIX, DUAL.subnets) == key
    assert lease_format.encode_lease(DUAL) == value
    assert lease_format.parse_lease(key, value) == replace(DUAL, key=key)


def test_a_lease_of_ipv6_alone_has_flanneld_s_empty_ipv4_subnet() -> None:
    lease = replace(DUAL, parts=DUAL.parts[1:])
    key = f"{PREFIX}/subnets/0.0.0.0-0&fc00:0:5::-64"
    assert lease_format.subnet_key(PREFIX, lease.subnets) == key
    value = lease_format.encode_lease(lease)
    assert value.startswith(b'{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6')
    assert lease_format.parse_lease(key, value) == replace(lease, key=key)


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ('"fd00::3"', ""),
        ("null", ""),
        ('""', "PublicIPv6 is '': an IPv6 address is needed"),
        ('"1.2.3.4"', "PublicIPv6 is '1.2.3.4': an IPv6 address is needed"),
        ('"fe80::1%eth0"', "PublicIPv6 is 'fe80::1%eth0': an IPv6 address is needed"),
        ('["fd00::3"]', "PublicIPv6 is ['fd00::3']: an IPv6 address is needed"),
    ],
)
def test_a_bad_public_ipv6_spoils_that_family_alone(text: str, flaw: str) -> None:
    value = f'{{"PublicIP":"192.168.64.3","PublicIPv6":{text},"BackendType":"host-gw"}}'.encode()
    lease = lease_format.parse_lease(f"{KEY}&fc00::-64", value)
    right = IPv6Address("fd00::3" if "fd00::3" in text and not flaw else "::")
    assert lease.parts == (
        LeasePart(SUBNET, IPv4Address("192.168.64.3"), "host-gw"),
        LeasePart(IPv6Network("fc00::/64"), right, "host-gw", flaw=flaw),
    )
    assert lease_format.parse_lease(f"{KEY}&fc00::-64", lease_format.encode_lease(lease)).part(Family.V4)


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
    assert (lease.public_ip, lease.claim.backend_type) == (IPv4Address("192.168.64.3"), "vxlan")
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
        (b"[" * 60_000, "not JSON"),
        (b'{"PublicIP":"10.0.0.1","x":"' + b"x" * 100_000 + b'"}', "more than 65536 octets"),
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


items = st.builds(lease_format.Item, keys, values, st.integers(0), st.integers(1), st.integers(1))


@given(st.lists(items, unique_by=lambda item: item.key))
@example([lease_format.Item(KEY, VALUE, 0, 1, 1), lease_format.Item(KEY + "&fc00::-64", VALUE, 0, 2, 2)])
def test_every_key_is_a_lease_or_skipped_with_a_reason(items: list[lease_format.Item]) -> None:
    leases, skipped = lease_format.parse_snapshot(items)
    assert {one.key for one in (*leases, *skipped)} == {item.key for item in items}
    assert all(item.why for item in skipped)
    subnets = [subnet for lease in leases for subnet in lease.subnets]
    assert len(subnets) == len(set(subnets))
    first = [lease.subnets[0] for lease in leases]
    assert first == sorted(first, key=in_order)


@given(objects)
def test_what_is_rewritten_reads_back_equal(fields: dict[str, object]) -> None:
    try:
        lease = lease_format.parse_lease(KEY, json.dumps(fields).encode())
    except InvalidLease:
        return
    assert lease_format.parse_lease(KEY, lease_format.encode_lease(lease)) == lease


OTHER = VALUE.replace(b".3", b".4")


def item(key: str, value: bytes, created: int, written: int) -> lease_format.Item:
    return lease_format.Item(key, value, 0, written, created)


def test_of_two_keys_for_one_subnet_the_one_that_was_there_first_counts() -> None:
    old, new = item(KEY, VALUE, 8, 20), item(f"{KEY}&fc00::-64", OTHER, 9, 9)
    for items in ([old, new], [new, old]):
        leases, skipped = lease_format.parse_snapshot(items)
        assert [(lease.key, lease.subnets) for lease in leases] == [
            (old.key, (SUBNET,)),
            (new.key, (IPv6Network("fc00::/64"),)),  # what the other does not name stays
        ]
        assert skipped == (Skipped(new.key, f"{SUBNET} is that of {KEY}"),)


def test_of_one_nodes_two_keys_for_one_subnet_the_one_written_last_counts() -> None:
    left, used = item(KEY, VALUE, 8, 8), item(f"{KEY}&fc00::-64", VALUE, 9, 9)
    for items in ([left, used], [used, left]):
        leases, skipped = lease_format.parse_snapshot(items)
        assert [lease.key for lease in leases] == [used.key]
        assert [one.key for one in skipped] == [left.key]


few_keys = st.sampled_from(
    [KEY, f"{KEY}&fc00::-64", f"{KEY}&fc01::-64", KEY.replace(".5.", ".6."), f"{PREFIX}/subnets/hello"]
)
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
    index = lease_format.Index.of(leases, skipped)
    merged = index.merged(later.values()) if index else None
    if merged is None or len(merged.leases) + len(skipped) != len(left):
        return  # what Registry.snapshot_since then does is read all
    right, right_skipped = lease_format.parse_snapshot(left.values())
    assert merged.leases == {lease.key: lease for lease in right}
    assert merged == lease_format.Index.of(right, skipped), "as if it had been made anew"
    assert {one.key for one in skipped} == {one.key for one in right_skipped}
