"""Flannel's firewall rules through the real tools: what is put is what is read, and packets obey."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.desired.firewall_rules import TOOLS, Tool, ruleset
from flannel_ebpf.desired.objects import Ruleset
from flannel_ebpf.desired.plan import Delete, Put, plan
from flannel_ebpf.kernel.firewall.rules import Rules, supports_random_fully
from tests.netns.kernel.space import NETWORK, SUBNET, run

pytestmark = pytest.mark.usefixtures("namespace")

OTHER = IPv4Network("10.2.0.0/16")
OTHER_SUBNET = IPv4Network("10.2.5.0/24")


def make(
    tool: Tool, network: IPv4Network = NETWORK, subnet: IPv4Network = SUBNET, *, random: bool = True
) -> Ruleset:
    found = ruleset(tool, network, subnet, masquerade=True, forward=True, random_fully=random)
    assert found is not None
    return found


def everything() -> str:
    return run("iptables-save") + run("nft list ruleset")


def rules_only(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith("-")]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("random", [True, False])
def test_what_is_put_is_what_is_read(tool: Tool, random: bool) -> None:
    want = make(tool, random=random)
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert Rules().read(NETWORK) == {want}
    assert plan({want}, Rules().read(NETWORK)) == []


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
    run("iptables -A FORWARD -s 9.9.9.9 -j ACCEPT", "iptables -t nat -A POSTROUTING -s 9.9.9.9 -j MASQUERADE")
    before = rules_only(run("iptables-save"))
    for tool in TOOLS:
        Rules().apply([Put(make(tool))])
    assert Rules().apply([Delete(obj) for obj in Rules().read(NETWORK)]) == []
    assert rules_only(run("iptables-save")) == before
    assert "FLANNEL" not in run("iptables-save")
    assert "flannel" not in run("nft list tables")
    assert Rules().apply([Delete(make(tool)) for tool in TOOLS]) == []


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
def test_change_from_outside_is_undone(change: str) -> None:
    want = make("iptables")
    Rules().apply([Put(want)])
    saved = rules_only(run("iptables-save"))
    run(change)
    assert plan({want}, Rules().read(NETWORK)) != []
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert rules_only(run("iptables-save")) == saved


def test_doubled_jump_is_made_one() -> None:
    want = make("iptables")
    Rules().apply([Put(want)])
    saved = rules_only(run("iptables-save"))
    with_twice = '*nat\n-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG\nCOMMIT\n'
    subprocess.run(["iptables-restore", "--noflush"], input=with_twice, text=True, check=True)
    assert Rules().apply(plan({want}, Rules().read(NETWORK))) == []
    assert rules_only(run("iptables-save")) == saved


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


def test_flannelds_own_tables_are_right_as_they_are() -> None:
    nft(FLANNELDS)
    assert plan({make("nftables")}, Rules().read(NETWORK)) == []


def test_nft_shows_of_ours_what_it_shows_of_flannelds() -> None:
    nft(FLANNELDS)
    flannelds = run("nft list ruleset")
    run("nft flush ruleset")
    Rules().apply([Put(make("nftables"))])
    assert run("nft list ruleset") == flannelds
    Rules().apply([Delete(make("nftables"))])
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
    saved = subprocess.run(["iptables-save"], capture_output=True, check=True).stdout
    assert saved.count(b"B\xfcro") == 2
    assert saved.count(b"K\xfcche") == 1


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
