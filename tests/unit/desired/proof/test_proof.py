from __future__ import annotations

from dataclasses import replace

import pytest

from flannel_ebpf.desired.proof.follow import MOST_VISITS, Memory
from flannel_ebpf.desired.proof.packets import (
    STATE_ESTABLISHED,
    STATE_INVALID,
    STATE_NEW,
    STATE_RELATED,
    TCP,
    UDP,
    Field,
)
from flannel_ebpf.desired.proof.proof import Guard, Level, prove
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, exactly, names, of_network, without
from flannel_ebpf.desired.proof.rules import (
    Accept,
    AddressType,
    Among,
    Chain,
    ChainName,
    Choose,
    Counted,
    Drop,
    Hook,
    Jump,
    Masked,
    Perhaps,
    Return,
    Rule,
    SetMark,
    Step,
    Touch,
    Translate,
    Verdict,
    Within,
    effective,
)
from tests.unit.desired.proof.rulesets import (
    NODE,
    REMOTE,
    SUBNET,
    TABLE,
    A,
    B,
    base,
    guarded,
    one,
    proved,
    rule,
    source,
    target,
)

INVALID = Within(Field.STATE, exactly(STATE_INVALID))
KNOWN = Within(Field.STATE, exactly(STATE_ESTABLISHED, STATE_RELATED))
GOES_OUT, COMES_IN = Within(Field.OIF, names(["flannel.1"])), Within(Field.IIF, names(["flannel.1"]))
LOCAL = AddressType(Field.DADDR, frozenset(["local"]))
SERVICE = Within(Field.DADDR, exactly(0x0A60000A))
IS_TCP, IS_UDP = Within(Field.PROTOCOL, exactly(TCP)), Within(Field.PROTOCOL, exactly(UDP))
OUT_OF_HERE = Within(Field.OIF, names(["eth0"]))
NEW = Within(Field.STATE, exactly(STATE_NEW))


def test_without_rules_all_pods_are_free() -> None:
    proof = proved([])
    assert proof.guards == ()
    assert guarded(proof, A, B) == [False, False]


def test_a_drop_guards_its_pods_only() -> None:
    proof = proved(base(), base=[rule(source(A), then=Drop())])
    assert guarded(proof, A, B) == [True, False]
    assert [(guard.addresses, guard.level) for guard in proof.guards] == [(one(A), Level.FLOWS)]
    assert "drop" in proof.guards[0].why
    assert str(A) in proof.guards[0].why


def test_packets_to_a_pod_count_as_those_from_it() -> None:
    assert guarded(proved(base(), base=[rule(target(A), then=Drop())]), A, B) == [True, False]


def test_a_rule_about_remote_addresses_guards_all() -> None:
    assert guarded(proved(base(), base=[rule(target(REMOTE), then=Drop())]), A, B) == [True, True]


@pytest.mark.parametrize(
    "step",
    [
        Within(Field.IIF, names(["docker0"])),
        Within(Field.PROTOCOL, exactly(132)),
        Within(Field.FRAGMENT, exactly(185)),
        Masked(Field.MARK, 0x4000, 0x4000),
        AddressType(Field.DADDR, frozenset(["local"])),
        Within(Field.SADDR, of_network(SUBNET)[:0]),
    ],
)
def test_what_no_carried_packet_is_guards_nobody(step: Step) -> None:
    assert proved(base(), base=[rule(step, then=Drop())]).guards == ()


@pytest.mark.parametrize(
    "step",
    [
        Within(Field.OIF, names(["flannel.1"])),
        Masked(Field.MARK, 0x4000, 0x4000, inverted=True),
        AddressType(Field.DADDR, frozenset(["local"]), inverted=True),
        AddressType(Field.DADDR, frozenset(["unicast"])),
        Perhaps("time"),
    ],
)
def test_what_some_carried_packets_may_be_guards_all(step: Step) -> None:
    assert proved(base(), base=[rule(step, then=Drop())]).free == NOTHING


def test_what_is_accepted_before_meets_no_drop() -> None:
    rules = [rule(source(A), then=Accept()), rule(target(A), then=Accept()), rule(then=Drop())]
    assert guarded(proved(base(), base=rules), A, B) == [False, True]


def test_a_policy_guards_what_comes_to_the_end() -> None:
    rules = [rule(source(SUBNET), then=Accept()), rule(target(SUBNET), then=Accept())]
    assert proved(base(drops=True), base=rules).guards == ()
    proof = proved(base(drops=True), base=rules[:1])
    assert proof.free == NOTHING
    assert proof.guards[0].why == "ip t base: policy drop"


def test_accept_ends_its_base_chain_alone() -> None:
    bases = [base(name="first"), base(name="second")]
    proof = proved(bases, first=[rule(then=Accept())], second=[rule(source(A), then=Drop())])
    assert guarded(proof, A, B) == [True, False]


def test_only_what_is_invalid_may_be_dropped() -> None:
    rules = [rule(INVALID, then=Drop()), rule(KNOWN, then=Accept()), rule(NEW, then=Accept())]
    assert proved(base(drops=True), base=rules).guards == ()
    tunnelled = replace(NODE, invalid_is_nobody=False)
    counted = [rule(INVALID, Touch("nfacct"), then=Drop())]
    for found in (rules, counted):
        proof = proved(base(), facts=tunnelled, base=found)
        assert proof.free == proof.of_level(Level.KERNEL) == NOTHING


def test_established_alone_is_not_enough() -> None:
    # To conntrack a connection that is carried past it is always new.
    assert proved(base(drops=True), base=[rule(KNOWN, then=Accept())]).free == NOTHING


def test_before_conntrack_every_packet_looks_invalid() -> None:
    early = base(Hook.PREROUTING, priority=-300)
    assert proved(early, base=[rule(INVALID, then=Drop())]).free == NOTHING
    late = base(Hook.PREROUTING, priority=-150)
    assert proved(late, base=[rule(INVALID, then=Drop())]).guards == ()


def test_jump_comes_back_and_goto_does_not() -> None:
    user = [rule(source(A), then=Return()), rule(source(B), then=Accept())]
    drop = rule(source(SUBNET), then=Drop())
    jump = proved(base(), base=[rule(then=Jump("user")), drop], user=user)
    goto = proved(base(), base=[rule(then=Jump("user", back=False)), drop], user=user)
    assert guarded(jump, A, B) == [True, False]
    assert goto.guards == ()


def test_goto_goes_back_behind_the_last_jump() -> None:
    proof = proved(
        base(),
        base=[rule(then=Jump("one")), rule(source(A), then=Drop())],
        one=[rule(then=Jump("two", back=False)), rule(source(B), then=Drop())],
        two=[],
    )
    assert guarded(proof, A, B) == [True, False]


def test_a_chain_without_end_guards_all() -> None:
    proof = proved(base(), base=[rule(then=Jump("base"))])
    assert proof.free == NOTHING
    assert "more rules than can be followed" in proof.guards[0].why
    assert proof.guards[0].level == Level.KERNEL


def test_too_many_rules_guard_all() -> None:
    many = [rule(Perhaps("time"), then=Accept())] * (MOST_VISITS // 8)
    rules = [rule(source(SUBNET[n]), then=Jump("many")) for n in range(2, 20)]
    assert "more rules" in proved(base(), base=rules, many=many).guards[0].why


def test_verdict_map_leads_each_element_its_way() -> None:
    choice = Choose((Field.SADDR,), (((one(A),), Drop()), ((one(B),), Accept())))
    rules = [rule(then=choice), rule(source(SUBNET), then=Drop("reject"))]
    proof = proved(base(), base=rules)
    assert {guard.addresses: guard.why.split(": ")[1] for guard in proof.guards}[one(A)] == "drop"
    assert guarded(proof, A, B, SUBNET[9]) == [True, False, True]


def test_element_that_may_have_gone_goes_both_ways() -> None:
    choice = Choose((Field.SADDR,), (((one(A),), Accept()),), unsure=True)
    rules = [rule(then=choice), rule(source(A), then=Drop())]
    assert guarded(proved(base(), base=rules), A) == [True]


def test_several_fields_are_one_element() -> None:
    both = Among((Field.SADDR, Field.DADDR), ((one(A), one(REMOTE)),))
    assert guarded(proved(base(), base=[rule(both, then=Drop())]), A, B) == [True, False]
    inverted = replace(both, inverted=True)
    assert guarded(proved(base(), base=[rule(inverted, then=Drop())]), A, B) == [True, True]


def test_what_is_done_before_a_test_is_done_to_all() -> None:
    late = [Rule((Touch("TEE"), source(A)), Drop()), rule(Touch("TEE"), source(A), then=Drop())]
    for one_of in late:
        assert proved(base(), base=[one_of]).free == NOTHING


def test_icmp_is_carried_too() -> None:
    ping = Within(Field.PROTOCOL, exactly(1))
    assert guarded(proved(base(), base=[rule(ping, source(A), then=Drop())]), A, B) == [True, False]


def test_an_element_that_may_have_gone_is_not_sure_to_match() -> None:
    accept = Among((Field.SADDR,), ((one(A),),), unsure=True)
    rules = [rule(source(A), accept, then=Accept()), rule(source(A), then=Drop())]
    assert guarded(proved(base(), base=rules), A) == [True]
    sure = [rule(source(A), replace(accept, unsure=False), then=Accept()), rule(source(A), then=Drop())]
    assert guarded(proved(base(), base=sure), A) == [False]


def test_mark_that_stays_what_it_is_is_none() -> None:
    assert proved(base(), base=[rule(SetMark(0xFFFF, 0))]).guards == ()
    assert proved(base(), base=[rule(SetMark(0, 0))]).guards == ()
    assert "mark" in proved(base(), base=[rule(SetMark(0xFFFF, 0x4000))]).guards[0].why


def test_tunnel_packets_are_everybodys() -> None:
    rules = [rule(Within(Field.DPORT, exactly(8472)), Within(Field.PROTOCOL, exactly(UDP)), then=Drop())]
    proof = proved(base(Hook.INPUT), base=rules)
    assert proof.free == NOTHING
    assert "of tunnel packets" in proof.guards[0].why
    elsewhere = [rule(Within(Field.SADDR, exactly(1)), then=Drop())]
    assert proved(base(Hook.INPUT), base=elsewhere).guards == ()


@pytest.mark.parametrize(
    ("device", "hook", "free"),
    [
        ("veth1", Hook.INGRESS, False),
        ("cni0", Hook.INGRESS, False),
        ("flannel.1", Hook.EGRESS, False),
        ("eth0", Hook.INGRESS, False),
        ("eth0", Hook.EGRESS, False),
        ("eth1", Hook.INGRESS, True),
        ("cni0", Hook.EGRESS, False),
        ("veth1", Hook.EGRESS, False),
    ],
)
def test_devices_hooks_count_where_packets_come_by(device: str, hook: Hook, free: bool) -> None:
    proof = proved(base(hook, devices=names([device])), base=[rule(then=Drop())])
    assert (proof.guards == ()) == free


@pytest.mark.parametrize(
    ("hook", "steps", "free"),
    [
        (Hook.BRIDGE_PREROUTING, [source(A)], False),
        (Hook.BRIDGE_INPUT, [source(A)], False),
        (Hook.BRIDGE_FORWARD, [source(A)], True),
        (Hook.BRIDGE_OUTPUT, [target(A)], False),
        (Hook.BRIDGE_POSTROUTING, [target(A)], False),
        (Hook.BRIDGE_POSTROUTING, [source(A)], True),
        (Hook.PREROUTING, [source(A)], False),
        (Hook.PREROUTING, [target(A), COMES_IN], False),
        (Hook.POSTROUTING, [source(A), GOES_OUT], False),
        (Hook.POSTROUTING, [target(A), COMES_IN], False),
        (Hook.POSTROUTING, [source(A), Within(Field.IIF, names([""]))], False),  # before Linux 5.6
        (Hook.FORWARD, [source(A), GOES_OUT], False),
        (Hook.FORWARD, [target(A), COMES_IN], False),
        (Hook.INPUT, [source(A)], True),
        (Hook.OUTPUT, [source(A)], True),
    ],
)
def test_hooks_count_where_packets_come_by(hook: Hook, steps: list[Step], free: bool) -> None:
    assert guarded(proved(base(hook), base=[rule(*steps, then=Drop())]), A, B) == [not free, False]


@pytest.mark.parametrize("hook", [Hook.BRIDGE_PREROUTING, Hook.BRIDGE_POSTROUTING])
def test_below_ip_no_packet_has_a_state(hook: Hook) -> None:
    assert proved(base(hook), base=[rule(INVALID, then=Drop())]).free == NOTHING


@pytest.mark.parametrize(("hook", "free"), [(Hook.OUTPUT, False), (Hook.POSTROUTING, True)])
def test_of_tunnel_packets_neither_before_conntrack(hook: Hook, free: bool) -> None:
    proof = proved(base(hook, priority=-300), base=[rule(INVALID, then=Drop())])
    assert (proof.guards == ()) == free


def nat(hook: Hook, *steps: Step, to: Ranges | None, what: str = "dnat") -> tuple[list[Rule], Hook]:
    return [rule(*steps, Translate(what, to), then=Accept())], hook


@pytest.mark.parametrize(
    ("rules", "hook", "expected"),
    [
        (*nat(Hook.PREROUTING, target(REMOTE), to=one(B)), [True, True]),  # on its way
        (*nat(Hook.PREROUTING, LOCAL, Within(Field.DPORT, exactly(80)), to=one(A)), [True, False]),
        (*nat(Hook.OUTPUT, Within(Field.DADDR, exactly(1)), to=one(A)), [True, False]),  # published port
        (*nat(Hook.PREROUTING, SERVICE, to=one(REMOTE)), [True, True]),  # service
        (*nat(Hook.PREROUTING, source(A), SERVICE, to=one(REMOTE)), [True, False]),
        (*nat(Hook.PREROUTING, SERVICE, to=exactly(5)), [False, False]),
        (*nat(Hook.PREROUTING, SERVICE, to=None), [True, True]),
        (*nat(Hook.POSTROUTING, Within(Field.SADDR, exactly(5)), to=one(A), what="snat"), [True, False]),
        (*nat(Hook.POSTROUTING, source(SUBNET), to=NOTHING, what="masquerade"), [True, True]),
        (*nat(Hook.POSTROUTING, source(SUBNET), OUT_OF_HERE, to=NOTHING), [False, False]),
    ],
)
def test_nat_guards_whom_it_could_concern(rules: list[Rule], hook: Hook, expected: list[bool]) -> None:
    proof = proved(base(hook, priority=-100, translates=True), base=rules)
    assert guarded(proof, A, B) == expected
    assert {guard.level for guard in proof.guards} <= {Level.FLOWS}


@pytest.mark.parametrize(
    ("steps", "verdict", "level"),
    [
        ([source(A)], Drop(), Level.FLOWS),
        ([source(A), Perhaps("length", varies=True)], Drop(), Level.KERNEL),
        ([source(A), Perhaps("time")], Drop(), Level.FLOWS),
        ([source(A), Counted("limit")], Accept(), Level.KERNEL),
        ([source(A), Touch("TEE")], None, Level.KERNEL),
        ([source(A), Touch("CONNMARK", each=False)], None, Level.FLOWS),
        ([source(A), IS_TCP, NEW, Counted("limit")], Drop(), Level.FLOWS),
        ([source(A), IS_UDP, NEW, Counted("limit")], Drop(), Level.KERNEL),
        ([source(A), IS_TCP, Masked(Field.TCP_FLAGS, 6, 2), Touch("TCPMSS")], None, Level.FLOWS),
        ([source(A), IS_TCP, Masked(Field.TCP_FLAGS, 255, 0)], Drop(), Level.FLOWS),
        ([source(A), IS_TCP, Masked(Field.TCP_FLAGS, 8, 8)], Drop(), Level.KERNEL),
    ],
)
def test_what_judges_each_packet_is_the_kernels(steps: list[Step], verdict: Verdict, level: Level) -> None:
    proof = proved(base(), base=[rule(*steps, then=verdict)])
    assert max(guard.level for guard in proof.guards) == level
    assert guarded(proof, A, B) == [True, False]


def test_those_whom_a_share_leaves_behind_are_the_kernels_too() -> None:
    rules = [rule(Counted("limit"), then=Accept()), rule(source(A), then=Drop())]
    assert proved(base(), base=rules).of_level(Level.KERNEL) != NOTHING


def test_by_flow_only_packets_that_are_judged_one_by_one_matter() -> None:
    rules = [rule(source(A), Counted("limit"), then=Drop()), rule(source(B), then=Drop())]
    proof = proved(base(), facts=replace(NODE, stateless=False), base=rules)
    assert [(guard.addresses, guard.level) for guard in proof.guards] == [(one(A), Level.KERNEL)]
    assert proof.free == NOTHING


def test_an_address_is_in_one_guard_only() -> None:
    rules = [rule(source(SUBNET), then=Drop()), rule(target(A), Counted("limit"), then=Drop())]
    proof = proved(base(), base=rules)
    assert proof.of_level(Level.KERNEL) == one(A)
    pods = without(of_network(SUBNET), NODE.kinds["local"])
    assert proof.of_level(Level.FLOWS) == without(pods, one(A))


def test_what_stands_there_otherwise_guards_first() -> None:
    name = ChainName(TABLE, "base")
    chain = Chain(name, (rule(source(A), then=Drop()),))
    standing = Guard(one(A), Level.FLOWS, "ipvs is in use")
    proof = prove([base()], lambda _: chain, NODE, [standing])
    assert proof.guards == (standing,)


def test_memory_changes_nothing_and_forgets_what_changed() -> None:
    user = ChainName(TABLE, "user")
    chains = {
        ChainName(TABLE, "base"): Chain(ChainName(TABLE, "base"), (rule(then=Jump("user")),)),
        user: Chain(user, (rule(source(A), then=Drop()),)),
    }
    memory = Memory()
    first = prove([base()], chains.__getitem__, NODE, memory=memory)
    assert prove([base()], chains.__getitem__, NODE, memory=memory) == first
    chains[user] = Chain(user, (rule(source(B), then=Drop()),))
    memory.forget([user])
    second = prove([base()], chains.__getitem__, NODE, memory=memory)
    assert guarded(first, A, B) == [True, False]
    assert guarded(second, A, B) == [False, True]


def test_a_rule_without_effect_is_none() -> None:
    assert effective([source(A)], None) is None
    assert effective([source(A), Counted("limit")], None) is None
    assert effective([Touch("TEE"), source(A)], None) == Rule((Touch("TEE"),))
