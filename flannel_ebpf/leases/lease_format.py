"""Etcd's side of flannel's contract: lease keys and values, byte for byte (pkg/subnet, pkg/lease).

Keys are `<prefix>/subnets/10.1.5.0-24`, with `&fc00::-64` appended in dual-stack clusters; flannel takes any
path that ends so, here a key beside `subnets/` is none of the cluster's. Values are compact
JSON in Go's field order. What is read is as tolerant as Go's encoding/json: field names match in any
case, a repeated field's last value counts, unknown fields are kept aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network
from typing import Any, NoReturn

from flannel_ebpf.base.errors import InvalidLease
from flannel_ebpf.base.model import Lease, Skipped, in_order

MAX_LENGTH = 31
"""flannel reads the IPv4 length as a 5-bit number."""
MAX_LENGTH6 = 127

_SUBNET = re.compile(r"/subnets/(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?\Z", re.ASCII)
_FIELDS = {
    name.casefold(): name
    for name in ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
}


@dataclass(frozen=True, slots=True)
class Item:
    """One key as etcd returned it."""

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
    """Return what every lease key starts with; no slash at the end, as flannel lists it."""
    return join(prefix, "subnets")


def subnet_key(prefix: str, subnet: IPv4Network) -> str:
    """Return the lease key of an IPv4 subnet."""
    return join(prefix, "subnets", f"{subnet.network_address}-{subnet.prefixlen}")


def encode_lease(lease: Lease) -> bytes:
    """Return the value of a lease: what flanneld writes for it, with our unknown fields after that.

    BackendType and BackendData are left out when empty. ASCII only; that is what flanneld's own fields are.
    """
    extra = dict(lease.extra)
    fields: dict[str, Any] = {"PublicIP": str(lease.public_ip), "PublicIPv6": extra.pop("PublicIPv6", None)}
    if lease.backend_type:
        fields["BackendType"] = lease.backend_type
    if lease.backend_data is not None:
        fields["BackendData"] = lease.backend_data
    if "BackendV6Data" in extra:
        fields["BackendV6Data"] = extra.pop("BackendV6Data")
    return json.dumps(fields | extra, separators=(",", ":")).encode()


@lru_cache(maxsize=16384)
def parse_lease(
    key: str, value: bytes, etcd_lease: int = 0, mod_revision: int = 0, create_revision: int = 0
) -> Lease:
    """Return the lease of one key and value.

    A missing PublicIP reads as 0.0.0.0, as in flannel. The IPv6 half of a dual-stack lease ends up in
    `subnet6` and, undecoded, in `extra`. Cached, because a pass reads every lease and few have changed.
    Raises InvalidLease.
    """
    subnet, subnet6 = _parse_key(key)
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, content in _parse_object(key, value).items():
        known = _FIELDS.get(name.casefold())
        if known is None:
            extra[name] = content
        else:
            fields[known] = content
    public_ip = _public_ip(key, fields.get("PublicIP", "0.0.0.0"))  # noqa: S104 - flannel's value of a missing field
    backend_type = fields.get("BackendType")
    if not isinstance(backend_type, str | None):
        raise InvalidLease(f"{key}: BackendType is {backend_type!r}: a string is needed")
    extra |= {name: fields[name] for name in ("PublicIPv6", "BackendV6Data") if fields.get(name) is not None}
    return Lease(
        subnet=subnet,
        public_ip=public_ip,
        backend_type=backend_type or "",
        backend_data=fields.get("BackendData"),
        extra=extra,
        etcd_lease=etcd_lease,
        mod_revision=mod_revision,
        create_revision=create_revision,
        key=key,
        subnet6=subnet6,
    )


def parse_item(item: Item) -> Lease:
    """Return the lease that `item` is; raises InvalidLease."""
    return parse_lease(item.key, item.value, item.etcd_lease, item.mod_revision, item.create_revision)


def parse_snapshot(items: Iterable[Item]) -> tuple[tuple[Lease, ...], tuple[Skipped, ...]]:
    """Return the leases among `items`, ordered by subnet, and everything else with the reason.

    Two keys can name one IPv4 subnet (`10.1.5.0-24`, `10.1.5.0-24&fc00::-64`): the one written last counts.
    """
    leases: dict[IPv4Network, Lease] = {}
    skipped: list[Skipped] = []
    for item in sorted(items, key=lambda item: item.mod_revision):
        try:
            lease = parse_item(item)
        except InvalidLease as error:
            skipped.append(Skipped(item.key, str(error)))
            continue
        older = leases.get(lease.subnet)
        if older is not None:
            skipped.append(Skipped(older.key, f"{older.key}: {lease.key} names the same subnet and is newer"))
        leases[lease.subnet] = lease
    return tuple(leases[subnet] for subnet in sorted(leases, key=in_order)), tuple(skipped)


def merge(leases: Iterable[Lease], items: Iterable[Item]) -> tuple[Lease, ...] | None:
    """Return `leases` with `items` written since, None when that takes all items: see parse_snapshot.

    So it is when one of `items` is no lease, or names a subnet that stands under another key as well.
    """
    merged = {lease.key: lease for lease in leases}
    try:
        merged |= {item.key: parse_item(item) for item in items}
    except InvalidLease:
        return None
    distinct = {lease.subnet for lease in merged.values()}
    return tuple(merged.values()) if len(distinct) == len(merged) else None


def _parse_key(key: str) -> tuple[IPv4Network, IPv6Network | None]:
    match = _SUBNET.search(key)
    if match is None:
        raise InvalidLease(f"{key}: not a lease key: it should end in a subnet such as /10.1.5.0-24")
    address, length, address6, length6 = match.groups()
    try:
        subnet = IPv4Network((address, int(length)))
        subnet6 = IPv6Network((address6, int(length6)), strict=False) if address6 else None
    except ValueError as error:
        raise InvalidLease(f"{key}: {error}") from None
    if subnet.prefixlen > MAX_LENGTH or (subnet6 is not None and subnet6.prefixlen > MAX_LENGTH6):
        raise InvalidLease(f"{key}: the subnet is a single address")
    return subnet, subnet6


def _parse_object(key: str, value: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(value.decode(errors="replace"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidLease(f"{key}: the value is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidLease(f"{key}: the value is not a JSON object")
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _public_ip(key: str, text: object) -> IPv4Address:
    try:
        if isinstance(text, str):
            return IPv4Address(text)
    except AddressValueError:
        pass
    raise InvalidLease(f"{key}: PublicIP is {text!r}: an IPv4 address is needed")
