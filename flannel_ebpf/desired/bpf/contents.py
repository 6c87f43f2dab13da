"""What the BPF side should hold: map entries, constants and the hooks that programs stand on."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flannel_ebpf.base.config import HostGwConfig, NetworkConfig, VxlanConfig
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.base.kept import Kept
from flannel_ebpf.base.model import Mac, PodPort
from flannel_ebpf.contract import abi, enums
from flannel_ebpf.desired.backends.peer import Peer, Stack
from flannel_ebpf.desired.bpf.levels import Levels
from flannel_ebpf.desired.objects import Attach, Direction, Filter, HeadroomPort, MapEntry, XdpMode

_LARGEST = 0xFFFF
"""No packet is larger (RFC 791; IPv6: by 40), although a device's MTU may be: lo has 65536."""

Slots = Mapping[Network, int]


def carried(peers: Iterable[Peer], family: Family) -> Iterator[Peer]:
    """Return those of the peers that the programs of one family know."""
    return (peer for peer in peers if family_of(peer.subnet) is family)


def peer_len(peers: Iterable[Peer], subnet_len: int) -> int:
    """Return the prefix length of subnets in fl_peers: the network's SubnetLen, or what most have.

    A lease of another length changes the maps for nobody else: the kernel carries its packets.
    """
    lengths = Counter[int]()
    for peer in peers:
        if peer.subnet.prefixlen == subnet_len:  # the first has it nearly always
            return subnet_len
        lengths[peer.subnet.prefixlen] += 1
    return max(lengths, key=lambda length: (lengths[length], length), default=subnet_len)


def of_length(peers: Iterable[Peer], length: int) -> list[Peer]:
    """Return the peers that fl_peers has."""
    return [peer for peer in peers if peer.subnet.prefixlen == length]


def assign_slots(
    peers: Sequence[Peer], taken: Slots, size: int, others: Iterable[int] = ()
) -> dict[Network, int]:
    """Return each peer's index in fl_peer_stats: the one it has, else the lowest free; 0 when none is left.

    `others` are indexes that peers beside these have. Slot 0 is nobody's: traffic of peers past `size` is
    carried but not told apart.
    """
    slots = {peer.subnet: taken[peer.subnet] for peer in peers if taken.get(peer.subnet)}
    used = {*slots.values(), *others}
    free = (slot for slot in range(1, size) if slot not in used)
    for peer in peers:
        if peer.subnet not in slots:
            slots[peer.subnet] = next(free, 0)
    return slots


def peer_entries(peers: Sequence[Peer], slots: Slots) -> list[MapEntry]:
    """Return fl_peers for those with a slot, and fl_vteps, which has the last of a member's subnets."""
    pairs = [(peer.subnet in slots, *_peer_entries(peer, slots.get(peer.subnet, 0))) for peer in peers]
    members = {vtep.map_key: vtep for _, _, vtep in pairs}
    return [*(entry for here, entry, _ in pairs if here), *members.values()]


@Kept  # packing 5,000 anew takes 75 ms, finding them 10
def _peer_entries(peer: Peer, slot: int) -> tuple[MapEntry, MapEntry]:
    subnet = abi.pack_subnet(peer.subnet)
    flags = enums.PeerFlag(enums.PeerFlag.ON_LINK * peer.on_link | enums.PeerFlag.BPF * peer.bpf)
    value = abi.Peer(
        public_ip=peer.public_ip,
        vtep_mac=peer.vtep_mac or abi.NO_MAC,
        mode=peer.mode,
        flags=flags,
        mtu=min(peer.mtu, _LARGEST),
        slot=slot,
    )
    member = abi.AddrKey(addr=peer.public_ip).pack()
    return MapEntry("fl_peers", subnet, value.pack()), MapEntry("fl_vteps", member, subnet)


def aside(entries: Iterable[MapEntry]) -> list[MapEntry]:
    """Return fl_peers' entries among these with no way to the peer but the kernel's."""
    peers = ((entry, abi.Peer.unpack(entry.value)) for entry in entries if entry.map == "fl_peers")
    none = enums.Mode.NONE
    return [MapEntry(entry.map, entry.map_key, replace(peer, mode=none).pack()) for entry, peer in peers]


def slots_in(entries: Iterable[MapEntry], peers: Iterable[Peer]) -> dict[Network, int]:
    """Return the counters' slots that these peers have in fl_peers now: they outlive the daemon."""
    values = {entry.map_key: entry.value for entry in entries if entry.map == "fl_peers"}
    found = ((peer.subnet, values.get(abi.pack_subnet(peer.subnet))) for peer in peers)
    return {subnet: abi.slot_in(value) for subnet, value in found if value}


def port_entries(ports: Sequence[PodPort]) -> list[MapEntry]:
    """Return fl_ports: what the programs must know of each pod's veth."""
    return [MapEntry("fl_ports", abi.pack_u32(port.ifindex), _flags(port).pack()) for port in ports]


def pod_entries(
    learned: Iterable[MapEntry],
    ports: Sequence[PodPort],
    macs: Mapping[Address, Mac | None],
    levels: Levels,
) -> list[MapEntry]:
    """Return which learned entries of fl_pods stay: those whose veth lives, with their present flags.

    `macs` is what ARP says of addresses. An entry that it contradicts goes: the address has moved to another
    pod, whose announcement came before our program stood on its veth.
    """
    by_index = {port.ifindex: port for port in ports}
    kept = []
    for entry in learned:
        if entry.map != "fl_pods":
            continue
        pod = abi.Pod.unpack(entry.value)
        address = abi.AddrKey.unpack(entry.map_key).addr
        port = by_index.get(pod.ifindex)
        if port and macs.get(address, pod.mac) == pod.mac:
            flags = _flags(port).flags | levels.of(address)
            kept.append(MapEntry("fl_pods", entry.map_key, replace(pod, flags=flags).pack()))
    return kept


def node_entries(addresses: Mapping[Address, int]) -> list[MapEntry]:
    """Return fl_pods' entries of the node's own addresses (with their devices): no pod may send from one."""
    return [
        MapEntry(
            "fl_pods",
            abi.AddrKey(address).pack(),
            abi.Pod(ifindex, abi.NO_MAC, abi.NO_MAC, enums.PodFlag.NODE).pack(),
        )
        for address, ifindex in addresses.items()
    ]


def _flags(port: PodPort) -> abi.Port:
    return abi.Port(flags=enums.PodFlag.SHAPED if port.shaped else enums.PodFlag(0))


def filters(
    ports: Sequence[PodPort],
    uplink: int,
    overlay: int,
    programs: Mapping[str, int],
    via: Attach,
) -> list[Filter]:
    """Return which program stands on which hook.

    `uplink` and `overlay` are ifindexes (`overlay` 0: no such device), `programs` the ids of the pinned
    programs by name. A shaped pod gets none: its packets must meet the qdisc.
    """

    def stand(ifindex: int, direction: Direction, program: str) -> Filter:
        return Filter(ifindex, direction, program, programs[program], via)

    found = []
    for ifindex in (uplink, overlay):
        if ifindex:
            found.append(stand(ifindex, "ingress", "fl_from_peer"))
            found.append(stand(ifindex, "egress", "fl_to_peer"))
    for port in ports:
        if not port.shaped:
            found.append(stand(port.ifindex, "ingress", "fl_from_pod"))
            found.append(stand(port.ifindex, "egress", "fl_to_pod"))
    return found


def headroom_ports(config: NetworkConfig, ports: Sequence[PodPort]) -> list[HeadroomPort]:
    """Return one port for each of the pods' bridges; none for host-gw, which adds no header."""
    if isinstance(config.backend, HostGwConfig):
        return []
    return [HeadroomPort(headroom_name(bridge), bridge) for bridge in {port.bridge for port in ports} - {0}]


def headroom_name(bridge: int) -> str:
    """Return the name of a bridge's port: `flannel-h` and its index to base 36, at most 15 characters.

    Every pod's veth takes an index, so that there may be millions (IFNAMSIZ is 16, with the end).
    """
    digits = ""
    while bridge:
        bridge, digit = divmod(bridge, 36)
        digits = string.printable[digit] + digits
    return f"flannel-h{digits}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose about the datapath, and what this host can do.

    `sport_min`, `sport_count` and `ttl` are the ports that the kernel takes of
    net.ipv4.ip_local_port_range for its own tunnels, and ip_default_ttl (IPv6: the uplink's hop_limit): outer
    headers must not tell our packets from the kernel's. `attach` is
    how programs come onto tc hooks, `xdp_modes` are tried in order. `headroom`: the pods' bridges get a
    port that gives packets room for those headers. `stand_aside`: seconds that the programs go on without a
    sign of life, 0: for ever.
    """

    fastpath: enums.Fastpath
    source_check: enums.Check
    revalidate_ms: int
    caps: enums.Cap
    sport_min: int
    sport_count: int
    ttl: int
    attach: Attach
    xdp_modes: tuple[XdpMode, ...] = ()
    headroom: bool = False
    stand_aside: float = 0.0
    outer_checksum: bool = False


def constants(stack: Stack, peers: Sequence[Peer], settings: Settings) -> abi.Config:
    """Return fl_config: all that the programs know of this node, fixed when they are loaded."""
    network, subnet, backend = stack.network, stack.subnet, stack.config.backend
    return abi.Config(
        public_ip=stack.public_ip,
        network=network.network_address,
        network_mask=network.netmask,
        subnet=subnet.network_address,
        subnet_mask=subnet.netmask,
        vtep_mac=stack.vtep_mac or abi.NO_MAC,
        port=0 if isinstance(backend, HostGwConfig) else backend.port,
        sport_min=settings.sport_min,
        sport_count=settings.sport_count,
        vni=backend.vni if isinstance(backend, VxlanConfig) else 0,
        uplink=stack.uplink.ifindex,
        peer_len=peer_len(peers, stack.pool.subnet_len),
        revalidate_ms=settings.revalidate_ms,
        caps=settings.caps,
        backend=_MODES[stack.config.backend_type],
        fastpath=settings.fastpath,
        source_check=settings.source_check,
        direct_routing=isinstance(backend, VxlanConfig) and backend.direct_routing,
        ttl=settings.ttl,
        learning=isinstance(backend, VxlanConfig) and backend.learning,
        outer_checksum=settings.outer_checksum,
    )


_MODES = {"vxlan": enums.Mode.VXLAN, "host-gw": enums.Mode.DIRECT, "udp": enums.Mode.UDP}
