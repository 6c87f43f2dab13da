"""What the daemon last did, in a file for `status` and `down`; everything else is read from the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.family import Network
from flannel_ebpf.host.files import read_small, replace_file
from flannel_ebpf.host.places import networks_of, place

SUFFIX = ".status.json"

Content = dict[str, Any]

_SHAPE: Mapping[str, Any] = {
    "pid": int,
    "network": ip_network,
    "etcd_prefix": str,
    "backend": str,
    "overlay": str,
    "uplink": str,
    "public_ip": ip_address,
    "subnet": ip_network,
    "families": [{"network": ip_network, "overlay": str, "public_ip": ip_address, "subnet": ip_network}],
    "reservation": bool,
    "datapath": {"asked": str, "accelerated": bool, "attach": str, "why_not": str},
    "lacks": [str],
    "peers": {"wanted": int, "held": str},
    "on_demand": int,
    "pods": int,
    "free": int,
    "guards": [{"addresses": str, "level": str, "why": str}],
    "skipped": [str],
    "ready": bool,
    "warnings": [str],
    "failures": [str],
    "handed_over": bool,
    "etcd": {
        "endpoints": [str],
        "prefix": str,
        "keyfile": str,
        "certfile": str,
        "cafile": str,
        "username": str,
        "answered_at": int,
    },
    "kube": {
        "node": str,
        "api_url": str,
        "kubeconfig_file": str,
        "annotation_prefix": str,
        "answered_at": int,
    },
    "options": {"fastpath": str, "ip_masq": bool},
}
"""Keys and what their values are; addresses and networks are texts.

`on_demand`: how many peers have kernel objects of their own, -1 when all have.
What is said of a family stands in `families`, and of the first one beside it too.
"""

_LATER: Content = {
    "etcd_prefix": "",
    "families": [],
    "lacks": [],
    "on_demand": -1,
    "free": 0,
    "guards": [],
    "ready": False,
    "warnings": [],
    "handed_over": False,
    "etcd": {
        "endpoints": [],
        "prefix": "",
        "keyfile": "",
        "certfile": "",
        "cafile": "",
        "username": "",
        "answered_at": 0,
    },
    "kube": {"node": "", "api_url": "", "kubeconfig_file": "", "annotation_prefix": "", "answered_at": 0},
    "options": {"fastpath": "", "ip_masq": False},
}
"""What a report of an older version lacks."""


def path_of(state_dir: Path, network: Network) -> Path:
    """Return where the report of a network lies."""
    return place(state_dir, network, SUFFIX)


def read(state_dir: Path, network: Network) -> Content | None:
    """Return the report of one network, None when there is none, or none that can be used.

    `handed_over`: a `down` has given the kernel path to whoever comes next. `etcd_prefix` is "" when an older
    version wrote it, or where Kubernetes holds the leases: `kube` has a `node` then. `free` counts pods'
    addresses that no rule concerns, `guards` say of others what does.
    """
    try:
        found = json.loads(read_small(path_of(state_dir, network)))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    found = _LATER | found
    return found if _fits(found, _SHAPE) and found["network"] == str(network) else None


def families(content: Content) -> list[dict[str, str]]:
    """Return what a report says of each family: its network, overlay device, public address and subnet."""
    first = {key: content[key] for key in ("network", "overlay", "public_ip", "subnet")}
    return content["families"] or [first]


def read_all(state_dir: Path) -> Iterator[tuple[Network, Content | None]]:
    """Yield each network that has a report, with the report if it can be used."""
    for network in networks_of(state_dir, SUFFIX):
        yield network, read(state_dir, network)


def write(state_dir: Path, content: Content) -> None:
    """Replace the report of a network in one step; raises OSError."""
    replace_file(path_of(state_dir, ip_network(content["network"])), json.dumps(content, indent=2) + "\n")


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, Mapping):
        return isinstance(value, dict) and all(
            key in value and _fits(value[key], inner) for key, inner in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(one, shape[0]) for one in value)
    if shape in (ip_address, ip_network):
        try:
            return isinstance(value, str) and str(shape(value)) == value
        except ValueError:
            return False
    return type(value) is shape
