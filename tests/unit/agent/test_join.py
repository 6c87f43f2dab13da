"""How a node joins: its patience, the network config, its addresses, and the lease that it asks for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.agent import join
from flannel_ebpf.agent.wake import Stop
from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.errors import ConfigError, EtcdUnavailable, OutOfSubnets, UnknownBackend
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Claim, Lease, LeasePart, Mac, Uplink
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Stack
from flannel_ebpf.kernel.netlink.routes import KernelRoute
from flannel_ebpf.kernel.seen import Seen

PUBLIC = IPv4Address("192.168.64.7")
UPLINK = Uplink(2, "eth0", PUBLIC, 24, 1500, Mac(bytes(6)))
MAC = Mac(b"\2\0\0\0\0\7")
PUBLIC_V6 = IPv6Address("2001:db8::7")
UPLINK_V6 = replace(UPLINK, ip=PUBLIC_V6, prefix_len=64)
DUAL = '"EnableIPv6":true,"IPv6Network":"fc00::/48",'


def config(backend: str = "vxlan", more: str = "") -> NetworkConfig:
    return parse_network_config(f'{{"Network":"10.1.0.0/16",{more}"Backend":{{"Type":"{backend}"}}}}', "test")


class Attempts:
    """Fails with each of these in turn, then answers; `stop` is set when nothing is left."""

    def __init__(self, stop: Stop, *errors: Exception, answers: bool = True) -> None:
        self._stop, self._errors, self._answers = stop, list(errors), answers
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)
        if not self._answers:
            self._stop.set()
            raise EtcdUnavailable("the last one")
        return "done"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(Stop, "wait", lambda _self, seconds: waited.append(seconds))
    return waited


def test_what_fails_is_tried_again_and_each_reason_said_once(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    gone, refused = EtcdUnavailable("nobody answers"), OutOfSubnets("none is free")
    attempts = Attempts(
        Stop(), gone, gone, refused, ConfigError("etcd key /x/config", None, "a config"), gone
    )
    assert join.persist(attempts, "taking a lease", Stop()) == "done"
    assert waits == [join.RETRY] * 5
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == [
        "nobody answers",
        "none is free",
        "etcd key /x/config",
        "nobody answers",
    ]
    assert all(line.startswith("taking a lease, trying again every 1 s") for line in said)


def test_a_backend_that_is_none_of_ours_is_not_waited_for(waits: list[float]) -> None:
    attempts = Attempts(Stop(), UnknownBackend("Backend.Type", "ipsec", "vxlan"))
    with pytest.raises(UnknownBackend):
        join.persist(attempts, "reading", Stop())
    assert (attempts.count, waits) == (1, [])


def test_who_is_told_to_stop_stops_waiting_and_says_nothing(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    stop = Stop()
    attempts = Attempts(stop, answers=False)
    with pytest.raises(join.Stopped, match="stopped while reading"):
        join.persist(attempts, "reading", stop)
    with pytest.raises(join.Stopped):
        join.persist(attempts, "reading", stop)
    assert attempts.count == 1
    assert not caplog.records


@dataclass
class Source:
    """A source of leases; it gives a subnet that was asked for again, or 10.1.9.0/24."""

    config: NetworkConfig | None = None
    parts: Sequence[LeasePart] = ()
    told: dict[Family, Address] = field(default_factory=dict)
    reused: bool = False
    claim: Claim | None = None
    previous: Sequence[Network] = ()
    asked_for: Collection[Address] = ()

    def network_config(self) -> NetworkConfig | None:
        return self.config

    def addresses(self) -> dict[Family, Address]:
        return self.told

    def former(self, addresses: Collection[Address]) -> Sequence[LeasePart]:
        self.asked_for = addresses
        return self.parts

    def acquire(self, _config: NetworkConfig, claim: Claim, previous: Sequence[Network]) -> Lease:
        self.claim, self.previous = claim, previous
        free = [*previous, *map(ip_network, ("10.1.9.0/24", "fc00:0:0:9::/64"))]
        families = [one.public_ip.version for one in claim.endpoints]
        return Lease.of([next(it for it in free if it.version == family) for family in families], claim)


def test_the_address_that_the_source_tells_wins_over_the_flag() -> None:
    flag, told = IPv4Address("203.0.113.7"), IPv4Address("203.0.113.8")
    options = Options(public_ip=flag)
    assert join.with_told_addresses(options, cast(Any, Source())) == options
    source = Source(told={Family.V4: told})
    assert join.with_told_addresses(options, cast(Any, source)).public_ips == {Family.V4: told}
    source = Source(told={Family.V6: PUBLIC_V6})
    both = {Family.V4: flag, Family.V6: PUBLIC_V6}
    assert join.with_told_addresses(options, cast(Any, source)).public_ips == both


@pytest.mark.parametrize(
    ("backend", "given", "chosen"),
    [
        ("vxlan", None, PUBLIC),
        ("vxlan", IPv4Address("203.0.113.7"), IPv4Address("203.0.113.7")),
        ("host-gw", PUBLIC, PUBLIC),
        ("host-gw", IPv4Address("203.0.113.7"), None),
    ],
)
def test_the_public_address_is_the_flag_s_or_the_uplink_s_and_host_gw_crosses_no_nat(
    monkeypatch: pytest.MonkeyPatch, backend: str, given: IPv4Address | None, chosen: IPv4Address | None
) -> None:
    monkeypatch.setattr(join, "find_uplinks", lambda *_: (UPLINK,))
    options = Options(public_ip=given)
    if chosen is None:
        with pytest.raises(
            ConfigError, match=r"--public-ip.*203\.0\.113\.7.*eth0's own address 192\.168\.64\.7"
        ):
            join.choose_uplinks(seen(), options, config(backend))
    else:
        assert join.choose_uplinks(seen(), options, config(backend)) == [(UPLINK, chosen)]


def test_each_family_has_its_own_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "find_uplinks", lambda *_: (UPLINK, UPLINK_V6))
    nat = IPv6Address("2001:db8::99")
    options = Options(public_ipv6=nat)
    assert join.choose_uplinks(seen(), options, config(more=DUAL)) == [(UPLINK, PUBLIC), (UPLINK_V6, nat)]
    with pytest.raises(ConfigError, match=r"--public-ipv6.*2001:db8::99.*own address 2001:db8::7"):
        join.choose_uplinks(seen(), options, config("host-gw", DUAL))


def seen(*routes: KernelRoute) -> Seen:
    return cast(Seen, SimpleNamespace(routes=lambda _family: routes))


@pytest.mark.parametrize(
    ("network", "gateway", "refused"),
    [
        ('"Network": "10.1.0.0/16"', "192.168.64.254", ""),
        ('"Network": "192.168.0.0/16"', "10.9.0.1", "192.168.64.7, its address"),
        ('"Network": "192.168.64.128/25", "SubnetLen": 28', "192.168.64.254", "192.168.64.254, its gateway"),
        ('"Network": "192.168.0.0/16", "SubnetMin": "192.168.65.0"', "192.168.64.254", ""),
        ('"Network": "192.168.0.0/16", "SubnetMax": "192.168.63.0"', "192.168.64.254", ""),
        ('"Network": "192.168.64.0/18"', "192.168.64.254", ""),  # the first subnet is nobody's
    ],
)
def test_a_network_that_could_take_the_uplinks_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, network: str, gateway: str, refused: str
) -> None:
    monkeypatch.setattr(join, "find_uplinks", lambda *_: (UPLINK,))
    given = parse_network_config(f'{{{network}, "Backend": {{"Type": "vxlan"}}}}', "test")
    default = KernelRoute((0, 0), ip_address(gateway).packed, 2, 3, 0, 1, onlink=False, plain=True)
    if refused:
        with pytest.raises(ConfigError, match=f"apart from eth0's, or .* leave out {refused}"):
            join.choose_uplinks(seen(default), Options(), given)
    else:
        assert join.choose_uplinks(seen(default), Options(), given) == [(UPLINK, PUBLIC)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[Mac]:
    """What flannel.1 has for an address, if anything; a test fills it in."""
    macs: list[Mac] = []

    class Netlink:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(join, "RouteSocket", Netlink)
    monkeypatch.setattr(join, "find_link", lambda _netlink, name: name if macs else None)
    monkeypatch.setattr(join, "vxlan_link", lambda _link: SimpleNamespace(mac=macs[0]))
    return macs


def part(mac: str, kind: str = "vxlan", subnet: str = "10.1.5.0/24") -> LeasePart:
    return LeasePart(ip_network(subnet), PUBLIC, kind, {"VNI": 1, "VtepMAC": mac})


def test_the_vtep_s_address_survives_in_the_lease_then_the_device_then_the_host(device: list[Mac]) -> None:
    ours, others = "02:00:00:00:00:55", "02:00:00:00:00:66"
    device.append(MAC)
    former = (part(others, "host-gw"), part(others, subnet="fc00::/64"), part(ours))
    assert join.vtep_mac(config(), PUBLIC, former) == Mac.parse(ours)
    assert join.vtep_mac(config(), PUBLIC, former[:2]) == MAC
    device.clear()
    derived = join.vtep_mac(config(), PUBLIC, ())
    assert derived == join.vtep_mac(config(), PUBLIC, ())
    assert derived != join.vtep_mac(config(), IPv4Address("192.168.64.8"), ())
    assert derived is not None
    assert int(str(derived)[:2], 16) & 3 == 2, "unicast, locally administered"


def test_a_lease_of_ours_with_a_broken_address_is_told_of_and_passed_over(
    device: list[Mac], caplog: pytest.LogCaptureFixture
) -> None:
    device.append(MAC)
    assert join.vtep_mac(config(), PUBLIC, (part("zz"),)) == MAC
    assert "our own lease is not used for the VTEP address" in caplog.text


@pytest.mark.parametrize("backend", ["host-gw", "udp"])
def test_only_vxlan_has_a_vtep(backend: str) -> None:
    assert join.vtep_mac(config(backend), PUBLIC, (part("02:00:00:00:00:55"),)) is None


def take(source: Source, options: Options, backend: str = "vxlan") -> Stack:
    source.parts = (part(str(MAC)),)
    node = join.take_lease(cast(Any, source), options, config(backend), [(UPLINK, PUBLIC)])
    assert source.asked_for == {PUBLIC}
    return node.stacks[0]


def test_a_lease_says_how_to_reach_the_node_and_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\n")
    source = Source(reused=True)
    stack = take(source, Options(subnet_file=env))
    assert (stack.subnet, stack.public_ip, stack.uplink, stack.vtep_mac) == (
        ip_network("10.1.5.0/24"), PUBLIC, UPLINK, MAC,
    )  # fmt: skip
    assert source.claim is not None
    assert source.claim.backend_type == "vxlan"
    assert [it.backend_data for it in source.claim.endpoints] == [{"VNI": 1, "VtepMAC": str(MAC)}]
    assert "subnet 10.1.5.0/24 kept for public IP 192.168.64.7 on eth0" in caplog.text


def test_a_node_of_both_families_has_a_vtep_address_for_each(
    tmp_path: Path, device: list[Mac], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_IPV6_SUBNET=fc00:0:0:5::1/64\n")
    other = "02:00:00:00:00:66"
    source = Source(parts=(part(str(MAC)), part(other, subnet="fc00:0:0:5::/64")))
    ways: list[join.Way] = [(UPLINK, PUBLIC), (UPLINK_V6, PUBLIC_V6)]
    node = join.take_lease(cast(Any, source), Options(subnet_file=env), config(more=DUAL), ways)
    assert [str(it.subnet) for it in node.stacks] == ["10.1.5.0/24", "fc00:0:0:5::/64"]
    assert [it.vtep_mac for it in node.stacks] == [MAC, Mac.parse(other)]
    assert [it.uplink for it in node.stacks] == [UPLINK, UPLINK_V6]
    assert source.claim is not None
    assert [it.backend_data["VtepMAC"] for it in source.claim.endpoints] == [str(MAC), other]
    said = "for public IP 192.168.64.7 and 2001:db8::7 on eth0"
    assert f"subnet 10.1.5.0/24 and fc00:0:0:5::/64 acquired {said}" in caplog.text
    assert not device


def test_a_subnet_env_that_says_nothing_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_SUBNET=nonsense\n")
    source = Source()
    assert take(source, Options(subnet_file=env)).subnet == ip_network("10.1.9.0/24")
    assert not source.previous
    assert f"{env} is ignored" in caplog.text
    assert "subnet 10.1.9.0/24 acquired" in caplog.text


@pytest.mark.parametrize(
    ("options", "pinned", "says_so"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"datapath": "kernel"}, True, False),
        ({"fastpath": "off"}, True, False),
    ],
)
def test_a_udp_lease_says_from_the_start_that_programs_stand(
    tmp_path: Path, options: dict[str, Any], pinned: bool, says_so: bool
) -> None:
    """Peers send what only programs can take; so they must not hear of them before they are there."""
    if pinned:
        (tmp_path / "10-1-0-0-16").mkdir()
    source = Source()
    take(source, Options(subnet_file=tmp_path / "none", bpf_pin_root=tmp_path, **options), "udp")
    assert source.claim is not None
    assert (source.claim.endpoints[0].backend_data == {"Datapath": "bpf"}) == says_so
