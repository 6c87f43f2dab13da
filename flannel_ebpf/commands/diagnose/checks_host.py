"""Checks of the host itself: kernel, rights, daemon, leases, clock, sysctls."""

from __future__ import annotations

from collections.abc import Iterator

from flannel_ebpf.base.family import Family
from flannel_ebpf.commands.diagnose.facts import FORWARDING, Facts
from flannel_ebpf.commands.diagnose.finding import Check, Finding

_SLOW_ANSWER = 1.0
_OLD_ANSWER = 120.0


def rights(facts: Facts) -> Iterator[Finding]:
    """Root is needed for most of what follows."""
    if not facts.root:
        yield Finding("not run as root", "much of what follows cannot be read", "run it as root", "note")
    for name, error in facts.unread.items():
        yield Finding(
            f"{name} cannot be read: {error}", "what depends on it is not checked", "see its text", "note"
        )


def kernel(facts: Facts) -> Iterator[Finding]:
    """BPF can run here, and has the building blocks that matter most."""
    kernel_path = "packets take the kernel path, slower"
    if facts.bpf_error and facts.root:
        yield Finding(facts.bpf_error, kernel_path, "mend that and restart the daemon")
    elif facts.root and "redirect_neigh" not in facts.features:
        yield Finding("the kernel has no bpf_redirect_neigh", kernel_path, "use Linux 5.10 or newer")
    if not facts.binding:
        do = "apt-get install python3-bpfcc, and let the Python environment see Debian's packages"
        yield Finding("libbpf's binding is missing", "programs cannot be loaded", do)


def daemon(facts: Facts) -> Iterator[Finding]:
    """A daemon runs, and says that it could do all it wanted."""
    if not facts.here or not facts.report:
        do = "systemctl enable --now flannel-ebpf"
        yield Finding("no daemon has run here", "this host has no overlay", do, only_stopped=True)
        return
    if not facts.here.pid:
        do = "systemctl start flannel-ebpf; journalctl -u flannel-ebpf says why it ended"
        yield Finding("the daemon does not run", _without_daemon(facts), do, only_stopped=True)
        if facts.hooks and "flanneld" in facts.processes:
            what = "flanneld runs, and programs of a flannel-ebpf that ended without `down` stand before it"
            yield Finding(what, _without_daemon(facts), "flannel-ebpf down")
    for failure in facts.report.get("failures", ()):
        yield Finding(
            f"the daemon could not: {failure}", "it tries again and again", "journalctl -u flannel-ebpf"
        )
    for skipped in facts.report.get("skipped", ()):
        effect = "this node does not reach that subnet"
        yield Finding(
            f"a lease is skipped: {skipped}", effect, "mend or delete it where leases stand", "note"
        )
    if facts.report.get("peers", {}).get("held"):
        what = f"peers are kept although their leases were suddenly lost: {facts.report['peers']['held']}"
        yield Finding(what, "they go after --wipe-grace", "see what happened there", "note")
    if facts.here.pid and "flanneld" in facts.processes:
        effect = "two daemons write the same routes, rules and lease"
        yield Finding("flanneld runs here too", effect, "systemctl disable --now flanneld")


def _without_daemon(facts: Facts) -> str:
    stale = "no change of the cluster reaches this host"
    if not facts.hooks:
        return f"packets go on as they went, but {stale}"
    if facts.stand_aside_in == 0:
        return "its programs stand aside and the kernel carries all; who keeps that up to date, if anybody?"
    until = "for ever" if facts.stand_aside_in is None else f"for {facts.stand_aside_in} s"
    return f"its programs go on with what they know {until}, and drop what they know nothing of; {stale}"


def leases(facts: Facts) -> Iterator[Finding]:
    """Etcd, or the API server, answers, quickly, and has this node's lease."""
    found = facts.source
    if not found.asked:
        if found.error:
            yield Finding(f"etcd is not asked: {found.error}", "", "give --etcd-password", "note")
        return
    if found.error:
        effect = "packets go on; new nodes, and leases that expire, are not seen"
        do = "see where the daemon's flags say it is, its certificates and its own log"
        yield Finding(f"{found.who}: {found.error}", effect, do)
    elif found.seconds > _SLOW_ANSWER:
        what = f"{found.who} took {found.seconds:.1f} s to answer"
        yield Finding(what, "changes come late", "see its disk and load")
    if not found.error and facts.report and not found.lease:
        effect = "other nodes do not know this one"
        what = f"{found.who} has no lease of {facts.report['subnet']}"
        yield Finding(what, effect, "restart the daemon")
    age = facts.answer_age
    if age > _OLD_ANSWER and facts.here and facts.here.pid and not found.error:
        what = f"the daemon's last answer of {found.who} is {age:.0f} s old"
        yield Finding(what, "it works on old leases", "restart it")


def clock(facts: Facts) -> Iterator[Finding]:
    """The clock is kept right: certificates and logs depend on it; leases do not."""
    if not facts.clock_synchronised:
        effect = "certificates may be refused, and logs of two hosts do not match"
        yield Finding("nothing synchronises the clock", effect, "apt-get install chrony", "note")


def sysctls(facts: Facts) -> Iterator[Finding]:
    """Forwarding is on, reverse path filters let the overlay in, conntrack has room and is liberal."""
    values = facts.sysctls
    forwarding = FORWARDING[facts.family]
    if values.get(forwarding) == "0":
        name = forwarding.replace("/", ".")
        effect = "no packet leaves a pod for another node, nor comes to one"
        yield Finding(f"{name} is 0", effect, f"sysctl -w {name}=1, and in /etc/sysctl.d")
    yield from _without_ipv6(facts)
    if values.get("net/netfilter/nf_conntrack_tcp_be_liberal") == "0" and _by_flow(facts):
        what = "net.netfilter.nf_conntrack_tcp_be_liberal is 0"
        effect = "connections stall when they come back to the kernel path: conntrack calls them invalid"
        yield Finding(what, effect, "find what resets it (sysctl.d); the daemon sets it to 1")
    count, most = (values.get(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count and most and int(count) > int(most) * 0.9:
        yield Finding(f"conntrack holds {count} of {most} connections", "new ones are dropped",
                      "raise net.netfilter.nf_conntrack_max")  # fmt: skip
    for name in ("overlay", "uplink"):
        device = facts.report.get(name)
        own = values.get(f"net/ipv4/conf/{device}/rp_filter")
        strict = max(int(own or 0), int(values.get("net/ipv4/conf/all/rp_filter") or 0)) == 1
        filtered = strict and facts.family is Family.V4  # IPv6 has no such filter
        if device and filtered and _routed_elsewhere(facts, device, of_overlay=name == "overlay"):
            effect = "packets of peers that come in there and are routed back elsewhere are dropped"
            yield Finding(
                f"rp_filter of {device} is strict", effect, f"sysctl -w net.ipv4.conf.{device}.rp_filter=2"
            )
    if values.get("net/bridge/bridge-nf-call-iptables") == "0" and _has_kube_proxy(facts):
        effect = "pods of this host do not reach services that lead to a pod of this host"
        yield Finding(
            "bridge-nf-call-iptables is 0", effect, "sysctl -w net.bridge.bridge-nf-call-iptables=1"
        )


def _without_ipv6(facts: Facts) -> Iterator[Finding]:
    """Name devices of an IPv6 network that are refused IPv6."""
    for device in filter(None, (facts.report.get(name) for name in ("uplink", "overlay"))):
        if facts.family is Family.V6 and facts.sysctls.get(f"net/ipv6/conf/{device}/disable_ipv6") == "1":
            effect = "it has no address of IPv6, and nothing of it goes to other nodes"
            do = f"sysctl -w net/ipv6/conf/{device}/disable_ipv6=0, and give it its addresses again"
            yield Finding(f"IPv6 is off on {device}", effect, do)


def _by_flow(facts: Facts) -> bool:
    accelerated = facts.report.get("datapath", {}).get("accelerated")
    return bool(accelerated) and facts.report.get("options", {}).get("fastpath", "flows") != "subnets"


def _routed_elsewhere(facts: Facts, device: str, *, of_overlay: bool) -> bool:
    """Say whether a peer's packets come in by `device` while the route to it leads out of another."""
    if of_overlay:
        ours = [one for one in facts.routes if one.get("protocol") == "251"]
        return any(one.get("dev") != device for one in ours) and facts.report.get("backend") == "vxlan"
    address = facts.report.get("public_ip")
    place = next((one for one in facts.routes if one.get("prefsrc") == address and "/" in one["dst"]), None)
    return bool(place) and place.get("dev") != device  # type: ignore[union-attr]  # bool() says so


def _has_kube_proxy(facts: Facts) -> bool:
    return "KUBE-SERVICES" in facts.iptables or "kube-proxy" in facts.processes


CHECKS: dict[str, Check] = {
    "rights": rights,
    "kernel": kernel,
    "daemon": daemon,
    "leases": leases,
    "clock": clock,
    "sysctls": sysctls,
}
