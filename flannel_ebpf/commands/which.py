"""Which networks of this host a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flannel_ebpf.base.errors import ConfigError, FlannelError
from flannel_ebpf.base.family import Network, family_of, in_order
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.objects import ROUTE_PROTOCOL
from flannel_ebpf.host import remembered, report, subnet_env
from flannel_ebpf.host.places import networks_of
from flannel_ebpf.kernel.hooks.standing import standing
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.netlink.routes import read_main_table
from flannel_ebpf.kernel.programs import pins


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator named: networks, or an etcd prefix, "" for none. Nothing named is everything."""

    networks: Sequence[Network] = ()
    prefix: str = ""


def chosen(options: Options, asked: Asked) -> dict[Network, report.Content | None]:
    """Return the networks here that were asked for, with their reports as far as these can be used.

    A network whose prefix nothing tells is one of every prefix. Raises ConfigError for what is not here.
    """
    here = known(options)
    missing = [network for network in asked.networks if network not in here]
    if missing:
        raise ConfigError("--network", str(missing[0]), f"a network of this host: {_listed(here)}")
    if asked.networks:
        return {network: here[network] for network in asked.networks}
    if not asked.prefix:
        return here
    found = {
        network: told
        for network, told in here.items()
        if told is None or told["etcd_prefix"] in ("", asked.prefix)
    }
    if here and not found:
        raise ConfigError(
            "--etcd-prefix", asked.prefix, f"the prefix of a network of this host: {_listed(here)}"
        )
    return found


def known(options: Options) -> dict[Network, report.Content | None]:
    """Return every network that a daemon of ours has left something of, in order.

    Reports, pins, and what a daemon remembers are ours by their place, routes by their protocol number, and
    programs by themselves. A subnet.env may be flanneld's: it only says where to look for those. Raises
    FlannelError for a user who may not look.
    """
    try:
        found = dict(report.read_all(options.state_dir))
        others = [*networks_of(options.state_dir, remembered.SUFFIX), *pins.networks(options.bpf_pin_root)]
    except PermissionError as error:
        raise FlannelError(f"{error.filename}: {error.strerror}: this takes root") from error
    written = subnet_env.read(options.subnet_file).networks[:1]
    others += [network for network in written if _has_routes(network) or standing(network)]
    known = dict.fromkeys(others) | found
    return {network: known[network] for network in sorted(known, key=in_order)}


def _has_routes(network: Network) -> bool:
    base, mask = int(network.network_address), int(network.netmask)
    with RouteSocket() as netlink:
        return any(
            route.protocol == ROUTE_PROTOCOL
            and route.dst[1] >= network.prefixlen
            and route.dst[0] & mask == base
            for route in read_main_table(netlink, family_of(network))
        )


def _listed(here: dict[Network, report.Content | None]) -> str:
    words = (
        f"{network} ({told['etcd_prefix'] if told else 'unknown prefix'})" for network, told in here.items()
    )
    return ", ".join(words) or "there is none"
