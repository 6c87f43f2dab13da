"""Etcd's side of flannel's contract: lease keys and values, byte for byte (pkg/subnet, pkg/lease).

Keys are `<prefix>/subnets/10.1.5.0-24`, in dual-stack clusters with `&fc00:0:5::-64` behind that, in those
of IPv6 alone `0.0.0.0-0&fc00:0:5::-64`. flannel takes any path that ends so, here a key beside `subnets/` is
none of the cluster's. Values are compact JSON in Go's field order. What is read is as tolerant as Go's
encoding/json: field names match in any case, a repeated field's last value counts, unknown fields are kept
aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from flannel_ebpf.base.errors import InvalidLease
from flannel_ebpf.base.family import Address, Family, Network, family_of, in_order
from flannel_ebpf.base.model import Lease, LeasePart, Skipped

MAX_VALUE = 64 << 10
"""Octets of a lease's value; flanneld's have 150, and etcd takes 1.5 MiB."""

MAX_LENGTH = {Family.V4: 31, Family.V6: 127}
"""flannel reads lengths as numbers of 5 and of 7 bits."""

_SUBNET = re.compile(r"/subnets/(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?\Z", re.ASCII)
_NO_IPV4 = "0.0.0.0-0"
"""What stands for the IPv4 subnet where there is none but one of IPv6."""

_PUBLIC_IP = {Family.V4: "PublicIP", Family.V6: "PublicIPv6"}
_BACKEND_DATA = {Family.V4: "BackendData", Family.V6: "BackendV6Data"}
_MISSING = {Family.V4: str(Family.V4.unspecified), Family.V6: None}
"""How flannel writes a public address that is not set."""
_BACKEND_TYPE = "BackendType"
_NUMBERS = {str(number): number for number in range(256)}
"""What stands between the dots of an address."""
_NOTHING: Mapping[str, Any] = {}
"""The `extra` of nearly all leases."""
_FIELDS = {name.casefold(): name for name in (*_PUBLIC_IP.values(), _BACKEND_TYPE, *_BACKEND_DATA.values())}


@dataclass(frozen=True, slots=True)
class Item:
    """One key as etcd returned it; of a value that is too large for a lease, the beginning is enough."""

    key: str
    value: bytes
    etcd_lease: int
    mod_revision: int
    create_revision: int


def join(prefix: str, *parts: str) -> str:
    """Return the key `<prefix>/<parts...>` as Go's path.Join spells it: single slashes, none at the end."""
    root = "/" if prefix.startswith("/") else ""
    return root + "/".join(part for part in [*prefix.split("/"), *parts] if part)


def config_key(prefix: str) -> str:
    """Return the key of the network config."""
    return join(prefix, "config")


def subnets_prefix(prefix: str) -> str:
    """Return what every lease key starts with; flannel lists it without the slash, and finds more."""
    return join(prefix, "subnets") + "/"


def subnet_key(prefix: str, subnets: Iterable[Network]) -> str:
    """Return the key of a lease of these subnets, of which each family has at most one."""
    written = {family_of(subnet): f"{subnet.network_address}-{subnet.prefixlen}" for subnet in subnets}
    words = [
        written.get(Family.V4, _NO_IPV4),
        *(written[family] for family in written if family is Family.V6),
    ]
    return join(prefix, "subnets", "&".join(words))


def encode_lease(lease: Lease) -> bytes:
    """Return the value of a lease: what flanneld writes for it, with our unknown fields after that.

    BackendType and the data are left out when empty. ASCII only; that is what flanneld's own fields are.
    """
    extra = dict(lease.extra)
    fields: dict[str, Any] = {}
    for family, name in _PUBLIC_IP.items():
        part = lease.part(family)
        known = str(part.public_ip) if part and (int(part.public_ip) or family is Family.V4) else None
        fields[name] = extra.pop(name, _MISSING[family]) if known is None else known
    if lease.parts[0].backend_type:
        fields[_BACKEND_TYPE] = lease.parts[0].backend_type
    for family, name in _BACKEND_DATA.items():
        part = lease.part(family)
        data = part.backend_data if part else extra.pop(name, None)
        if data is not None:
            fields[name] = data
    return json.dumps(fields | extra, separators=(",", ":")).encode()


def parse_lease(
    key: str, value: bytes, etcd_lease: int = 0, mod_revision: int = 0, create_revision: int = 0
) -> Lease:
    """Return the lease of one key and value.

    A public address that is missing reads as the unspecified one, as in flannel. A PublicIPv6 that is none
    spoils that family of the lease alone; for such a PublicIP flannel refuses the lease, and so does this.
    What the value says of a family that the key does not name is kept, undecoded, in `extra`. Raises
    InvalidLease.
    """
    subnets = _parse_key(key)
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, content in _parse_object(key, value).items():
        known = _FIELDS.get(name.casefold())
        if known is None:
            extra[name] = content
        else:
            fields[known] = content
    ipv4 = _public_ipv4(key, fields)
    backend_type = fields.pop(_BACKEND_TYPE, None)
    if not isinstance(backend_type, str | None):
        raise InvalidLease(f"{key}: {_BACKEND_TYPE} is {backend_type!r}: a string is needed")
    parts = tuple(_part(subnet, backend_type or "", fields, ipv4) for subnet in subnets)
    extra |= {name: content for name, content in fields.items() if content not in _MISSING.values()}
    return Lease(parts, extra or _NOTHING, etcd_lease, mod_revision, create_revision, key)


def _part(subnet: Network, backend_type: str, fields: dict[str, Any], ipv4: Address) -> LeasePart:
    """Take one family's fields out of `fields`; of IPv4 the address has been read."""
    family = family_of(subnet)
    name = _PUBLIC_IP[family]
    told = fields.pop(name, None)
    if family is Family.V4:
        address: Address | None = ipv4
    else:
        address = family.unspecified if told is None else _address(family, told)
    return LeasePart(
        subnet,
        family.unspecified if address is None else address,
        backend_type,
        fields.pop(_BACKEND_DATA[family], None),
        f"{name} is {told!r}: an {family} address is needed" if address is None else "",
    )


def _public_ipv4(key: str, fields: dict[str, Any]) -> Address:
    """Return what flannel refuses a lease without, be it one of IPv6 alone; raises InvalidLease."""
    told = fields.get(_PUBLIC_IP[Family.V4], _MISSING[Family.V4])
    address = _address(Family.V4, told)
    if address is None:
        raise InvalidLease(f"{key}: {_PUBLIC_IP[Family.V4]} is {told!r}: an {Family.V4} address is needed")
    return address


def parse_item(item: Item) -> Lease:
    """Return the lease that `item` is; raises InvalidLease."""
    return parse_lease(item.key, item.value, item.etcd_lease, item.mod_revision, item.create_revision)


class Parser:
    """Parses leases and knows those of the last snapshot: one not written since is the same object.

    Of what etcd held it keeps a hash of 64 bits: the bytes themselves take as much memory as the lease.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Lease]] = {}

    def lease(self, item: Item) -> Lease:
        """Return the lease that `item` is; raises InvalidLease."""
        told = hash(item)
        before, known = self._known.get(item.key, (0, None))
        if known is None or before != told:
            known = parse_item(item)
            self._known[item.key] = told, known
        return known

    def keep(self, items: Iterable[Item]) -> None:
        """Forget all leases but these."""
        self._known = {item.key: self._known[item.key] for item in items if item.key in self._known}


def parse_snapshot(
    items: Iterable[Item], parse: Callable[[Item], Lease] = parse_item
) -> tuple[tuple[Lease, ...], tuple[Skipped, ...]]:
    """Return the leases among `items`, ordered by subnet, and everything else with the reason.

    Two keys can name one subnet (`10.1.5.0-24&fc00::-64`, `10.1.5.0-24&fc01::-64`), because etcd knows but
    whole keys. The lease that was there first has it, as its node does not give way; of one node's two, the
    one written last. The other lease is left with what else it names.
    """
    parsed: list[Lease] = []
    skipped: list[Skipped] = []
    for item in items:
        try:
            parsed.append(parse(item))
        except InvalidLease as error:
            skipped.append(Skipped(item.key, str(error)))
    holders = _holders(parsed)
    leases = []
    for lease in parsed:
        lost = [subnet for subnet in lease.subnets if holders[subnet] is not lease]
        for subnet in lost:
            skipped.append(Skipped(lease.key, f"{subnet} is that of {holders[subnet].key}"))
        if not lost:
            leases.append(lease)
        elif len(lost) < len(lease.parts):
            leases.append(replace(lease, parts=tuple(it for it in lease.parts if it.subnet not in lost)))
    return tuple(sorted(leases, key=lambda lease: in_order(lease.parts[0].subnet))), tuple(skipped)


def _holders(leases: Iterable[Lease]) -> dict[Network, Lease]:
    holders: dict[Network, Lease] = {}
    for lease in sorted(leases, key=lambda lease: lease.create_revision):
        for subnet in lease.subnets:
            first = holders.setdefault(subnet, lease)
            if first.held_by(lease.claim) and first.mod_revision < lease.mod_revision:
                holders[subnet] = lease
    return holders


@dataclass(frozen=True, slots=True)
class Index:
    """A snapshot's leases by key, and the key under which each subnet stands, also one that is no lease."""

    leases: dict[str, Lease]
    holders: dict[Network, str]

    @classmethod
    def of(cls, leases: Iterable[Lease], skipped: Iterable[Skipped]) -> Index | None:
        """Return the index of a snapshot, None when a subnet stands under more than one key."""
        by_key = {lease.key: lease for lease in leases}
        places = [(part.subnet, lease.key) for lease in by_key.values() for part in lease.parts]
        for one in skipped:
            with suppress(InvalidLease):
                places += [(subnet, one.key) for subnet in _parse_key(one.key)]
        holders = dict(places)
        return cls(by_key, holders) if len(holders) == len(places) else None

    def merged(
        self,
        items: Iterable[Item],
        parse: Callable[[Item], Lease] = parse_item,
        gone: Iterable[str] = (),
    ) -> Index | None:
        """Return the index with `items` written since, and without the keys `gone` before those were.

        None when that takes all items, see parse_snapshot: when one of `items` is no lease, or a subnet
        stands under more than one key. What stays costs a copy, and no look at each.
        """
        leases, holders = dict(self.leases), dict(self.holders)
        for key in gone:
            lost = leases.pop(key, None)
            for subnet in lost.subnets if lost else ():
                holders.pop(subnet, None)
        for item in items:
            try:
                lease = parse(item)
            except InvalidLease:
                return None
            before = leases.get(item.key)
            for subnet in before.subnets if before else ():
                holders.pop(subnet, None)
            if any(holders.setdefault(subnet, item.key) != item.key for subnet in lease.subnets):
                return None
            leases[item.key] = lease
        return Index(leases, holders)


def _parse_key(key: str) -> tuple[Network, ...]:
    match = _SUBNET.search(key)
    if match is None:
        raise InvalidLease(f"{key}: not a lease key: it should end in a subnet such as /10.1.5.0-24")
    try:
        return tuple(_subnets(match))
    except ValueError as error:
        raise InvalidLease(f"{key}: {error}") from None


def _subnets(match: re.Match[str]) -> Iterator[Network]:
    address, length, address6, length6 = match.groups()
    if address6 is None or f"{address}-{length}" != _NO_IPV4:
        yield _subnet(Family.V4.network(_octets(address), int(length)))
    if address6 is not None:
        yield _subnet(Family.V6.network(address6, int(length6), strict=False))


def _subnet(network: Network) -> Network:
    if network.prefixlen > MAX_LENGTH[family_of(network)]:
        raise ValueError("the subnet is a single address")
    return network


def _parse_object(key: str, value: bytes) -> Mapping[str, Any]:
    if len(value) > MAX_VALUE:
        raise InvalidLease(f"{key}: the value has more than {MAX_VALUE} octets")
    try:
        parsed = _JSON.decode(value.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise InvalidLease(f"{key}: the value is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidLease(f"{key}: the value is not a JSON object")
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def _address(family: Family, told: object) -> Address | None:
    try:
        return family.address(_octets(told)) if isinstance(told, str) and "%" not in told else None
    except ValueError:
        return None


def _octets(text: str) -> bytes | str:
    """Return an IPv4 address as bytes, in a fifth of the time that ipaddress takes; what is none stays."""
    numbers = text.split(".")
    if len(numbers) == 4 and all(number in _NUMBERS for number in numbers):
        return bytes(map(_NUMBERS.__getitem__, numbers))
    return text
