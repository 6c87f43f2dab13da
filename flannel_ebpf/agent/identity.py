"""Who this node is to the others: uplink and address, chosen once and kept for as long as they exist.

Addresses come and go on a host: a VIP wanders, a VPN adds a better default route, DHCP a second address.
Choosing anew each time would change the node's identity with them.
"""

from __future__ import annotations

from flannel_ebpf.agent.join import Way, choose_uplinks
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Stack
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import follow

GRACE = 2.0
"""Seconds for which an address may be away before another interface's is taken: networking restarts so."""


class Identity:
    """Follows the uplink's address of one family. `problem` says what is wrong with it, "" nothing.

    `due`: in how many seconds from the last look to look again, 0: nothing waits.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._gone_since: float | None = None
        self.problem = ""
        self.due = 0.0

    def follow(self, stack: Stack, seen: Seen, now: float) -> Way:
        """Return uplink and public address as they are now; `now` is a monotonic clock in seconds.

        An address that is gone gives way to what the options choose: on the same interface at once, likewise
        when the interface is gone too, on another one after GRACE.
        """
        self.problem, self.due = "", 0.0
        kept = follow(stack.uplink, seen.links, seen.addresses(stack.family))
        if kept:
            self._gone_since = None
            return kept, self._options.public_ips.get(stack.family, kept.ip)
        was = f"{stack.uplink.ip} is gone from {stack.uplink.name}"
        self._gone_since = now if self._gone_since is None else self._gone_since
        try:
            families = [pool.family for pool in stack.config.pools]
            ways = choose_uplinks(seen, self._options, stack.config)
            uplink, public_ip = ways[families.index(stack.family)]
        except ConfigError as error:
            self.problem = f"{was}: {error}"
            return stack.uplink, stack.public_ip
        elsewhere = uplink.ifindex != stack.uplink.ifindex and stack.uplink.ifindex in seen.links
        left = self._gone_since + GRACE - now
        if elsewhere and left > 0:
            self.problem = f"{was}: unless it is back in {GRACE:g} s, {uplink.ip} of {uplink.name} is taken"
            self.due = left
            return stack.uplink, stack.public_ip
        self._gone_since = None
        return uplink, public_ip
