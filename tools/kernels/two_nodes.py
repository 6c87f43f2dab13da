#!/usr/bin/env python3
"""Two nodes of the lab on the running kernel: every backend carries ping and TCP in BPF, or this fails.

Made for a machine without KVM, where a Python process takes half a minute to start: long deadlines.
"""

from __future__ import annotations

import json
import sys
import time

from flannel_ebpf.base.errors import FlannelError, LabError
from flannel_ebpf.contract.abi import Hook, Reason
from flannel_ebpf.lab import Host, Lab, LabSpec
from flannel_ebpf.lab.counters import reasons

WAYS = {"vxlan": Reason.FAST_VXLAN, "host-gw": Reason.FAST_DIRECT, "udp": Reason.FAST_UDP}
BYTES = 20 << 20
DEADLINE = 400.0


def main() -> int:
    """Try every backend; return 1 when one of them does not carry the traffic in BPF."""
    failed = 0
    for backend, reason in WAYS.items():
        spec = LabSpec("kernels", backend=backend, datapath="ebpf", pods_per_node=1, start_daemons=False)
        try:
            with Lab.up(spec) as lab:
                start(lab)
                said = talk(lab, reason)
        except FlannelError as error:
            failed, said = 1, f"FAILED: {error}"
        print(f"kernels: {backend}: {said}", flush=True)
    return failed


def start(lab: Lab) -> None:
    """Start the daemons and pods, with time for a slow machine."""
    for node in lab.nodes:
        node.start_daemon()
    lab.wait_ready(deadline=DEADLINE)
    lab.add_pods()
    lab.wait_attached(deadline=DEADLINE)


def talk(lab: Lab, reason: Reason) -> str:
    """Send from pod to pod and back; return what the programs counted. Raises LabError."""
    source, target = lab.pods
    ping = source.run(["ping", "-q", "-c40", "-i0.05", "-W5", str(target.ip)]).stdout
    if " 0% packet loss" not in ping:
        raise LabError(f"ping: {ping.strip()}")
    speeds = [stream(source, target), stream(target, source)]
    carried = [
        sum(reasons(node)[hook, reason] for node in lab.nodes) for hook in (Hook.FROM_POD, Hook.FROM_PEER)
    ]
    if min(carried) < BYTES >> 16:  # a super-packet holds up to 64 KiB
        raise LabError(f"BPF sent {carried[0]} and delivered {carried[1]} packets of {2 * BYTES} bytes")
    handed = sum(reasons(node)[Hook.FROM_POD, Reason.GSO] for node in lab.nodes)
    return (
        f"ping and TCP both ways ({speeds[0]:.0f} and {speeds[1]:.0f} Mbit/s); packets sent by BPF "
        f"{carried[0]}, delivered by BPF {carried[1]}, super-packets left to the kernel {handed}"
    )


def stream(source: Host, target: Host) -> float:
    """Send BYTES over TCP and return Mbit/s. Raises LabError when they do not all come."""
    server = target.popen(["iperf3", "--server", "--one-off"])
    command = ["iperf3", "--client", str(target.ip), "--bytes", str(BYTES), "--json"]
    end = time.monotonic() + DEADLINE
    while (done := source.run(command, check=False, timeout=DEADLINE)).returncode:
        if time.monotonic() > end or server.poll() is not None:
            raise LabError(f"iperf3: {done.stdout.strip()[-300:]}")
        time.sleep(1)
    server.wait(DEADLINE)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
