"""Flannel's firewall rules through the real tools: what is put is what is read, and packets obey."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.family import Network
from flannel_ebpf.desired.firewall_rules import TOOLS, Tool, ruleset
from flannel_ebpf.desired.objects import Ruleset
from flannel_ebpf.desired.plan import Delete, Put, plan
from flannel_ebpf.kernel.firewall.rules import Rules, supports_random_fully
from tests.netns.kernel.space import IPV4, IPV6, NETWORK, SUBNET, run

pytestmark = pytest.mark.usefixtures("namespace")

OTHER = IPv4Network("10.2.0.0/16")
OTHER_SUBNET = IPv4Network("10.2.5.0/24")
BOTH = [(place.network, place.subnet) for place in (IPV4, IPV6)]
both_families = pytest.mark.parametrize(("network", "subnet"), BOTH, ids=["IPv4", "IPv6"])


def make(tool: Tool, network: Network = NETWORK, subnet: Network = SUBNET, *, random: bool = True) -> Ruleset:
    found = ruleset(tool, network, subnet, masquerade=True, forward=True, random_fully=random)
    assert found is not None
    return found


def saved() -> str:
    return run("iptables-save") + run("ip6tables-save")


def everything() -> str:
    return saved() + run("nft list ruleset")


def rules_only(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith("-")]


@both_families
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("random", [True, False])
def test_what_is_put_is_what_is_read(tool: Tool, random: bool, network: Network, subnet: Network) -> None:
    want = make(tool, network, subnet, random=random)
    assert Rules().apply(plan({want}, Rules().read(network))) == []
    assert Rules().read(network) == {want}
    assert plan({want}, Rules().read(network)) == []


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_the_families_leave_each_other_alone(tool: Tool, first: int, second: int) -> None:
    sets = [make(tool, *both) for both in BOTH]
    networks = [network for network, _ in BOTH]
    assert Rules().apply([Put(one) for one in sets]) == []
    assert [Rules().read(network) for network in networks] == [{one} for one in sets]
    assert Rules().apply([Delete(sets[first])]) == []
    assert Rules().read(networks[first]) == set()
    assert Rules().read(networks[second]) == {sets[second]}
    assert Rules().apply([Delete(sets[second])]) == []
    assert "FLANNEL" not in everything()
    assert "flannel" not in run("nft list tables")


@pytest.mark.parametrize("tool", TOOLS)
def test_installed_tools_randomise(tool: Tool) -> None:
    assert supports_random_fully(tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_change_of_subnet_leaves_no_old_rule(tool: Tool) -> None:
    Rules().apply([Put(make(tool, subnet=IPv4Network("10.1.99.0/24")))])
    want = make(tool)
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert Rules().read(NETWORK) == {want}
    assert "10.1.99.0" not in everything()


@pytest.mark.parametrize("tool", TOOLS)
def test_networks_share_the_chains_and_leave_alone(tool: Tool) -> None:
    ours, theirs = make(tool), make(tool, OTHER, OTHER_SUBNET)
    for want in (ours, theirs):
        assert Rules().apply([Put(want)]) == []
    assert Rules().read(NETWORK) == {ours}
    assert Rules().read(OTHER) == {theirs}
    assert Rules().apply([Delete(ours)]) == []
    assert Rules().read(NETWORK) == set()
    assert Rules().read(OTHER) == {theirs}


def test_purge_leaves_foreign_rules_as_they_were() -> None:
    for tool, address in (("iptables", "9.9.9.9"), ("ip6tables", "2001:db8::9")):
        run(f"{tool} -A FORWARD -s {address} -j ACCEPT")
        run(f"{tool} -t nat -A POSTROUTING -s {address} -j MASQUERADE")
    before = rules_only(saved())
    for one in TOOLS:
        Rules().apply([Put(make(one, *both)) for both in BOTH])
    for network, _ in BOTH:
        assert Rules().apply([Delete(obj) for obj in Rules().read(network)]) == []
    assert rules_only(saved()) == before
    assert "FLANNEL" not in saved()
    assert "flannel" not in run("nft list tables")
    assert Rules().apply([Delete(make(one, *both)) for one in TOOLS for both in BOTH]) == []


@pytest.mark.parametrize(
    "change",
    [
        "iptables -t nat -F POSTROUTING",
        "iptables -t nat -F FLANNEL-POSTRTG",
        "iptables -t nat -D FLANNEL-POSTRTG 1",
        "iptables -D FLANNEL-FWD 2",
        "iptables -F FORWARD",
        "iptables -I FLANNEL-FWD -s 10.1.0.0/16 -j DROP",
    ],
)
@both_families
def test_change_from_outside_is_undone(change: str, network: Network, subnet: Network) -> None:
    want = make("iptables", network, subnet)
    Rules().apply([Put(want)])
    before = rules_only(saved())
    run(change if network == NETWORK else f"ip6{change[2:]}".replace("10.1.0.0/16", str(network)))
    assert plan({want}, Rules().read(network)) != []
    assert Rules().apply(plan({want}, Rules().read(network))) == []
    assert rules_only(saved()) == before


def test_doubled_jump_is_made_one() -> None:
    want = make("iptables")
    Rules().apply([Put(want)])
    before = rules_only(saved())
    with_twice = '*nat\n-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG\nCOMMIT\n'
    subprocess.run(["iptables-restore", "--noflush"], input=with_twice, text=True, check=True)
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert rules_only(saved()) == before


def test_other_tool_is_cleaned_when_the_config_changes() -> None:
    Rules().apply([Put(make("iptables"))])
    want = make("nftables")
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert Rules().read(NETWORK) == {want}
    assert "FLANNEL" not in run("iptables-save")


def test_refused_rule_is_a_failure_with_the_tools_words() -> None:
    bad = Ruleset("nftables", str(NETWORK), ("forward ip saddr 10.1.0.0/16 frobnicate",))
    [failure] = Rules().apply([Put(bad)])
    assert "frobnicate" in str(failure.error)
    assert Rules().read(NETWORK) == set()


FLANNELDS = """
add table ip flannel-ipv4 { comment "rules for flannel-ipv4" ; }
add table ip6 flannel-ipv6 { comment "rules for flannel-ipv6" ; }
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100 ; comment \
"chain to manage traffic masquerading by flannel" ; }
flush chain ip flannel-ipv4 postrtg
add rule ip flannel-ipv4 postrtg meta mark 0x4000 return
add rule ip flannel-ipv4 postrtg ip saddr 10.1.5.0/24 ip daddr 10.1.0.0/16 return
add rule ip flannel-ipv4 postrtg ip saddr 10.1.0.0/16 ip daddr 10.1.5.0/24 return
add rule ip flannel-ipv4 postrtg ip saddr != 10.1.5.0/24 ip daddr 10.1.0.0/16 return
add rule ip flannel-ipv4 postrtg ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
add rule ip flannel-ipv4 postrtg ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade fully-random
add chain ip flannel-ipv4 forward { type filter hook forward priority 0 ; comment \
"chain to accept flannel traffic" ; }
flush chain ip flannel-ipv4 forward
add rule ip flannel-ipv4 forward ip saddr 10.1.0.0/16 accept
add rule ip flannel-ipv4 forward ip daddr 10.1.0.0/16 accept
"""
"""What flanneld gives to nft (pkg/trafficmngr/nftables, through knftables)."""


def nft(text: str) -> None:
    subprocess.run(["nft", "--file", "-"], input=text, text=True, check=True)


def in_ipv6(text: str) -> str:
    """What flanneld gives to nft for IPv6: the same in its own table."""
    tables, chains = text.split("add chain", 1)
    changed = f"add chain{chains}".replace("ip ", "ip6 ").replace("flannel-ipv4", "flannel-ipv6")
    changed = changed.replace("10.1.5.0/24", str(IPV6.subnet)).replace("10.1.0.0/16", str(IPV6.network))
    return tables + changed.replace("224.0.0.0/4", "ff00::/8")


FLANNELDS_OF = {NETWORK: FLANNELDS, IPV6.network: in_ipv6(FLANNELDS)}


@both_families
def test_flannelds_own_tables_are_right_as_they_are(network: Network, subnet: Network) -> None:
    nft(FLANNELDS_OF[network])
    assert plan({make("nftables", network, subnet)}, Rules().read(network)) == []


@both_families
def test_nft_shows_of_ours_what_it_shows_of_flannelds(network: Network, subnet: Network) -> None:
    nft(FLANNELDS_OF[network])
    flannelds = run("nft list table ip flannel-ipv4"), run("nft list table ip6 flannel-ipv6")
    run("nft flush ruleset")
    Rules().apply([Put(make("nftables", network, subnet))])
    assert (run("nft list table ip flannel-ipv4"), run("nft list table ip6 flannel-ipv6")) == flannelds
    Rules().apply([Delete(make("nftables", network, subnet))])
    assert run("nft list ruleset") == ""


def test_iptables_shows_of_ours_what_flannels_own_check_expects() -> None:
    Rules().apply([Put(make("iptables"))])
    said = run("iptables -t nat -S FLANNEL-POSTRTG") + run("iptables -S FLANNEL-FWD")
    chains = ("nat -A FLANNEL-POSTRTG", "filter -A FLANNEL-FWD")
    expected = [rule.split(" ", 1)[1] for rule in make("iptables").rules if rule.startswith(chains)]
    assert [line for line in said.splitlines() if not line.startswith("-N")] == expected


def test_rules_of_another_network_are_not_even_written_again() -> None:
    Rules().apply([Put(make("nftables", OTHER, OTHER_SUBNET))])
    run("nft add rule ip flannel-ipv4 forward ip saddr { 10.2.7.7, 10.2.8.8 } tcp dport 80 counter accept")

    def theirs() -> list[str]:
        listed = run("nft --handle list table ip flannel-ipv4").splitlines()
        return [line for line in listed if "10.2." in line]

    before = theirs()
    for op in (Put(make("nftables")), Put(make("nftables", random=False)), Delete(make("nftables"))):
        assert Rules().apply([op]) == []
        assert theirs() == before
    assert "10.2.7.7" in str(before)


def test_a_comment_may_hold_any_bytes() -> None:
    for chain in ("INPUT", "FORWARD"):
        subprocess.run(
            ["iptables", "-A", chain, "-m", "comment", "--comment", b"B\xfcro", "-j", "ACCEPT"], check=True
        )
    Rules().apply([Put(make("iptables", OTHER, OTHER_SUBNET))])
    odd = ["-s", "10.2.9.0/24", "-m", "comment", "--comment", b"K\xfcche", "-j", "ACCEPT"]
    subprocess.run(["iptables", "-A", "FLANNEL-FWD", *odd], check=True)
    want = make("iptables")
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert Rules().read(NETWORK) == {want}
    left = subprocess.run(["iptables-save"], capture_output=True, check=True).stdout
    assert left.count(b"B\xfcro") == 2
    assert left.count(b"K\xfcche") == 1


def test_a_tool_that_cannot_be_run_is_a_failure_and_no_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("iptables", "iptables-save", "nft"):
        (tmp_path / name).write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [supports_random_fully(tool) for tool in TOOLS] == [None, False]
    assert Rules().read(NETWORK) == set()
    [failure] = Rules().apply([Put(make("iptables"))])
    assert str(failure.error) == "iptables-save cannot be run: Permission denied"


def test_missing_tools_hold_no_rules_and_say_so_when_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Rules().read(NETWORK) == set()
    failures = Rules().apply([Put(make(tool)) for tool in TOOLS])
    said = [str(failure.error) for failure in failures]
    assert said == [f"{name} is not installed: firewall rules need it" for name in ("iptables-save", "nft")]
