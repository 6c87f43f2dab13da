"""A program that the verifier refused: one line that says why, and its log."""

import pytest

from flannel_ebpf.base.errors import VerifierRejected
from flannel_ebpf.kernel.programs.libbpf import _refusal

BEFORE = """libbpf: prog 'fl_to_peer': BPF program load failed: Permission denied
libbpf: prog 'fl_to_peer': -- BEGIN PROG LOAD LOG --
0: R1=ctx() R10=fp0
; return *(__u32 *)(long)skb->data; @ small.bpf.c:74
0: (61) r1 = *(u32 *)(r1 +76)         ; R1=pkt(r=0)
1: (61) r0 = *(u32 *)(r1 +0)
invalid access to packet, off=0 size=4, R1(id=0,off=0,r=0)
R1 min value is outside of the allowed memory range
"""
EXPLANATION = """
Verification failed: Memory Safety: Access outside bounds

Reason:
  The verifier cannot prove offset + access_size <= object_size. Here, the minimal bound for a
  memory access is 0 and is outside of the object of size 0.

At:
  fl_to_peer @ small.bpf.c:74:2
  >>> 74 |         return *(__u32 *)(long)skb->data;
         |         ^-- error: access may be outside object bounds

Suggestion:
  Add or adjust a bounds check that proves offset + access_size stays within the object.

"""
AFTER = """processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'fl_to_peer': failed to load: -13
"""


@pytest.mark.parametrize("explanation", ["", EXPLANATION], ids=["until Linux 6", "Linux 7"])
def test_the_reason_is_the_verifiers_last_word_before_it_explains(explanation: str) -> None:
    error = _refusal("datapath.bpf.o", 13, BEFORE + explanation + AFTER)

    assert isinstance(error, VerifierRejected)
    reason = "R1 min value is outside of the allowed memory range"
    assert (
        str(error)
        == f"datapath.bpf.o: prog 'fl_to_peer': BPF program load failed: Permission denied: {reason}"
    )
    assert error.log.splitlines()[-1] == reason
