"""Maps and programs through bpf(2): the daemon's whole need of BPF, without a library."""

from flannel_ebpf.kernel.bpf.attached import TCX_HOOKS, attached_by_tcx
from flannel_ebpf.kernel.bpf.links import has_netfilter_programs
from flannel_ebpf.kernel.bpf.maps import Map, MapInfo, possible_cpus
from flannel_ebpf.kernel.bpf.programs import Program, ProgramInfo, TestRun
from flannel_ebpf.kernel.bpf.syscall import call

__all__ = [
    "TCX_HOOKS",
    "Map",
    "MapInfo",
    "Program",
    "ProgramInfo",
    "TestRun",
    "attached_by_tcx",
    "call",
    "has_netfilter_programs",
    "possible_cpus",
]
