"""What stands around this node on its host, and no lease may take away."""

from __future__ import annotations

from collections.abc import Iterable

from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.desired.backends import Stack, Surroundings, backend_of
from flannel_ebpf.desired.objects import ROUTE_PROTOCOL
from flannel_ebpf.kernel.netlink.links import Address as OnLink
from flannel_ebpf.kernel.seen import Seen


def surroundings(seen: Seen, stack: Stack, servers: Iterable[Address]) -> Surroundings:
    """Return it for one family. `servers` are those that leases come from. Raises KernelError.

    What stands in our own subnet is the pods' bridge's, and what stands on our device is ours.
    """
    family, own = stack.family, stack.subnet
    overlay = seen.index_of(backend_of(stack.config).overlay_name(stack.config, family))
    addresses: dict[Address, str] = {
        server: "the server that leases come from" for server in servers if server.version == family
    }
    for route in seen.routes(family):
        if route.gateway and route.oif != overlay and route.protocol != ROUTE_PROTOCOL:
            addresses[family.address(route.gateway)] = "a gateway of this host"
    links: dict[Network, str] = {}
    not_nodes: dict[Address, str] = {}
    for one in seen.addresses(family):
        ip, network = one.interface.ip, one.interface.network
        link = seen.links.get(one.ifindex)
        if link is None or one.ifindex == overlay or ip.is_loopback or ip.is_link_local:
            continue
        not_nodes[ip] = f"an address of {link.name} on this host"
        if ip in own:
            continue
        addresses[ip] = f"an address of {link.name}"
        if one.ifindex == stack.uplink.ifindex:
            not_nodes |= dict.fromkeys(_of_nobody(one), "that of no node on the uplink's network")
        if not network.overlaps(own):
            links[network] = f"the network of {link.name}"
    return Surroundings(addresses, links, not_nodes)


def _of_nobody(one: OnLink) -> set[Address]:
    """Return the network's own address and its broadcast address (RFC 3021: there are none in a /31)."""
    network = one.interface.network
    if family_of(network) is Family.V6 or network.prefixlen > 30:
        return set()
    return {network.network_address, network.broadcast_address}
