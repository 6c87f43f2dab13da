"""Say what the probe finds on this kernel, on one line."""

from flannel_ebpf.contract.enums import Cap
from flannel_ebpf.kernel.programs.probe import has_tcx, probe

found = [cap.name or "" for cap in probe()] + (["TCX"] if has_tcx() else [])
lacking = {cap.name or "" for cap in Cap} | {"TCX"}
print("has", *found, "lacks", *sorted(lacking - set(found)))
