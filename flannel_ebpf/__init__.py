"""flannel-ebpf: flannel's overlay network, carried by tc/XDP BPF programs."""

__version__ = "0.1.0"
