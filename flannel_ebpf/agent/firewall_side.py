"""Which firewall rules this node wants, and what they were last seen to be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from flannel_ebpf.agent.side import Round
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.firewall_rules import Tool, ruleset
from flannel_ebpf.desired.objects import Object, Ruleset, Scope
from flannel_ebpf.desired.plan import Failure, Op
from flannel_ebpf.kernel.firewall.iptables import is_legacy
from flannel_ebpf.kernel.firewall.rules import Rules, supports_random_fully

LONGEST = 60.0
"""Seconds for which rules count that were read, even if nobody tells of a change."""


class FirewallSide:
    """Masquerade and forward rules, as the options and the network config ask for them.

    Reading rules runs programs, so what was read counts until `changed` is called; with iptables-legacy,
    whose changes nobody hears of, for `--iptables-resync` seconds.
    """

    kinds = (Ruleset,)

    def __init__(self, options: Options, tool: Tool, wake: Callable[[], None]) -> None:
        self._options = options
        self._tool = tool
        self._wake = wake
        self._rules = Rules()
        self._random: bool | None = None
        self._seen: frozenset[Object] = frozenset()
        self._read_at = float("-inf")
        self._changed = threading.Event()
        self.lifetime = float(options.iptables_resync) if is_legacy() else LONGEST

    def wanted(self, now: Round) -> list[Object]:
        """Return the rules that should be there: none or one set for each family."""
        options = self._options
        sets = (
            ruleset(
                self._tool,
                stack.network,
                stack.subnet,
                masquerade=options.ip_masq,
                forward=options.iptables_forward_rules,
                random_fully=options.ip_masq and self._random_fully,
            )
            for stack in now.node.stacks
        )
        return [rules for rules in sets if rules]

    def read(self, now: Round, wanted: Sequence[Object]) -> frozenset[Object]:
        """Return this network's rules, of either tool; raises KernelError."""
        if self._changed.is_set() or time.monotonic() - self._read_at >= self.lifetime:
            self._changed.clear()
            networks = now.node.config.networks
            self._seen = frozenset(rules for network in networks for rules in self._rules.read(network))
            self._read_at = time.monotonic()
        return self._seen

    def changed(self) -> None:
        """Have the kernel asked again, in a pass of its own; may be called from another thread."""
        self._changed.set()
        self._wake()

    def apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Carry out operations on rule sets; return those that failed."""
        self._changed.set()
        return self._rules.apply(ops)

    @property
    def _random_fully(self) -> bool:
        if self._random is None and not self._options.ip_masq_fully_random_disable:
            self._random = supports_random_fully(self._tool)
        return bool(self._random)
