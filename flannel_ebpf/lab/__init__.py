"""A cluster on one machine: real etcd, nodes and pods as network namespaces, the real daemon on each node.

The demo, the tests under tests/netns and the benchmarks all stand on it, and it is how a user tries the
program:

    with Lab.up(LabSpec(nodes=2, datapath="ebpf")) as lab:
        lab.pod("n1p1").run(["ping", "-c1", str(lab.pod("n2p1").ip)])
"""

from flannel_ebpf.lab.cluster import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.pod import Pod
from flannel_ebpf.lab.spec import LabSpec

__all__ = ["Host", "Lab", "LabSpec", "Node", "Pod"]
