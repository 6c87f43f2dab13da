"""The etcd edge: the only place that speaks gRPC. Nothing of grpc or protobuf leaves it."""

from flannel_ebpf.etcd.client import EtcdClient
from flannel_ebpf.etcd.registry import Registry, Snapshot
from flannel_ebpf.etcd.watch import Watch
from flannel_ebpf.options import EtcdOptions

__all__ = ["EtcdClient", "EtcdOptions", "Registry", "Snapshot", "Watch"]
