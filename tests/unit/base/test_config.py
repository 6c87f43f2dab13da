from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import (
    MAX_MTU,
    MAX_PORT,
    MAX_VNI,
    MIN_VXLAN_MTU,
    HostGwConfig,
    NetworkConfig,
    Pool,
    UdpConfig,
    VxlanConfig,
    parse_network_config,
)
from flannel_ebpf.base.errors import ConfigError, UnknownBackend
from flannel_ebpf.base.family import Family

SOURCE = "etcd key /coreos.com/network/config"


def parse(**keys: Any) -> NetworkConfig:
    return parse_network_config(json.dumps(keys), SOURCE)


@pytest.mark.parametrize(
    ("network", "subnet_len", "first", "last"),
    [
        ("10.1.0.0/16", 24, "10.1.1.0", "10.1.255.0"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.1.0.0/22", 24, "10.1.1.0", "10.1.3.0"),
        ("10.1.0.0/23", 25, "10.1.0.128", "10.1.1.128"),
        ("10.1.0.0/28", 30, "10.1.0.4", "10.1.0.12"),
        ("255.254.0.0/16", 24, "255.254.1.0", "255.254.255.0"),
        ("10.1.77.5/16", 24, "10.1.1.0", "10.1.255.0"),  # host bits are masked
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("2001:db8::/124", 126, "2001:db8::4", "2001:db8::c"),
        ("fdff::/16", 64, "fdff:0:0:1::", "fdff:ffff:ffff:ffff::"),
        ("fc00::77/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
    ],
)
def test_defaults_follow_from_the_network(network: str, subnet_len: int, first: str, last: str) -> None:
    wanted = Pool(ip_network(network, strict=False), subnet_len, ip_address(first), ip_address(last))
    if wanted.family is Family.V4:
        assert parse(Network=network) == NetworkConfig((wanted,), enable_nftables=False, backend=UdpConfig())
        return
    keys = {"EnableIPv6": True, "IPv6Network": network, "Backend": {"Type": "host-gw"}}
    assert parse(EnableIPv4=False, **keys).pools == (wanted,)
    both = parse(Network="10.1.0.0/16", **keys)
    assert both.pools == (*parse(Network="10.1.0.0/16").pools, wanted)
    assert (str(both.network), both.networks[1]) == ("10.1.0.0/16", wanted.network)


def test_keys_of_a_family_that_is_off_say_nothing() -> None:
    assert parse(Network="10.1.0.0/16", IPv6Network="nonsense", IPv6SubnetLen=900) == parse(
        Network="10.1.0.0/16"
    )
    keys = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}
    assert parse(Network="nonsense", SubnetMin=7, **keys) == parse(**keys)


@pytest.mark.parametrize(
    ("backend", "expected", "name"),
    [
        (None, UdpConfig(port=8285), "udp"),
        ({"Type": "udp", "Port": 9000}, UdpConfig(port=9000), "udp"),
        ({"Type": "host-gw", "VNI": "ignored"}, HostGwConfig(), "host-gw"),
        ({"Type": "vxlan"}, VxlanConfig(1, 8472, 0, False, False, False), "vxlan"),
        ({"Type": "VXLAN", "Port": 0}, VxlanConfig(), "vxlan"),
        ({"Type": "vxlan", "VNI": 0}, VxlanConfig(vni=0), "vxlan"),
        ({"Type": "vxlan", "VNI": None, "MTU": None, "GBP": None}, VxlanConfig(), "vxlan"),
        (
            {"type": "vxlan", "vni": 7, "PORT": 4789, "mtu": 1400, "gbp": True, "learning": True,
             "directrouting": True},
            VxlanConfig(7, 4789, 1400, True, True, True),
            "vxlan",
        ),
    ],
)  # fmt: skip
def test_backends_and_their_defaults(backend: Any, expected: object, name: str) -> None:
    config = parse(Network="10.1.0.0/16", **({} if backend is None else {"Backend": backend}))
    assert config.backend == expected
    assert config.backend_type == name


def test_keys_match_in_any_case_the_last_one_wins_and_null_is_absent() -> None:
    text = (
        '{"network": "10.2.0.0/16", "NETWORK": "10.1.0.0/16", "Network": null, "subnetlen": 26, "Other": []}'
    )
    config = parse_network_config(text, SOURCE)
    assert (config.network, config.pools[0].subnet_len) == (IPv4Network("10.1.0.0/16"), 26)


ZERO = str(IPv4Address(0))


def test_zero_means_absent_as_in_go() -> None:
    given_zero = parse(Network="10.1.0.0/16", SubnetLen=0, SubnetMin=ZERO, SubnetMax=ZERO)
    assert given_zero == parse(Network="10.1.0.0/16")


def test_nftables_choice_is_read() -> None:
    assert parse(Network="10.1.0.0/16", EnableNFTables=True).enable_nftables


def v6(rest: str) -> str:
    """A config of IPv6 alone, from its IPv6Network on."""
    return f'{{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": {rest}}}'


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("", "", "", "JSON object"),
        ("{", "", "{", "JSON object"),
        ("[]", "", "[]", "JSON object"),
        ("null", "", "null", "JSON object"),
        ('{"Network": NaN}', "", "NaN", "NaN is not JSON"),
        ("[" * 100_000, "", "[[[", "JSON object"),
        ('{"SubnetLen": ' + "9" * 5000 + "}", "", "999", "JSON object"),
        ("{}", "Network", "nothing is there", "10.1.0.0/16"),
        ('{"Network": "10.1.0.0"}', "Network", "10.1.0.0", "10.1.0.0/16"),
        ('{"Network": "10.1.0.0/255.255.0.0"}', "Network", "255.255", "10.1.0.0/16"),
        ('{"Network": "10.1.0.0/33"}', "Network", "/33", "10.1.0.0/16"),
        ('{"Network": "10.1.0/16"}', "Network", "10.1.0/16", "10.1.0.0/16"),
        ('{"Network": "0.0.0.0/0"}', "Network", "0.0.0.0/0", "not the whole"),
        ('{"Network": "0.0.0.0/8"}', "Network", "0.0.0.0/8", "not 0.0.0.0/8"),
        ('{"Network": "127.1.0.0/16"}', "Network", "127.1.0.0/16", "not 127.0.0.0/8"),
        ('{"Network": "96.0.0.0/3"}', "Network", "96.0.0.0/3", "not 127.0.0.0/8"),
        ('{"Network": "239.0.0.0/16"}', "Network", "239.0.0.0/16", "no pod can have"),
        ('{"Network": "255.255.0.0/16"}', "Network", "255.255.0.0/16", "not 255.255.255.255/32"),
        ('{"Network": "fd00::/48"}', "Network", "fd00::/48", "IPv4"),
        ('{"Network": 10}', "Network", "10", "in quotes"),
        ('{"Network": "10.1.0.0/29"}', "Network", "10.1.0.0/29", "/28"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": 31}', "SubnetLen", "31", "at most 30"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": 17}', "SubnetLen", "17", "at least 18"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": -24}', "SubnetLen", "-24", "whole number"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": "24"}', "SubnetLen", "'24'", "without quotes"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": 24.0}', "SubnetLen", "24.0", "whole number"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": true}', "SubnetLen", "True", "whole number"),
        ('{"Network": "10.1.0.0/16", "SubnetMin": "10.2.0.0"}', "SubnetMin", "10.2.0.0", "10.1.0.0/16"),
        ('{"Network": "10.1.0.0/16", "SubnetMax": "10.0.0.0"}', "SubnetMax", "10.0.0.0", "10.1.0.0/16"),
        ('{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.1"}', "SubnetMin", "10.1.5.1", "10.1.5.0"),
        ('{"Network": "10.1.0.0/16", "SubnetMax": "10.1.5.128"}', "SubnetMax", "10.1.5.128", "10.1.5.0"),
        ('{"Network": "10.1.0.0/16", "SubnetMin": "first"}', "SubnetMin", "first", "10.1.16.0"),
        (
            '{"Network": "10.1.0.0/16", "SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"}',
            "SubnetMin", "10.1.9.0", "not above SubnetMax 10.1.8.0",
        ),
        ('{"Network": "10.1.0.0/16", "SubnetMax": "10.1.0.0"}', "SubnetMax", "10.1.0.0", "10.1.1.0"),
        ('{"Network": "10.1.0.0/16", "EnableIPv4": false}', "EnableIPv4", "False", "at least one family"),
        ('{"Network": "10.1.0.0/16", "EnableIPv6": true}', "IPv6Network", "nothing is there", "fc00::/48"),
        ('{"Network": "10.1.0.0/16", "EnableIPv6": "yes"}', "EnableIPv6", "'yes'", "true or false"),
        (v6('"fc00::"'), "IPv6Network", "fc00::", "an IPv6 network"),
        (v6('"fc00::%eth0/48"'), "IPv6Network", "%eth0", "an IPv6 network"),
        (v6('"10.1.0.0/16"'), "IPv6Network", "10.1.0.0/16", "an IPv6 network"),
        (v6('"fe80::/64"'), "IPv6Network", "fe80::/64", "not fe80::/10"),
        (v6('"ff02::/64"'), "IPv6Network", "ff02::/64", "not ff00::/8"),
        (v6('"::/64"'), "IPv6Network", "::/64", "no pod can have"),
        (v6('"::/0"'), "IPv6Network", "::/0", "not the whole of IPv6"),
        (v6('"fc00::/129"'), "IPv6Network", "/129", "an IPv6 network"),
        (v6('"fc00::/125"'), "IPv6Network", "/125", "/124"),
        (v6('"fc00::/48", "IPv6SubnetLen": 127'), "IPv6SubnetLen", "127", "at most 126"),
        (v6('"fc00::/48", "IPv6SubnetLen": 49'), "IPv6SubnetLen", "49", "at least 50"),
        (v6('"fc00::/48", "IPv6SubnetMin": "fc01::"'), "IPv6SubnetMin", "fc01::", "IPv6Network fc00::/48"),
        (v6('"fc00::/48", "IPv6SubnetMin": "fc00::1"'), "IPv6SubnetMin", "fc00::1", "such as fc00::"),
        (v6('"fc00::/48", "IPv6SubnetMax": "10.1.1.0"'), "IPv6SubnetMax", "10.1.1.0", "an IPv6 address"),
        (v6('"fc00::/48", "IPv6SubnetMax": "fc00::"'), "IPv6SubnetMax", "fc00::", "not above IPv6SubnetMax"),
        (v6('"fc00::/48", "Backend": {"Type": "udp"}'), "Backend.Type", "udp", "udp carries IPv4 alone"),
        (v6('"fc00::/48"'), "Backend.Type", "nothing is there", "udp carries IPv4 alone"),
        (v6('"fc00::/48", "Backend": {"Type": "vxlan", "MTU": 1349}'), "Backend.MTU", "1349", "1350 to"),
        ('{"Network": "10.1.0.0/16", "EnableNFTables": 1}', "EnableNFTables", "1", "true or false"),
        ('{"Network": "10.1.0.0/16", "Backend": "vxlan"}', "Backend", "'vxlan'", '{"Type": "vxlan"}'),
        ('{"Network": "10.1.0.0/16", "Backend": null}', "Backend.Type", "nothing is there", "vxlan, host-gw"),
        ('{"Network": "10.1.0.0/16", "Backend": {}}', "Backend.Type", "nothing is there", "vxlan, host-gw"),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "gre"}}', "Backend.Type", "gre", "one of vxlan"),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "WireGuard"}}', "Backend.Type", "WireGuard",
         "wireguard is not implemented by flannel-ebpf"),
    ],
)  # fmt: skip
def test_an_error_names_source_key_value_and_what_would_be_right(
    text: str, key: str, value: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(text, SOURCE)
    message = str(caught.value)
    assert message.startswith(f"{SOURCE}, key {key}: " if key else f"{SOURCE}: ")
    assert value in message
    assert expected in caught.value.expected
    assert len(message) < 600


@pytest.mark.parametrize("backend", [{}, {"Type": "gre"}, {"Type": "ipip"}])
def test_an_unknown_backend_is_told_from_a_config_that_may_yet_be_mended(backend: dict[str, str]) -> None:
    with pytest.raises(UnknownBackend):
        parse(Network="10.1.0.0/16", Backend=backend)
    with pytest.raises(ConfigError) as caught:
        parse(Network="10.1.0.0/16", Backend={"Type": "vxlan", "VNI": -1})
    assert not isinstance(caught.value, UnknownBackend)


@pytest.mark.parametrize(
    ("kind", "key", "low", "high"),
    [
        ("vxlan", "VNI", 0, MAX_VNI),
        ("vxlan", "Port", 0, MAX_PORT),
        ("vxlan", "MTU", MIN_VXLAN_MTU[Family.V4], MAX_MTU),
        ("udp", "Port", 1, MAX_PORT),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(kind: str, key: str, low: int, high: int) -> None:
    for value in (low, high):
        parse(Network="10.1.0.0/16", Backend={"Type": kind, key: value})
    for value in (-1, low - 1, high + 1):
        if (key, value) == ("MTU", 0):
            continue
        with pytest.raises(ConfigError, match=rf"key Backend\.{key}: {value} "):
            parse(Network="10.1.0.0/16", Backend={"Type": kind, key: value})


BACKENDS = (
    st.just(HostGwConfig())
    | st.builds(UdpConfig, port=st.integers(1, MAX_PORT))
    | st.builds(
        VxlanConfig,
        vni=st.integers(0, MAX_VNI),
        port=st.integers(1, MAX_PORT),
        mtu=st.just(0) | st.integers(MIN_VXLAN_MTU[Family.V6], MAX_MTU),
    )
)


UNICAST = {
    Family.V4: st.integers(0x01000000, 0x7EFFFFFF) | st.integers(0x80000000, 0xDFFFFFFF),
    Family.V6: st.integers(0x20 << 120, (0x40 << 120) - 1),
}


@st.composite
def pools(draw: st.DrawFn, family: Family) -> Pool:
    bits = family.bits
    prefix = draw(st.integers(8, bits - 4))
    network = family.network(draw(UNICAST[family]), prefix, strict=False)
    subnet_len = draw(st.integers(prefix + 2, bits - 2))
    size = 2 ** (bits - subnet_len)
    indexes = st.integers(0, 2 ** (subnet_len - prefix) - 1)
    first, last = sorted((draw(indexes), draw(indexes)))
    lowest, highest = (network.network_address + index * size for index in (first, last))
    return Pool(network, subnet_len, lowest, highest)


@st.composite
def network_configs(draw: st.DrawFn) -> NetworkConfig:
    families = draw(st.sampled_from([(Family.V4,), (Family.V6,), (Family.V4, Family.V6)]))
    backend = draw(BACKENDS if Family.V4 in families else BACKENDS.filter(lambda it: it.type != "udp"))
    return NetworkConfig(tuple(draw(pools(family)) for family in families), draw(st.booleans()), backend)


def as_json(config: NetworkConfig) -> dict[str, Any]:
    """Every key written out; the backend's field names are its keys without underscores."""
    backend = {name.replace("_", ""): getattr(config.backend, name) for name in config.backend.__slots__}
    keys: dict[str, Any] = {"EnableIPv4": False, "EnableIPv6": False}
    for pool in config.pools:
        word = "" if pool.family is Family.V4 else "IPv6"
        keys |= {
            f"Enable{pool.family}": True,
            f"{word}Network": str(pool.network),
            f"{word}SubnetLen": pool.subnet_len,
            f"{word}SubnetMin": str(pool.subnet_min),
            f"{word}SubnetMax": str(pool.subnet_max),
        }
    return keys | {
        "EnableNFTables": config.enable_nftables,
        "Backend": {"Type": config.backend_type, **backend},
    }


@given(network_configs())
def test_a_config_written_out_reads_back_the_same(config: NetworkConfig) -> None:
    assert parse_network_config(json.dumps(as_json(config)), SOURCE) == config


KEYS = st.sampled_from(
    ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4", "Backend", "Type", "VNI",
     "EnableIPv6", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "MTU"]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["10.1.0.0/16", "10.1.2.0/23", "10.1.3.0", ZERO, "vxlan", "udp", "host-gw", "fc00::/48", "fc00::"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
)


@given(st.dictionaries(KEYS, VALUES, max_size=6).map(json.dumps) | st.text(max_size=60))
def test_any_text_is_a_usable_config_or_a_config_error(text: str) -> None:
    try:
        config = parse_network_config(text, SOURCE)
    except ConfigError:
        return
    assert config.pools
    for pool in config.pools:
        size = 2 ** (pool.family.bits - pool.subnet_len)
        assert pool.network.prefixlen + 2 <= pool.subnet_len <= pool.family.bits - 2
        assert int(pool.subnet_min) <= int(pool.subnet_max)
        for address in (pool.subnet_min, pool.subnet_max):
            assert address in pool.network
            assert int(address) % size == 0
            assert pool.offers(pool.family.network(int(address), pool.subnet_len))
